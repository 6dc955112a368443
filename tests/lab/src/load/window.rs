//! The messages of a stream's sender whose outcome is unknown: those in flight, and those to send again before any new
//! message to the same inbox.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use msg_common::backoff::Backoff;
use tokio::time::Instant;

use super::BACKOFF;

/// The entry of a message in the history: its call, and its index in the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestEntry {
    pub(crate) call: u64,
    pub(crate) index: u32,
}

/// All messages with an unknown outcome, by number.
#[derive(Debug, Default)]
pub(crate) struct Window {
    in_flight: BTreeMap<u32, (u32, RequestEntry)>,
    inboxes: HashMap<u32, Inbox>,
}

#[derive(Debug)]
struct Inbox {
    in_flight: usize,
    /// In the order in which they were first sent.
    failed: BTreeSet<u32>,
    retry_at: Instant,
    backoff: Backoff,
}

impl Window {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inboxes.is_empty()
    }

    /// Whether a new message may be sent to this inbox.
    pub(crate) fn is_free(&self, inbox: u32) -> bool {
        self.inboxes.get(&inbox).is_none_or(|inbox| inbox.failed.is_empty())
    }

    /// Adds a message that is sent, for the first time or again.
    pub(crate) fn add(&mut self, (n, inbox): (u32, u32), entry: RequestEntry) {
        self.in_flight.insert(n, (inbox, entry));
        let inbox = self.inboxes.entry(inbox).or_insert_with(|| Inbox {
            in_flight: 0,
            failed: BTreeSet::new(),
            retry_at: Instant::now(),
            backoff: BACKOFF,
        });
        inbox.in_flight += 1;
        inbox.failed.remove(&n);
    }

    /// Handles the result of a message: it was accepted, or it failed and may be sent again after `delay`. Returns
    /// the entry in the history; none if the message is not in flight.
    pub(crate) fn receive(&mut self, n: u32, accepted: bool, delay: Duration, now: Instant) -> Option<RequestEntry> {
        let (id, entry) = self.in_flight.remove(&n)?;
        let inbox = self.inboxes.get_mut(&id).expect("the inbox has a message with an unknown outcome");
        inbox.in_flight -= 1;
        if accepted {
            inbox.backoff = BACKOFF;
        } else {
            if inbox.failed.is_empty() {
                inbox.retry_at = now + inbox.backoff.failed().max(delay);
            }
            inbox.failed.insert(n);
        }
        if inbox.in_flight == 0 && inbox.failed.is_empty() {
            self.inboxes.remove(&id);
        }
        Some(entry)
    }

    /// Returns the messages to send again now, in order. An inbox waits until all its messages in flight have results:
    /// an earlier one may have failed before a message that is known to have failed.
    pub(crate) fn due(&self, now: Instant) -> Vec<(u32, u32)> {
        let due = self.inboxes.iter().filter(|(_, inbox)| inbox.in_flight == 0 && inbox.retry_at <= now);
        let mut msgs: Vec<_> = due.flat_map(|(id, inbox)| inbox.failed.iter().map(|n| (*n, *id))).collect();
        msgs.sort_unstable();
        msgs
    }

    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.inboxes.values().filter(|inbox| inbox.in_flight == 0).map(|inbox| inbox.retry_at).min()
    }

    /// Handles the end of the stream: all messages in flight have to be sent again, and may be sent immediately on the
    /// next stream.
    pub(crate) fn end_stream(&mut self, now: Instant) -> Vec<RequestEntry> {
        let lost = std::mem::take(&mut self.in_flight);
        for (n, (inbox, _)) in &lost {
            let inbox = self.inboxes.get_mut(inbox).expect("the inbox has a message with an unknown outcome");
            inbox.failed.insert(*n);
            inbox.in_flight = 0;
        }
        self.inboxes.values_mut().for_each(|inbox| inbox.retry_at = now);
        lost.into_values().map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u32 = 1;
    const BOB: u32 = 2;

    fn entry(index: u32) -> RequestEntry {
        RequestEntry { call: 7, index }
    }

    /// A window with these messages in flight.
    fn window(msgs: &[(u32, u32)]) -> Window {
        let mut window = Window::default();
        msgs.iter().for_each(|msg| window.add(*msg, entry(msg.0)));
        window
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn accepted_message_is_removed() {
        let mut window = window(&[(1, ALICE), (2, BOB)]);
        for n in [2, 1] {
            assert!(!window.is_empty() && window.is_free(ALICE) && window.is_free(BOB));
            assert_eq!(window.receive(n, true, Duration::ZERO, Instant::now()), Some(entry(n)));
        }
        assert!(window.is_empty() && window.in_flight() == 0);
        assert_eq!(window.receive(1, true, Duration::ZERO, Instant::now()), None);
    }

    #[test]
    fn inbox_retries_in_order_after_all_its_results_arrived() {
        let mut window = window(&[(1, BOB), (2, ALICE), (3, BOB), (4, BOB)]);
        let now = Instant::now();
        for n in [4, 1] {
            assert!(window.receive(n, false, Duration::ZERO, now).is_some());
        }
        assert!(!window.is_free(BOB) && window.is_free(ALICE));
        assert!(window.due(later()).is_empty() && window.retry_at().is_none());
        window.receive(3, true, Duration::ZERO, now);
        assert_eq!(window.due(later()), [(1, BOB), (4, BOB)]);
        window.add((1, BOB), entry(8));
        assert!(!window.is_free(BOB));
        window.add((4, BOB), entry(9));
        assert!(window.is_free(BOB) && window.due(later()).is_empty());
        // Send both again, and a new message after them.
        window.add((5, BOB), entry(10));
        for n in [1, 5, 4] {
            window.receive(n, n == 4, Duration::ZERO, now);
        }
        assert_eq!(window.due(later()), [(1, BOB), (5, BOB)]);
    }

    #[test]
    fn failed_message_waits_for_the_requested_delay() {
        let mut window = window(&[(1, BOB)]);
        let (now, delay) = (Instant::now(), Duration::from_secs(3));
        window.receive(1, false, delay, now);
        assert_eq!(window.retry_at(), Some(now + delay));
        assert!(window.due(now).is_empty());
        assert_eq!(window.due(now + delay), [(1, BOB)]);
    }

    #[test]
    fn all_unknown_messages_of_an_ended_stream_are_retried_in_order() {
        let mut window = window(&[(1, BOB), (2, ALICE), (3, BOB), (4, ALICE)]);
        let now = Instant::now();
        window.receive(2, true, Duration::ZERO, now);
        window.receive(3, false, Duration::from_secs(9), now);
        assert_eq!(window.end_stream(now), [entry(1), entry(4)]);
        assert_eq!(window.in_flight(), 0);
        assert!(!window.is_free(ALICE) && !window.is_free(BOB));
        assert_eq!(window.due(now), [(1, BOB), (3, BOB), (4, ALICE)]);
    }
}
