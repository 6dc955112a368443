//! Owns the verdict: a pure function from what was sent and what was found to each promise, kept or broken. It believes
//! neither service: it knows only what callers were told, and the rows.

use std::collections::{HashMap, HashSet};
use std::time::{Instant, SystemTime};

use uuid::Uuid;

use super::send::{Delivery, Place, Sent};
use super::table::{DeadLetter, Row, Table};

/// Of a broken promise, this many cases are told.
const EXAMPLES: usize = 3;

/// All that is known when the pipe is at rest.
#[derive(Debug, Clone)]
pub(crate) struct Evidence<'a> {
    /// What was sent.
    pub(crate) sent: &'a [Sent],
    /// What the database holds.
    pub(crate) table: &'a Table,
    /// The moment of the crash, and what the dead transfer had committed by then.
    pub(crate) crash: &'a Crash,
    /// What the group has committed now, a partition.
    pub(crate) committed: &'a [i64],
    /// The progress rows now.
    pub(crate) progress: &'a [i64],
    /// The offset that the next record gets.
    pub(crate) ends: &'a [i64],
}

/// What was seen when the transfer was killed.
#[derive(Debug, Clone)]
pub(crate) struct Crash {
    /// When it was gone, and its successor not started yet.
    pub(crate) at: SystemTime,
    /// The group's committed offsets then, a partition.
    pub(crate) committed: Vec<i64>,
}

/// What became of one promise.
#[derive(Debug)]
pub(crate) struct Finding {
    /// Which of DESIGN's promises.
    pub(crate) promise: &'static str,
    /// In words.
    pub(crate) what: &'static str,
    /// How many things were looked at.
    pub(crate) checked: usize,
    /// How many of them break it.
    pub(crate) broken: usize,
    /// The first of those, in words.
    pub(crate) examples: Vec<String>,
}

impl Finding {
    fn new(promise: &'static str, what: &'static str) -> Finding {
        Finding { promise, what, checked: 0, broken: 0, examples: Vec::new() }
    }

    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.fault(problem());
        }
    }

    fn fault(&mut self, problem: String) {
        self.broken += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(problem);
        }
    }
}

/// Looks at every row, every OK and every offset.
pub(crate) fn check(evidence: &Evidence<'_>) -> Vec<Finding> {
    let by_id: HashMap<Uuid, usize> = evidence.sent.iter().enumerate().map(|(at, sent)| (sent.msg_id, at)).collect();
    let mut findings = Vec::new();
    findings.extend(rows_and_order(evidence, &by_id));
    findings.extend(dead_letters(evidence, &by_id));
    findings.push(commits(evidence));
    findings.push(records(evidence));
    findings
}

/// P1 to P4, and what is in the rows.
fn rows_and_order(evidence: &Evidence<'_>, by_id: &HashMap<Uuid, usize>) -> [Finding; 6] {
    let mut nothing_lost = Finding::new("P1", "each message with an OK is a row");
    let mut nothing_doubled = Finding::new("P2", "no message is two rows, however often it was sent");
    let mut send_order =
        Finding::new("P3", "seq order is send order: who had its OK before another was sent is before it");
    let mut kafka_order = Finding::new("P3", "seq order is Kafka's order, and each row is the first record with an OK");
    let mut no_gaps = Finding::new("P4", "seq counts 1, 2, 3 … in each inbox");
    let mut content = Finding::new("", "each row is what was sent, byte for byte, attributes too");

    let mut rows: Vec<&Row> = evidence.table.rows.iter().collect();
    rows.sort_unstable_by(|a, b| (&a.msg.recv_id, a.seq).cmp(&(&b.msg.recv_id, b.seq)));
    let mut found = vec![false; evidence.sent.len()];
    for inbox in rows.chunk_by(|a, b| a.msg.recv_id == b.msg.recv_id) {
        let (mut last_seq, mut last_place) = (0, None);
        // When the one was sent that was sent last, of those with a lower seq.
        let mut latest: Option<Instant> = None;
        for row in inbox {
            no_gaps.check(row.seq == last_seq + 1, || format!("{} after {last_seq}", name(row)));
            last_seq = row.seq;
            let in_order = last_place
                .is_none_or(|last: Place| last.partition == row.place.partition && last.offset < row.place.offset);
            last_place = Some(row.place);
            let Some(&at) = by_id.get(&row.msg_id) else {
                kafka_order.check(in_order, || format!("{} is at {}", name(row), place(row.place)));
                continue;
            };
            let sent = &evidence.sent[at];
            let first = is_first(row.place, &sent.delivery);
            kafka_order.check(in_order && first, || format!("{} is at {}", name(row), place(row.place)));
            nothing_doubled.check(!found[at], || format!("{} is a second row of {}", name(row), row.msg.client_msg_id));
            found[at] = true;
            let ok = sent.delivery.acks.iter().map(|ack| ack.at).min();
            let in_order = latest.is_none_or(|latest| ok.is_some_and(|ok| ok >= latest));
            send_order.check(in_order, || format!("{} had its OK before one with a lower seq was sent", name(row)));
            latest = latest.max(Some(sent.began));
            content.check(row.msg == sent.msg, || format!("{} differs from what was sent", name(row)));
        }
    }
    for (sent, found) in evidence.sent.iter().zip(found) {
        let told = || format!("{} to {} is no row", sent.msg.client_msg_id, sent.msg.recv_id);
        nothing_lost.check(found, told);
    }
    [nothing_lost, nothing_doubled, send_order, kafka_order, no_gaps, content]
}

/// Whether the row can be the first delivery: no record with an OK is earlier, and it is one of those, unless a send whose
/// outcome stayed unknown left one that is earlier.
fn is_first(row: Place, delivery: &Delivery) -> bool {
    match delivery.acks.iter().map(|ack| ack.place).min() {
        Some(first) if delivery.unknown == 0 => row == first,
        Some(first) => row <= first,
        None => false,
    }
}

/// A repeat with another body is kept aside, nothing else is; and neither table holds what nobody sent.
fn dead_letters(evidence: &Evidence<'_>, by_id: &HashMap<Uuid, usize>) -> [Finding; 2] {
    let mut conflicts = Finding::new("P1", "each OK of another body under a known id is an IDEMPOTENCY_CONFLICT");
    let mut nothing_else = Finding::new("", "nothing that was not sent is a row or a dead letter");
    for row in &evidence.table.rows {
        nothing_else.check(by_id.contains_key(&row.msg_id), || format!("{} was not sent", name(row)));
    }
    let mut kept: HashMap<Place, &DeadLetter> = HashMap::new();
    for letter in &evidence.table.dead_letters {
        kept.insert(letter.place, letter);
        let changed = letter.msg_id.and_then(|id| by_id.get(&id)).and_then(|&at| evidence.sent[at].changed.as_ref());
        let expected = changed.is_some_and(|(content, delivery)| {
            is_conflict(letter, content)
                && (delivery.unknown > 0 || delivery.acks.iter().any(|ack| ack.place == letter.place))
        });
        let told = || format!("a dead letter of {} with reason {}", place(letter.place), letter.reason);
        nothing_else.check(expected, told);
    }
    for sent in evidence.sent {
        let Some((content, delivery)) = &sent.changed else { continue };
        for ack in delivery.acks.iter().map(|ack| ack.place) {
            let letter = kept.get(&ack);
            let holds = letter.is_some_and(|letter| is_conflict(letter, content) && letter.msg_id == Some(sent.msg_id));
            conflicts.check(holds, || format!("the other body of {} at {}", sent.msg.client_msg_id, place(ack)));
        }
    }
    [conflicts, nothing_else]
}

fn is_conflict(letter: &DeadLetter, content: &[u8]) -> bool {
    letter.reason == "IDEMPOTENCY_CONFLICT" && letter.content.as_deref() == Some(content)
}

/// P5, at the crash and at the end.
fn commits(evidence: &Evidence<'_>) -> Finding {
    let mut never_lead = Finding::new("P5", "no offset was committed before what is below it was stored");
    let committed_at_crash = |place: Place| {
        let partition = usize::try_from(place.partition).ok();
        let committed = partition.and_then(|partition| evidence.crash.committed.get(partition));
        committed.is_some_and(|committed| place.offset < *committed)
    };
    let rows = evidence.table.rows.iter().map(|row| (row.place, row.stored_time));
    let letters = evidence.table.dead_letters.iter().map(|letter| (letter.place, letter.first_seen));
    for (at, stored) in rows.chain(letters).filter(|(place, _)| committed_at_crash(*place)) {
        let told = || format!("{} was committed at the crash and stored after it", place(at));
        never_lead.check(stored <= evidence.crash.at, told);
    }
    let partitions = evidence.committed.iter().zip(evidence.progress).zip(evidence.ends);
    for (partition, ((committed, progress), end)) in partitions.enumerate() {
        let told = || format!("partition {partition}: committed {committed}, progress {progress}, end {end}");
        never_lead.check(committed <= progress && progress <= end, told);
    }
    never_lead
}

/// P6: as many records as OKs, each in a place of its own, and no more besides than sends whose outcome stayed unknown.
fn records(evidence: &Evidence<'_>) -> Finding {
    let mut truth = Finding::new("P6", "Kafka holds one record for each OK, and none of a send reported as not sent");
    let mut places = HashSet::new();
    let mut unknown = 0;
    let deliveries = evidence.sent.iter().flat_map(|sent| {
        let changed = sent.changed.as_ref().map(|(_, delivery)| delivery);
        std::iter::once(&sent.delivery).chain(changed)
    });
    for delivery in deliveries {
        unknown += delivery.unknown;
        for ack in delivery.acks.iter().map(|ack| ack.place) {
            let partition = usize::try_from(ack.partition).ok();
            let end = partition.and_then(|partition| evidence.ends.get(partition)).copied().unwrap_or(0);
            let holds = (places.insert(ack) || ack.offset < 0) && ack.offset < end;
            truth.check(holds, || format!("{} was told twice, or is not there", place(ack)));
        }
    }
    let held = u64::try_from(evidence.ends.iter().sum::<i64>()).unwrap_or(0);
    let least = places.len() as u64;
    if !(least..=least + unknown).contains(&held) {
        truth.fault(format!("{held} records for {least} OKs and {unknown} unknown outcomes"));
    }
    truth
}

fn name(row: &Row) -> String {
    format!("{} seq {}", row.msg.recv_id, row.seq)
}

fn place(place: Place) -> String {
    format!("partition {} offset {}", place.partition, place.offset)
}

#[cfg(test)]
mod tests;
