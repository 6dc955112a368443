//! What all senders of the fault lab share: they number their messages, choose inboxes, and keep to their pace.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::caller::Caller;
use super::inboxes::Inboxes;
use super::pace::Pace;

#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) caller: Caller,
    pub(crate) pace: Arc<Pace>,
    inboxes: Inboxes,
    next: u32,
}

impl Sender {
    pub(crate) fn new(caller: Caller, pace: Arc<Pace>, inboxes: Inboxes) -> Sender {
        Sender { caller, pace, inboxes, next: 0 }
    }

    /// Returns the next message: its number and its inbox.
    pub(crate) fn next_message(&mut self, inbox: u32) -> (u32, u32) {
        self.next += 1;
        (self.next, inbox)
    }

    pub(crate) fn inbox(&mut self) -> u32 {
        self.inboxes.pick(self.caller.id, &mut self.caller.rng)
    }

    /// Waits until this number of new messages may be sent; returns `false` if the load is stopping.
    pub(crate) async fn turn(&self, messages: usize) -> bool {
        let mut stop = self.caller.load.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => false,
            () = sleep_until(self.pace.reserve(messages)) => true,
        }
    }
}

pub(crate) fn is_past(at: Instant) -> bool {
    at <= Instant::now()
}
