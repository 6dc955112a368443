//! Owns the checks of reads: they are in order and without gaps, and no message disappears.

use std::collections::HashMap;

use super::super::evidence::Fault;
use super::super::history::{Attempt, Nanos, Outcome, ReadWay, State, WATCH_WITHIN};
use super::Finding;
use super::facts::Facts;

/// Without a disturbance a watch sends every message within this time: the lab's gateways poll every 5 s.
const ENOUGH: Nanos = 10_000_000_000;
/// Parts of the names of faults that can keep a gateway from the database, or a watcher from its gateway.
const DISTURBING: [&str; 10] =
    ["gateway", "client", "services", "postgres", "backend", "deploy", "clocks", "primary", "password", "withdraw"];

/// By inbox: each seq that was higher than all before, and when it was first read.
type Seen = HashMap<u32, Vec<(Nanos, i64)>>;

/// Checks P4 from the view of the readers.
pub(super) fn check(facts: &Facts<'_>) -> [Finding; 6] {
    let seen = seen(facts);
    [pulls(facts), watches(facts), same(facts), never_less(facts, &seen), silence(facts, &seen), statuses(facts)]
}

fn pulls(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P4", "a page starts at the requested seq and has no gaps");
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Pull) {
        let seqs = facts.book.msgs(read).iter().map(|(seq, _, _)| *seq);
        let bad = seqs.zip(read.from.max(1)..).find(|(seq, expected)| seq != expected);
        finding.check(bad.is_none(), || {
            let (seq, expected) = bad.unwrap_or_default();
            format!("reader {}: inbox-{} returned seq {seq} instead of {expected}", read.reader, read.inbox)
        });
    }
    finding
}

fn watches(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P4", "a watch sends each message of an inbox once, in seq order, without gaps");
    // By reader and inbox: the expected seq.
    let mut next: HashMap<(u32, u32), i64> = HashMap::new();
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Watch) {
        let next = next.entry((read.reader, read.inbox)).or_insert(read.from.max(1));
        for (seq, _, _) in facts.book.msgs(read) {
            let problem = || format!("reader {}: inbox-{} sent seq {seq} instead of {next}", read.reader, read.inbox);
            finding.check(seq == next, problem);
            *next = seq + 1;
        }
    }
    finding
}

fn same(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new(
        "P4",
        "the message that was read with a seq is the one that the table has with that seq at the end",
    );
    for read in &facts.book.reads {
        for (seq, sender, n) in facts.book.msgs(read) {
            let row = facts.row_at(read.inbox, *seq).map(|row| (row.sender, row.n));
            finding.check(row == Some((*sender, *n)), || {
                let table = row.map(|(sender, n)| format!("message {n} of sender-{sender}"));
                format!(
                    "inbox-{} seq {seq}: message {n} of sender-{sender} was read, the table has {table:?}",
                    read.inbox
                )
            });
        }
    }
    for read in &facts.book.max_seqs {
        let highest = facts.max_seq(read.inbox);
        let problem =
            || format!("inbox-{}: {} was returned as the last seq, the table has {highest}", read.inbox, read.seq);
        finding.check(read.seq <= highest, problem);
    }
    finding
}

/// Checks that a read reaches every seq that any reader had read before the request.
fn never_less(facts: &Facts<'_>, seen: &Seen) -> Finding {
    let mut finding = Finding::new("P4", "no message disappears: every later read has at least the same last seq");
    let mut reach = |inbox: u32, requested: Nanos, reached: i64, reader: u32| {
        let Some(highest) = highest_before(seen, inbox, requested) else { return };
        let problem = || format!("reader {reader}: inbox-{inbox} ended at {reached}, after {highest} had been read");
        finding.check(reached >= highest, problem);
    };
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Pull && read.end) {
        let reached = facts.book.msgs(read).last().map_or(read.from.max(1) - 1, |(seq, _, _)| *seq);
        reach(read.inbox, read.requested, reached, read.reader);
    }
    for read in &facts.book.max_seqs {
        reach(read.inbox, read.requested, read.seq, read.reader);
    }
    finding
}

/// Checks that a silent watch has nothing to send. No other check can detect a message that a watch has missed.
fn silence(facts: &Facts<'_>, seen: &Seen) -> Finding {
    let within = WATCH_WITHIN.as_secs();
    let mut finding =
        Finding::new("P4", format!("a watch has sent within {within} s every message that other readers have read"));
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Watch && read.end) {
        if longest_calm(facts, read.requested, read.at) < ENOUGH {
            continue;
        }
        let highest = highest_before(seen, read.inbox, read.requested).unwrap_or(0);
        let (reader, inbox, reached) = (read.reader, read.inbox, read.from - 1);
        let problem =
            || format!("reader {reader}: the watch of inbox-{inbox} ended at {reached}, after {highest} had been read");
        finding.check(reached >= highest, problem);
    }
    finding
}

/// Checks that GetMsgStatus reports every accepted message, and agrees with the tables.
fn statuses(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P1", "the status of an accepted message is never NOT_FOUND, and agrees with the tables");
    for status in &facts.book.statuses {
        let problem = || format!("message {} of sender-{} has the status {:?}", status.n, status.sender, status.state);
        let Some(message) = facts.book.find(status.sender, status.n) else {
            // The message was never sent. PENDING is possible while records of others may be before its possible
            // position.
            finding.check(matches!(status.state, State::NotFound | State::Pending), problem);
            continue;
        };
        let before = |one: &&Attempt| one.responded.is_some_and(|at| at < status.requested);
        let reported_before = || facts.book.attempts_of(message).filter(before);
        let stored = reported_before().any(|one| matches!(one.outcome, Outcome::Stored { .. }));
        let accepted = reported_before().any(|one| one.outcome.position().is_some() && !facts.was_destroyed(one));
        let row = facts.row_of(message);
        let holds = match status.state {
            State::Stored(seq) => row.is_some_and(|row| row.seq == seq),
            State::DeadLettered => row.is_none(),
            State::Pending => !stored,
            State::NotFound => !accepted,
        };
        finding.check(holds, problem);
    }
    finding
}

/// Returns the longest time between `from` and `to` in which no fault disturbed a watch.
fn longest_calm(facts: &Facts<'_>, from: Nanos, to: Nanos) -> Nanos {
    let disturbs = |fault: &&Fault| DISTURBING.iter().any(|part| fault.name.contains(part));
    let faults = facts.evidence.faults.iter().filter(disturbs).filter(|fault| fault.began < to && fault.healed > from);
    let mut spans: Vec<(Nanos, Nanos)> = faults.map(|fault| (fault.began, fault.healed)).collect();
    spans.sort_unstable();
    spans.push((to, to));
    let mut calm_since = from;
    let mut longest = 0;
    for (began, healed) in spans {
        longest = longest.max(began.saturating_sub(calm_since));
        calm_since = calm_since.max(healed);
    }
    longest
}

fn highest_before(seen: &Seen, inbox: u32, requested: Nanos) -> Option<i64> {
    let seen = seen.get(&inbox)?;
    let before = seen.partition_point(|(at, _)| *at < requested).checked_sub(1)?;
    Some(seen[before].1)
}

fn seen(facts: &Facts<'_>) -> Seen {
    let mut seen = Seen::new();
    for read in &facts.book.reads {
        if let Some((seq, _, _)) = facts.book.msgs(read).last() {
            seen.entry(read.inbox).or_default().push((read.at, *seq));
        }
    }
    for read in &facts.book.max_seqs {
        seen.entry(read.inbox).or_default().push((read.at, read.seq));
    }
    for attempt in &facts.book.attempts {
        if let (Outcome::Stored { seq, .. }, Some(at)) = (&attempt.outcome, attempt.responded) {
            seen.entry(facts.book.messages[attempt.message as usize].inbox).or_default().push((at, *seq));
        }
    }
    for seen in seen.values_mut() {
        seen.sort_unstable();
        let mut highest = i64::MIN;
        seen.retain(|(_, seq)| {
            let higher = *seq > highest;
            highest = highest.max(*seq);
            higher
        });
    }
    seen
}
