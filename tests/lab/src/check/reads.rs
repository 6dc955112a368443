//! Owns what readers saw: in order, without gaps, and never again less than before.

use std::collections::HashMap;

use super::super::evidence::Fault;
use super::super::history::{Attempt, Nanos, Outcome, ReadWay, State, WATCH_WITHIN};
use super::Finding;
use super::facts::Facts;

/// Undisturbed, a watch brings everything within this time: the lab's gateways look every 5 s.
const ENOUGH: Nanos = 10_000_000_000;
/// Faults that can keep a gateway from what is stored, or a watcher from its gateway, have one of these in their names.
const DISTURBING: [&str; 10] =
    ["gateway", "client", "services", "postgres", "backend", "deploy", "clocks", "primary", "password", "withdraw"];

/// By inbox: when a seq was seen that was higher than all before it.
type Seen = HashMap<u32, Vec<(Nanos, i64)>>;

/// P4, as readers see it.
pub(super) fn check(facts: &Facts<'_>) -> [Finding; 6] {
    let seen = seen(facts);
    [pulls(facts), watches(facts), same(facts), never_less(facts, &seen), silence(facts, &seen), statuses(facts)]
}

fn pulls(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P4", "a page that is pulled counts up from where it was asked, without gaps");
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Pull) {
        let seqs = facts.book.msgs(read).iter().map(|(seq, _, _)| *seq);
        let bad = seqs.zip(read.from.max(1)..).find(|(seq, expected)| seq != expected);
        finding.check(bad.is_none(), || {
            let (seq, expected) = bad.unwrap_or_default();
            format!("reader {}: inbox-{} gave seq {seq} where {expected} must be", read.reader, read.inbox)
        });
    }
    finding
}

fn watches(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P4", "a watch gives each message of an inbox once, in seq order, without gaps");
    // By reader and inbox: what must come next.
    let mut next: HashMap<(u32, u32), i64> = HashMap::new();
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Watch) {
        let next = next.entry((read.reader, read.inbox)).or_insert(read.from.max(1));
        for (seq, _, _) in facts.book.msgs(read) {
            let told = || format!("reader {}: inbox-{} gave seq {seq} where {next} must be", read.reader, read.inbox);
            finding.check(seq == next, told);
            *next = seq + 1;
        }
    }
    finding
}

fn same(facts: &Facts<'_>) -> Finding {
    let mut finding = Finding::new("P4", "what was read under a seq is what the table has there at the end");
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
    for told in &facts.book.max_seqs {
        let highest = facts.max_seq(told.inbox);
        let problem = || format!("inbox-{}: {} was told as the highest, the table has {highest}", told.inbox, told.seq);
        finding.check(told.seq <= highest, problem);
    }
    finding
}

/// A read that was asked for after a seq was seen, by whomever, reaches that far.
fn never_less(facts: &Facts<'_>, seen: &Seen) -> Finding {
    let mut finding = Finding::new("P4", "what was seen once does not vanish: every later read reaches as far");
    let mut reach = |inbox: u32, asked: Nanos, reached: i64, reader: u32| {
        let Some(highest) = highest_before(seen, inbox, asked) else { return };
        let told = || format!("reader {reader}: inbox-{inbox} reached {reached}, after {highest} had been seen");
        finding.check(reached >= highest, told);
    };
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Pull && read.end) {
        let reached = facts.book.msgs(read).last().map_or(read.from.max(1) - 1, |(seq, _, _)| *seq);
        reach(read.inbox, read.asked, reached, read.reader);
    }
    for told in &facts.book.max_seqs {
        reach(told.inbox, told.asked, told.seq, told.reader);
    }
    finding
}

/// Nothing else tells whether a watch that brings nothing has nothing to bring.
fn silence(facts: &Facts<'_>, seen: &Seen) -> Finding {
    let within = WATCH_WITHIN.as_secs();
    let mut finding = Finding::new("P4", format!("a watch has brought within {within} s what others had seen"));
    for read in facts.book.reads.iter().filter(|read| read.way == ReadWay::Watch && read.end) {
        if longest_calm(facts, read.asked, read.at) < ENOUGH {
            continue;
        }
        let highest = highest_before(seen, read.inbox, read.asked).unwrap_or(0);
        let (reader, inbox, reached) = (read.reader, read.inbox, read.from - 1);
        let told =
            || format!("reader {reader}: the watch of inbox-{inbox} ended at {reached}, after {highest} had been seen");
        finding.check(reached >= highest, told);
    }
    finding
}

/// What has its OK is somewhere, and where it is said to be.
fn statuses(facts: &Facts<'_>) -> Finding {
    let mut finding =
        Finding::new("P1", "the status of a message with an OK is never NOT_FOUND, and as the tables say");
    for status in &facts.book.statuses {
        let told = || format!("message {} of sender-{} is said to be {:?}", status.n, status.sender, status.state);
        let Some(message) = facts.book.find(status.sender, status.n) else {
            // It was never sent, but others' records may be in front of where it would be.
            finding.check(matches!(status.state, State::NotFound | State::Pending), told);
            continue;
        };
        let before = |one: &&Attempt| one.told.is_some_and(|at| at < status.asked);
        let told_before = || facts.book.attempts_of(message).filter(before);
        let stored = told_before().any(|one| matches!(one.outcome, Outcome::Stored { .. }));
        let accepted = told_before().any(|one| one.outcome.place().is_some() && !facts.was_destroyed(one));
        let row = facts.row_of(message);
        let holds = match status.state {
            State::Stored(seq) => row.is_some_and(|row| row.seq == seq),
            State::DeadLettered => row.is_none(),
            State::Pending => !stored,
            State::NotFound => !accepted,
        };
        finding.check(holds, told);
    }
    finding
}

/// The longest time between two of those that nothing disturbed a watch in.
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

fn highest_before(seen: &Seen, inbox: u32, asked: Nanos) -> Option<i64> {
    let seen = seen.get(&inbox)?;
    let before = seen.partition_point(|(at, _)| *at < asked).checked_sub(1)?;
    Some(seen[before].1)
}

fn seen(facts: &Facts<'_>) -> Seen {
    let mut seen = Seen::new();
    for read in &facts.book.reads {
        if let Some((seq, _, _)) = facts.book.msgs(read).last() {
            seen.entry(read.inbox).or_default().push((read.at, *seq));
        }
    }
    for told in &facts.book.max_seqs {
        seen.entry(told.inbox).or_default().push((told.at, told.seq));
    }
    for attempt in &facts.book.attempts {
        if let (Outcome::Stored { seq, .. }, Some(told)) = (&attempt.outcome, attempt.told) {
            seen.entry(facts.book.messages[attempt.message as usize].inbox).or_default().push((told, *seq));
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
