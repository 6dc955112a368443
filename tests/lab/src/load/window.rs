//! The messages of a stream's sender whose outcome is unknown: those in flight, and those to send again before any new
//! message to the same inbox.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;

/// Where a message is in the history: its call, and its index in the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) call: u64,
    pub(crate) place: u32,
}

/// All messages with an unknown outcome, by number.
#[derive(Debug, Default)]
pub(crate) struct Window {
    unanswered: BTreeMap<u32, (u32, Asked)>,
    /// The inboxes of these messages.
    inboxes: HashMap<u32, Inbox>,
}

#[derive(Debug)]
struct Inbox {
    unanswered: usize,
    /// In the order in which they were first sent.
    failed: BTreeSet<u32>,
    /// The earliest time of the retry.
    again: Instant,
    backoff: Backoff,
}

impl Window {
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inboxes.is_empty()
    }

    /// Whether a new message may be sent to this inbox.
    pub(crate) fn is_free(&self, inbox: u32) -> bool {
        self.inboxes.get(&inbox).is_none_or(|inbox| inbox.failed.is_empty())
    }

    /// Adds a message that is sent, for the first time or again.
    pub(crate) fn goes(&mut self, (n, inbox): (u32, u32), asked: Asked) {
        self.unanswered.insert(n, (inbox, asked));
        let inbox = self.inboxes.entry(inbox).or_insert_with(|| Inbox {
            unanswered: 0,
            failed: BTreeSet::new(),
            again: Instant::now(),
            backoff: Backoff::default(),
        });
        inbox.unanswered += 1;
        inbox.failed.remove(&n);
    }

    /// Handles the result of a message: it was accepted, or it failed and may be sent again after `delay`. Returns
    /// where the request is in the history; none if the message is not in flight.
    pub(crate) fn is_told(&mut self, n: u32, accepted: bool, delay: Duration, now: Instant) -> Option<Asked> {
        let (id, asked) = self.unanswered.remove(&n)?;
        let inbox = self.inboxes.get_mut(&id).expect("it has a message that is not settled");
        inbox.unanswered -= 1;
        if accepted {
            inbox.backoff = Backoff::default();
        } else {
            if inbox.failed.is_empty() {
                inbox.again = now + inbox.backoff.next(delay);
            }
            inbox.failed.insert(n);
        }
        if inbox.unanswered == 0 && inbox.failed.is_empty() {
            self.inboxes.remove(&id);
        }
        Some(asked)
    }

    /// Returns the messages to send again now, in order. An inbox waits until all its messages in flight have results:
    /// an earlier one may have failed before a message that is known to have failed.
    pub(crate) fn due(&self, now: Instant) -> Vec<(u32, u32)> {
        let due = self.inboxes.iter().filter(|(_, inbox)| inbox.unanswered == 0 && inbox.again <= now);
        let mut msgs: Vec<_> = due.flat_map(|(id, inbox)| inbox.failed.iter().map(|n| (*n, *id))).collect();
        msgs.sort_unstable();
        msgs
    }

    /// Returns the earliest time of a retry.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.inboxes.values().filter(|inbox| inbox.unanswered == 0).map(|inbox| inbox.again).min()
    }

    /// Handles the end of the stream: all messages in flight have to be sent again, and may be sent immediately on the
    /// next stream.
    pub(crate) fn is_lost(&mut self, now: Instant) -> Vec<Asked> {
        let lost = std::mem::take(&mut self.unanswered);
        for (n, (inbox, _)) in &lost {
            let inbox = self.inboxes.get_mut(inbox).expect("it has a message that is not settled");
            inbox.failed.insert(*n);
            inbox.unanswered = 0;
        }
        self.inboxes.values_mut().for_each(|inbox| inbox.again = now);
        lost.into_values().map(|(_, asked)| asked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u32 = 1;
    const BOB: u32 = 2;

    fn asked(place: u32) -> Asked {
        Asked { call: 7, place }
    }

    /// A window with these messages in flight.
    fn window(msgs: &[(u32, u32)]) -> Window {
        let mut window = Window::default();
        msgs.iter().for_each(|msg| window.goes(*msg, asked(msg.0)));
        window
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_is_accepted_is_forgotten() {
        let mut window = window(&[(1, ALICE), (2, BOB)]);
        for n in [2, 1] {
            assert!(!window.is_empty() && window.is_free(ALICE) && window.is_free(BOB));
            assert_eq!(window.is_told(n, true, Duration::ZERO, Instant::now()), Some(asked(n)));
        }
        assert!(window.is_empty() && window.unanswered() == 0);
        assert_eq!(window.is_told(1, true, Duration::ZERO, Instant::now()), None);
    }

    #[test]
    fn an_inbox_waits_for_all_its_answers_and_then_sends_what_failed_in_the_first_order() {
        let mut window = window(&[(1, BOB), (2, ALICE), (3, BOB), (4, BOB)]);
        let now = Instant::now();
        for n in [4, 1] {
            assert!(window.is_told(n, false, Duration::ZERO, now).is_some());
        }
        assert!(!window.is_free(BOB) && window.is_free(ALICE));
        assert!(window.due(later()).is_empty() && window.again().is_none());
        window.is_told(3, true, Duration::ZERO, now);
        assert_eq!(window.due(later()), [(1, BOB), (4, BOB)]);
        window.goes((1, BOB), asked(8));
        assert!(!window.is_free(BOB));
        window.goes((4, BOB), asked(9));
        assert!(window.is_free(BOB) && window.due(later()).is_empty());
        // Sends again, and new messages behind them.
        window.goes((5, BOB), asked(10));
        for n in [1, 5, 4] {
            window.is_told(n, n == 4, Duration::ZERO, now);
        }
        assert_eq!(window.due(later()), [(1, BOB), (5, BOB)]);
    }

    #[test]
    fn what_failed_waits_as_long_as_it_was_told() {
        let mut window = window(&[(1, BOB)]);
        let (now, delay) = (Instant::now(), Duration::from_secs(3));
        window.is_told(1, false, delay, now);
        assert_eq!(window.again(), Some(now + delay));
        assert!(window.due(now).is_empty());
        assert_eq!(window.due(now + delay), [(1, BOB)]);
    }

    #[test]
    fn of_a_lost_stream_all_that_is_not_settled_goes_again_in_order() {
        let mut window = window(&[(1, BOB), (2, ALICE), (3, BOB), (4, ALICE)]);
        let now = Instant::now();
        window.is_told(2, true, Duration::ZERO, now);
        window.is_told(3, false, Duration::from_secs(9), now);
        assert_eq!(window.is_lost(now), [asked(1), asked(4)]);
        assert_eq!(window.unanswered(), 0);
        assert!(!window.is_free(ALICE) && !window.is_free(BOB));
        assert_eq!(window.due(now), [(1, BOB), (3, BOB), (4, ALICE)]);
    }
}
