//! Owns the format of numbers in reports.

pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a rate, or another number of which only the first digits matter.
pub fn rough(number: f64) -> String {
    if number > 0.0 && number < 10.0 { format!("{number:.1}") } else { grouped(number.round() as u64) }
}

/// Formats a moment in the run: minutes and seconds, and hours if there are any.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

pub fn duration(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") }
}

/// Formats milliseconds, as seconds from 1,000 on.
pub fn latency(millis: f64) -> String {
    match millis {
        ..1.0 => format!("{millis:.1} ms"),
        ..1000.0 => format!("{millis:.0} ms"),
        _ => duration(millis / 1000.0),
    }
}

/// Formats milliseconds that are a power of ten.
pub fn latency_label(millis: f64) -> String {
    if millis < 1000.0 { format!("{millis} ms") } else { format!("{} s", millis / 1000.0) }
}

/// Formats a size in MiB with its unit.
pub fn mib(mib: f64) -> String {
    format!("{} MiB", grouped(mib.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(grouped), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 0.25, 9.94, 12.4, 12_345.6].map(rough), ["0", "0.2", "9.9", "12", "12,346"]);
        assert_eq!([0.2, 59.6, 83.0, 3661.0].map(clock), ["0:00", "1:00", "1:23", "1:01:01"]);
        assert_eq!([0.0, 0.126, 9.0, 12.34].map(duration), ["0.00 s", "0.13 s", "9.00 s", "12.3 s"]);
        assert_eq!([0.42, 15.2, 1500.0].map(latency), ["0.4 ms", "15 ms", "1.50 s"]);
        assert_eq!([0.1, 100.0, 1000.0].map(latency_label), ["0.1 ms", "100 ms", "1 s"]);
        assert_eq!(mib(1500.4), "1,500 MiB");
    }
}
