//! Checks whether a `traceparent` is valid by the W3C's Trace Context. Only a valid one becomes a header of the record.

/// Maximum length in bytes. Later versions may be longer than the 55 bytes of version 00.
const MAX_BYTES: usize = 256;

/// Returns whether the value of the header has the form of a trace context that identifies a trace.
pub fn is_valid(value: &[u8]) -> bool {
    if value.len() < 55 || value.len() > MAX_BYTES {
        return false;
    }
    let (version, trace, span, flags) = (&value[0..2], &value[3..35], &value[36..52], &value[53..55]);
    let dashes = value[2] == b'-' && value[35] == b'-' && value[52] == b'-';
    let hex = |part: &[u8]| part.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|c| *c == b'0');
    // Version 00 ends here; a later version may have more fields after another dash.
    let end = value.len() == 55 || (version != b"00" && value[55] == b'-' && value.is_ascii());
    dashes
        && hex(version)
        && version != b"ff"
        && hex(trace)
        && !zero(trace)
        && hex(span)
        && !zero(span)
        && hex(flags)
        && end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_trace_contexts_are_forwarded() {
        for (value, valid) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            assert_eq!(is_valid(value.as_bytes()), valid, "{value}");
        }
    }
}
