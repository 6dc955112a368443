//! Senders with single calls and with batches. Each continues in an inbox only when every outcome there is known.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use super::BACKOFF;
use super::outcome::MsgResult;
use super::sender::Sender;
use crate::history::{Outcome, Way};

/// The share of messages that are abandoned after they were not sent.
const ABANDONED: f64 = 0.3;
/// The shares of accepted messages that are sent again immediately, and later.
const RESENT_IMMEDIATELY: f64 = 0.005;
const RESENT_LATER: f64 = 0.005;
/// Maximum number of messages that wait to be sent again later.
const RESEND_QUEUE: usize = 16;
/// Maximum number of messages with unknown outcomes of one sender with single calls.
const MOST_OPEN: usize = 4;
const LARGEST_BATCH: usize = 200;
const MOST_INBOXES: usize = 4;

/// A message to send, perhaps again.
struct Open {
    msg: (u32, u32),
    /// Whether every attempt so far was reported as not sent.
    certain: bool,
}

/// Sends one message after the other. While a message waits for a retry, the sender starts messages to other inboxes.
pub(crate) async fn one_by_one(mut sender: Sender) -> io::Result<()> {
    let mut open: Vec<Open> = Vec::new();
    let mut backoff = BACKOFF;
    let mut later = VecDeque::new();
    while !(sender.caller.load.is_stopping() && open.is_empty()) {
        if open.len() < MOST_OPEN && sender.turn(1).await {
            let inbox = sender.inbox();
            if open.iter().all(|open| open.msg.1 != inbox) {
                open.push(Open { msg: sender.next_message(inbox), certain: true });
            }
        }
        let mut delay = Duration::ZERO;
        for Open { msg, mut certain } in std::mem::take(&mut open) {
            let results = sender.caller.attempt(Way::Unary, false, &[msg]).await?;
            if unsettled(&[msg], &results).is_empty() {
                if let Some(position) = results.first().and_then(|result| result.outcome.position()) {
                    sender.caller.load.accepted.note(sender.caller.id, msg, position);
                }
                resend_some(&mut sender, msg, &mut later).await?;
                continue;
            }
            delay = delay.max(longest(&results));
            certain &= results.iter().all(|result| matches!(result.outcome, Outcome::NotSent(_)));
            if !(certain && sender.caller.rng.random_bool(ABANDONED)) {
                open.push(Open { msg, certain });
            }
        }
        if open.is_empty() {
            backoff = BACKOFF;
        } else {
            sleep(backoff.failed().max(delay)).await;
        }
    }
    Ok(())
}

/// Sends some of the accepted messages again on purpose: the gateway must store them only once.
async fn resend_some(sender: &mut Sender, msg: (u32, u32), later: &mut VecDeque<(u32, u32)>) -> io::Result<()> {
    if sender.caller.rng.random_bool(RESENT_IMMEDIATELY) {
        sender.caller.attempt(Way::Unary, false, &[msg]).await?;
    }
    if sender.caller.rng.random_bool(RESENT_LATER) {
        later.push_back(msg);
    }
    if later.len() == RESEND_QUEUE
        && let Some(msg) = later.pop_front()
    {
        sender.caller.attempt(Way::Unary, false, &[msg]).await?;
    }
    Ok(())
}

/// Sends one batch after the other.
pub(crate) async fn in_batches(mut sender: Sender) -> io::Result<()> {
    loop {
        let size = sender.caller.rng.random_range(1..=LARGEST_BATCH);
        if !sender.turn(size).await {
            return Ok(());
        }
        let inboxes: Vec<u32> = (0..sender.caller.rng.random_range(1..=MOST_INBOXES)).map(|_| sender.inbox()).collect();
        let mut msgs = Vec::with_capacity(size);
        for _ in 0..size {
            let inbox = inboxes[sender.caller.rng.random_range(0..inboxes.len())];
            msgs.push(sender.next_message(inbox));
        }
        settle(&mut sender, msgs).await?;
    }
}

/// Sends until every message is accepted.
async fn settle(sender: &mut Sender, mut msgs: Vec<(u32, u32)>) -> io::Result<()> {
    let mut backoff = BACKOFF;
    loop {
        let results = sender.caller.attempt(Way::Batch, false, &msgs).await?;
        msgs = unsettled(&msgs, &results);
        if msgs.is_empty() {
            return Ok(());
        }
        sleep(backoff.failed().max(longest(&results))).await;
    }
}

fn longest(results: &[MsgResult]) -> Duration {
    results.iter().map(|result| result.delay).max().unwrap_or_default()
}

/// Returns the messages to send again, in their order.
fn unsettled(msgs: &[(u32, u32)], results: &[MsgResult]) -> Vec<(u32, u32)> {
    let open = msgs.iter().zip(results).filter(|(_, result)| !result.is_accepted());
    open.map(|(msg, _)| *msg).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_were_not_accepted_are_sent_again_in_order() {
        let outcomes = [
            Outcome::Ok(0, 1),
            Outcome::Unknown("OUTCOME_UNKNOWN".into()),
            Outcome::NotStoredYet(0, 2),
            Outcome::NotSent("PREDECESSOR_FAILED".into()),
            Outcome::DeadLettered(0, 3, "INVALID".into()),
            Outcome::Stored { partition: 0, offset: 4, seq: 1, duplicate: false },
            Outcome::NotSent("NOT_SENT".into()),
        ];
        let results = outcomes.map(|outcome| MsgResult { outcome, delay: Duration::ZERO });
        let msgs: Vec<(u32, u32)> = (1..=7).map(|n| (n, 100 + n)).collect();
        assert_eq!(unsettled(&msgs, &results), [(2, 102), (4, 104), (7, 107)]);
    }
}
