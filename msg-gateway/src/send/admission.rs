//! How much may be in flight: messages that were taken and whose delivery report has not come, by count and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a record takes beside its key and value, in bytes: librdkafka's own structures, headers and queue entries.
pub const RECORD_OVERHEAD: usize = 512;

/// The limits, and what is taken of them.
#[derive(Debug)]
pub struct Admission {
    max_msgs: usize,
    max_bytes: usize,
    msgs: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place in flight. It belongs to the record and not to the call: a caller that sends and cancels must not
/// pass the limit.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    bytes: usize,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many messages.
    Msgs,
    /// Too many bytes.
    Bytes,
}

impl Admission {
    /// Nothing in flight yet.
    pub fn new(max_msgs: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Admission { max_msgs, max_bytes, msgs: AtomicUsize::new(0), bytes: AtomicUsize::new(0) })
    }

    /// A place for a record of `bytes`. A record larger than the whole limit is let in when it is alone.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Result<Permit, Full> {
        // Added first and taken back when it was too much: two at once cannot both pass the last place. These
        // numbers guard no other memory, so their order with it does not matter.
        if self.msgs.fetch_add(1, Ordering::Relaxed) >= self.max_msgs {
            self.msgs.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Msgs);
        }
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before + bytes > self.max_bytes {
            self.msgs.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Full::Bytes);
        }
        Ok(Permit { admission: self.clone(), bytes })
    }

    /// Messages in flight, and their bytes.
    pub fn taken(&self) -> (usize, usize) {
        (self.msgs.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.msgs.fetch_sub(1, Ordering::Relaxed);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_a_limit() {
        let admission = Admission::new(2, 1000);
        let first = admission.admit(1).expect("there is room");
        let _second = admission.admit(1).expect("there is room");
        assert_eq!(admission.admit(1).expect_err("it is full"), Full::Msgs);
        drop(first);
        assert!(admission.admit(1).is_ok());
    }

    #[test]
    fn the_bytes_are_a_limit() {
        let admission = Admission::new(10, 1000);
        let _first = admission.admit(600).expect("there is room");
        assert_eq!(admission.admit(401).expect_err("it is full"), Full::Bytes);
        assert_eq!(admission.taken(), (1, 600));
        assert!(admission.admit(400).is_ok());
    }

    #[test]
    fn one_alone_may_be_larger_than_the_limit() {
        let admission = Admission::new(10, 1000);
        let alone = admission.admit(2000).expect("it is alone");
        assert!(admission.admit(1).is_err());
        drop(alone);
        assert_eq!(admission.taken(), (0, 0));
    }
}
