//! How much may be in flight: messages that were taken and whose delivery report has not come, by count and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// What a record takes beside its key and value, in bytes: librdkafka's own structures, headers and queue entries.
pub const RECORD_OVERHEAD: usize = 512;

/// The limits, and what is taken of them.
#[derive(Debug)]
pub struct Admission {
    max_msgs: usize,
    max_bytes: usize,
    msgs: AtomicUsize,
    bytes: AtomicUsize,
    waiting: AtomicUsize,
    freed: Notify,
}

/// A place in flight, or several. It belongs to the record and not to the call: a caller that sends and cancels must not
/// pass the limit.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    msgs: usize,
    bytes: usize,
}

/// Somebody who waits for room, which only streams do.
#[derive(Debug)]
pub struct Waiting {
    admission: Arc<Admission>,
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
        let (msgs, bytes, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Admission { max_msgs, max_bytes, msgs, bytes, waiting, freed: Notify::new() })
    }

    /// A place for a record of `bytes`.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Result<Permit, Full> {
        self.admit_all(1, bytes)
    }

    /// A place for so many records of so many bytes in all, or for none of them. What is larger than a limit is let in when it
    /// is alone: it would otherwise be told to try again for ever.
    pub fn admit_all(self: &Arc<Self>, msgs: usize, bytes: usize) -> Result<Permit, Full> {
        // Added first and taken back when it was too much: two at once cannot both pass the last place. The order counts
        // for those who wait: see `wait`.
        let before = self.msgs.fetch_add(msgs, Ordering::SeqCst);
        if before > 0 && before + msgs > self.max_msgs {
            self.msgs.fetch_sub(msgs, Ordering::SeqCst);
            return Err(Full::Msgs);
        }
        let before = self.bytes.fetch_add(bytes, Ordering::SeqCst);
        if before > 0 && before + bytes > self.max_bytes {
            self.msgs.fetch_sub(msgs, Ordering::SeqCst);
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Err(Full::Bytes);
        }
        Ok(Permit { admission: self.clone(), msgs, bytes })
    }

    /// From now on, whoever gives room back tells so. Try again after this and before [`Waiting::freed`]: room that was given
    /// back before this was not told of.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting { admission: self.clone() }
    }

    /// Messages in flight, and their bytes.
    pub fn taken(&self) -> (usize, usize) {
        (self.msgs.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Permit {
    /// One record's part of it, which is given back with that record.
    pub fn split(&mut self, bytes: usize) -> Permit {
        self.msgs -= 1;
        self.bytes -= bytes;
        Permit { admission: self.admission.clone(), msgs: 1, bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.msgs.fetch_sub(self.msgs, Ordering::SeqCst);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.admission.waiting.load(Ordering::SeqCst) > 0 {
            self.admission.freed.notify_one();
        }
    }
}

impl Waiting {
    /// Comes back when room was given back, to one of those who wait at a time, in turn.
    pub async fn freed(&self) {
        self.admission.freed.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Who was woken may have left room for the next.
        if self.admission.waiting.fetch_sub(1, Ordering::SeqCst) > 1 {
            self.admission.freed.notify_one();
        }
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
    fn what_is_alone_may_be_larger_than_the_limit() {
        let admission = Admission::new(10, 1000);
        let alone = admission.admit(2000).expect("it is alone");
        assert!(admission.admit(1).is_err());
        drop(alone);
        assert_eq!(admission.taken(), (0, 0));
        let alone = admission.admit_all(11, 500).expect("they are alone");
        assert_eq!(admission.admit(1).expect_err("it is full"), Full::Msgs);
        drop(alone);
        let _one = admission.admit(1).expect("there is room");
        assert_eq!(admission.admit_all(11, 500).expect_err("they are not alone"), Full::Msgs);
    }

    #[test]
    fn many_are_let_in_together_or_not_at_all_and_each_gives_back_its_own() {
        let admission = Admission::new(3, 1000);
        let one = admission.admit(100).expect("there is room");
        assert_eq!(admission.admit_all(3, 10).expect_err("it is full"), Full::Msgs);
        assert_eq!(admission.admit_all(2, 901).expect_err("it is full"), Full::Bytes);
        assert_eq!(admission.taken(), (1, 100));
        let mut both = admission.admit_all(2, 900).expect("there is room");
        let first = both.split(300);
        drop(one);
        assert_eq!(admission.taken(), (2, 900));
        drop(both);
        assert_eq!(admission.taken(), (1, 300));
        drop(first);
        assert_eq!(admission.taken(), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_is_told_of_room_and_tells_the_next() {
        let admission = Admission::new(1, 1000);
        let permit = admission.admit(1).expect("there is room");
        let (first, second) = (admission.wait(), admission.wait());
        drop(permit);
        first.freed().await;
        let permit = admission.admit(1).expect("there is room");
        drop(first);
        second.freed().await;
        assert!(admission.admit(1).is_err());
        drop(permit);
        second.freed().await;
    }
}
