//! Determines when to respond to a call. tonic ends a call at the caller's deadline and cannot report the outcome of the
//! message, so the gateway responds a margin earlier.

use std::time::{Duration, Instant};

use http::HeaderMap;

use crate::status::Failure;

/// When the head of a request arrived. The caller's deadline is counted from here, and the body may arrive much later.
#[derive(Clone, Copy, Debug)]
pub struct Arrival(pub Instant);

/// The limits from which the deadline of a result follows.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The maximum wait, whatever the caller allows.
    pub max_wait: Duration,
    /// How long before the caller's deadline the result is sent, in addition to what the caller's library may have
    /// added to the timeout.
    pub margin: Duration,
    /// The minimum time that is left for an attempt.
    pub shortest: Duration,
}

impl Timing {
    /// Returns when to respond to a call that arrived at `arrival` with the caller's timeout. Fails if that leaves too
    /// little time from `now` on.
    pub fn respond_by(&self, arrival: Instant, timeout: Option<Duration>, now: Instant) -> Result<Instant, Failure> {
        let Some(timeout) = timeout else {
            return Ok(now + self.max_wait);
        };
        let too_short = Failure::DeadlineTooShort { shortest: self.margin + self.shortest };
        let Some(left) = self.before_deadline(timeout) else {
            return Err(too_short);
        };
        // A timeout may reach beyond what an Instant can hold.
        let by = arrival.checked_add(left).unwrap_or(now + self.max_wait).min(now + self.max_wait);
        if by.saturating_duration_since(now) <= self.shortest {
            return Err(too_short);
        }
        Ok(by)
    }

    /// Returns the time from the arrival to the response, which is due a margin before the deadline; `None` if the timeout is
    /// shorter than the margin.
    ///
    /// The margin grows with the timeout, because a caller's own deadline may be up to 1 % earlier than its `grpc-timeout` says:
    /// gRPC's C core (Python, C++, PHP, Ruby) rounds up to two or three digits from 1 s on, so that 10 s arrive as 10.1 s and 120 s
    /// as 121 s. The caller would not see a response after its own deadline, nor the reason in it.
    pub fn before_deadline(&self, timeout: Duration) -> Option<Duration> {
        const ROUNDED_FROM: Duration = Duration::from_secs(1);
        let rounding = if timeout < ROUNDED_FROM { Duration::ZERO } else { timeout / 100 };
        timeout.checked_sub(rounding)?.checked_sub(self.margin)
    }
}

/// Reads the caller's `grpc-timeout`. A malformed value counts as none, as in tonic.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    parse(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Parses at most 8 digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_parsed_as_the_protocol_defines() {
        for (text, expected) in [
            ("3H", Some(Duration::from_secs(10_800))),
            ("1M", Some(Duration::from_secs(60))),
            ("42S", Some(Duration::from_secs(42))),
            ("13m", Some(Duration::from_millis(13))),
            ("2u", Some(Duration::from_micros(2))),
            ("82n", Some(Duration::from_nanos(82))),
            ("0S", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789H", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("1.5S", None),
            ("1 S", None),
            ("oneH", None),
            ("1é", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    const TIMING: Timing = Timing {
        max_wait: Duration::from_secs(20),
        margin: Duration::from_millis(20),
        shortest: Duration::from_millis(5),
    };

    #[test]
    fn call_without_timeout_has_the_maximum_wait() {
        let now = Instant::now();
        assert_eq!(TIMING.respond_by(now, None, now), Ok(now + TIMING.max_wait));
        assert_eq!(TIMING.respond_by(now, Some(Duration::from_secs(3600)), now), Ok(now + TIMING.max_wait));
        let century = Duration::from_secs(99_999_999 * 3600);
        assert_eq!(TIMING.respond_by(now, Some(century), now), Ok(now + TIMING.max_wait));
    }

    #[test]
    fn response_is_due_a_margin_before_the_deadline() {
        let arrival = Instant::now();
        let now = arrival + Duration::from_millis(400);
        let by = TIMING.respond_by(arrival, Some(Duration::from_secs(1)), now);
        assert_eq!(by, Ok(arrival + Duration::from_millis(970)));
    }

    /// Returns a timeout as C core sends it, in milliseconds: rounded up to two digits below 10 s and three above, from a deadline
    /// that was rounded up to the next millisecond.
    fn rounded_by_c_core(millis: u64) -> u64 {
        let millis = millis + 1;
        let unit = match millis {
            0..1000 => 1,
            1000..10_000 => 10,
            10_000..100_000 => 100,
            100_000..1_000_000 => 1000,
            _ => 10_000,
        };
        millis.div_ceil(unit) * unit
    }

    #[test]
    fn response_is_due_before_the_deadline_of_a_caller_that_rounds() {
        assert_eq!([10_000, 120_000].map(rounded_by_c_core), [10_100, 121_000]);
        let timing = Timing { max_wait: Duration::from_secs(10_000), ..TIMING };
        let arrival = Instant::now();
        for millis in
            [100, 500, 999, 1000, 1001, 2500, 9_990, 10_000, 10_001, 60_000, 99_999, 100_000, 120_000, 999_000]
        {
            let arrives = Duration::from_millis(rounded_by_c_core(millis));
            let by = timing.respond_by(arrival, Some(arrives), arrival).expect("it is long enough");
            let left = (arrival + Duration::from_millis(millis)).saturating_duration_since(by);
            assert!(left >= Duration::from_millis(19), "{millis} ms: {left:?} are left");
            assert!(left <= Duration::from_millis(20 + millis / 90), "{millis} ms: {left:?} are not used");
        }
    }

    #[test]
    fn timeout_that_is_too_short_is_rejected() {
        let arrival = Instant::now();
        for (timeout, late) in [(0, 0), (10, 0), (25, 0), (1000, 975), (1000, 2000)] {
            let (timeout, now) = (Duration::from_millis(timeout), arrival + Duration::from_millis(late));
            let rejected = TIMING.respond_by(arrival, Some(timeout), now);
            assert_eq!(rejected, Err(Failure::DeadlineTooShort { shortest: Duration::from_millis(25) }));
        }
        assert!(TIMING.respond_by(arrival, Some(Duration::from_millis(26)), arrival).is_ok());
    }
}
