//! Owns a small world that keeps every promise. It works as the services do: a message that is sent goes to Kafka and
//! is stored immediately.

mod reads;

use std::collections::HashMap;

use super::super::super::evidence::{
    Clock, Commits, DeadLetter, Evidence, Fault, Health, Limit, LostOffsets, Measure, NewTopic, Row, Sample, Says,
    Truncation, Waiting,
};
use super::super::super::history::{Book, Event, Nanos, Outcome, Way};
use super::super::{Finding, check};

const SECOND: Nanos = 1_000_000_000;
const EPOCH: i64 = 1_700_000_000_000_000;

/// What happens to a message that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpectedOutcome {
    Ok,
    Stored,
    NotStoredYet,
    DeadLettered,
    NotSent,
    /// The outcome is reported as unknown, and the message is stored.
    UnknownThere,
    /// The outcome is reported as unknown, and the message is not in Kafka.
    UnknownNotSent,
    /// No response arrives, and the message is stored.
    Silent,
    /// The message is accepted, and not stored before the topic is deleted.
    Waiting,
    /// The message is accepted, with other content than before.
    Altered,
}

/// A history and the evidence for it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) lines: Vec<Event>,
    pub(super) evidence: Evidence,
    now: Nanos,
    calls: u64,
    /// The seq of each stored message.
    stored: HashMap<(u32, u32), i64>,
    /// By reader and inbox: the last seq that was watched.
    watched: HashMap<(u32, u32), i64>,
}

impl World {
    pub(super) fn new(partitions: usize) -> World {
        let evidence = Evidence {
            clock: Clock { at: 0, micros: EPOCH },
            ends: vec![0; partitions],
            committed: vec![0; partitions],
            progress: vec![0; partitions],
            ..Evidence::default()
        };
        World {
            lines: Vec::new(),
            evidence,
            now: 100 * SECOND,
            calls: 0,
            stored: HashMap::new(),
            watched: HashMap::new(),
        }
    }

    /// A world in which every check has a case. Inboxes 0 and 3 are read; 1, 2, 4 and 5 are not.
    pub(super) fn good() -> World {
        use ExpectedOutcome::*;
        let mut world = World::new(2);
        for (n, inbox, outcome) in [(0, 0, Ok), (1, 1, Stored), (2, 0, UnknownThere), (2, 0, Ok), (3, 2, NotSent)] {
            world.unary(1, n, inbox, outcome);
        }
        world.pull(1, 0, 1);
        world.poison(0);
        for (n, inbox, outcome) in
            [(4, 0, NotSent), (4, 0, Ok), (5, 2, UnknownNotSent), (6, 2, UnknownThere), (7, 0, Ok)]
        {
            world.unary(1, n, inbox, outcome);
        }
        world.unary(1, 7, 0, Stored);
        world.max_seqs(1, &[0, 1, 3]);
        world.send(Way::Batch, None, 2, &[(0, 0, Ok), (1, 0, Ok), (2, 3, Ok), (3, 0, Ok), (4, 3, Ok)]);
        world.watch(2, 3);
        world.send(Way::Batch, None, 2, &[(5, 3, Ok), (6, 3, NotSent), (7, 3, NotSent)]);
        world.send(Way::Batch, None, 2, &[(6, 3, Stored), (7, 3, Stored)]);
        world.watch(2, 3);
        world.poison(1);
        world.send(Way::Batch, None, 2, &[(8, 4, UnknownNotSent), (9, 4, Ok)]);
        world.send(Way::Batch, None, 2, &[(8, 4, Ok), (9, 4, Ok)]);
        world.send(Way::Stream, Some(1), 3, &[(0, 4, Ok), (1, 4, NotStoredYet)]);
        world.send(Way::Stream, Some(1), 3, &[(2, 4, NotSent), (3, 5, Ok), (4, 4, UnknownNotSent)]);
        world.send(Way::Stream, Some(2), 3, &[(2, 4, Ok), (4, 4, Ok), (5, 4, Ok)]);
        world.overlap((4, 0), (5, 0), 5);
        world.unary(4, 1, 5, DeadLettered);
        world.unary(4, 2, 5, Silent);
        world.unary(4, 2, 5, Ok);
        world.forbid(|world| world.unary(4, 3, 0, NotSent));
        for (n, inbox, outcome) in
            [(3, 0, Ok), (4, 1, Ok), (5, 1, Ok), (5, 1, Ok), (5, 1, Stored), (6, 2, UnknownThere)]
        {
            world.unary(4, n, inbox, outcome);
        }
        world.unary(4, 4, 1, Altered);
        world.watch(2, 3);
        world.pull(1, 0, 1);
        world.pull(3, 3, 2);
        world.max_seqs(1, &[0, 3]);
        for (sender, n) in [(1, 0), (1, 3), (4, 1), (9, 9), (1, 1)] {
            world.status(sender, n);
        }
        world.watched_for_long(2, 3);
        world.named();
        world.evidence.lost_offsets.push(LostOffsets { partition: 0, count: 0.0 });
        world.rest();
        world
    }

    /// Returns the broken findings: the promise, a space and what must hold.
    pub(super) fn broken(&self) -> Vec<String> {
        let broken = self.findings().into_iter().filter(|finding| !finding.holds());
        broken.map(|finding| format!("{} {}", finding.promise, finding.what)).collect()
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        check(&self.book(), &self.evidence)
    }

    pub(super) fn book(&self) -> Book {
        let mut book = Book::default();
        for line in &self.lines {
            book.add(0, line.clone());
        }
        book
    }

    pub(super) fn unary(&mut self, sender: u32, n: u32, inbox: u32, outcome: ExpectedOutcome) {
        self.send(Way::Unary, None, sender, &[(n, inbox, outcome)]);
    }

    pub(super) fn send(&mut self, way: Way, stream: Option<u64>, sender: u32, msgs: &[(u32, u32, ExpectedOutcome)]) {
        let call = self.request(way, stream, sender, msgs);
        self.respond(call, sender, msgs);
    }

    fn overlap(&mut self, (one, n): (u32, u32), (other, m): (u32, u32), inbox: u32) {
        let (first, second) = ([(n, inbox, ExpectedOutcome::Ok)], [(m, inbox, ExpectedOutcome::Ok)]);
        let (one_call, other_call) =
            (self.request(Way::Unary, None, one, &first), self.request(Way::Unary, None, other, &second));
        self.respond(one_call, one, &first);
        self.respond(other_call, other, &second);
    }

    fn request(&mut self, way: Way, stream: Option<u64>, sender: u32, msgs: &[(u32, u32, ExpectedOutcome)]) -> u64 {
        self.calls += 1;
        let stored = msgs.iter().any(|(_, _, outcome)| *outcome == ExpectedOutcome::Stored);
        let altered = msgs.iter().any(|(_, _, outcome)| *outcome == ExpectedOutcome::Altered);
        let msgs = msgs.iter().map(|(n, inbox, _)| (*n, *inbox)).collect();
        let at = self.tick();
        self.lines.push(Event::Send { call: self.calls, at, sender, way, stream, stored, altered, gateway: 0, msgs });
        self.calls
    }

    fn respond(&mut self, call: u64, sender: u32, msgs: &[(u32, u32, ExpectedOutcome)]) {
        let results: Vec<_> = (0..)
            .zip(msgs)
            .filter_map(|(index, (n, inbox, outcome))| Some((index, self.outcome_of(sender, *n, *inbox, *outcome)?)))
            .collect();
        let at = self.tick();
        if !results.is_empty() {
            self.lines.push(Event::Outcomes { call, at, results });
        }
        self.commit_offsets();
    }

    fn outcome_of(&mut self, sender: u32, n: u32, inbox: u32, outcome: ExpectedOutcome) -> Option<Outcome> {
        match outcome {
            ExpectedOutcome::NotSent => return Some(Outcome::NotSent("NOT_SENT".to_owned())),
            ExpectedOutcome::UnknownNotSent => return Some(Outcome::Unknown("OUTCOME_UNKNOWN".to_owned())),
            _ => {}
        }
        let partition = i32::try_from(inbox as usize % self.evidence.ends.len()).expect("small");
        let offset = self.record(partition);
        if outcome == ExpectedOutcome::DeadLettered {
            self.dead_letter(partition, offset, Some((sender, n)));
            return Some(Outcome::DeadLettered(partition, offset, "TOO_LARGE".to_owned()));
        }
        if outcome == ExpectedOutcome::Altered {
            self.conflict(partition, offset, (sender, n));
            return Some(Outcome::Ok(partition, offset));
        }
        let duplicate = self.stored.contains_key(&(sender, n));
        if !duplicate && outcome != ExpectedOutcome::Waiting {
            self.store(&Row { inbox, seq: 0, sender, n, partition, offset, sent: 0, stored: 0, same: true });
        }
        match outcome {
            ExpectedOutcome::Stored => {
                let seq = self.stored[&(sender, n)];
                Some(Outcome::Stored { partition, offset, seq, duplicate })
            }
            ExpectedOutcome::NotStoredYet => Some(Outcome::NotStoredYet(partition, offset)),
            ExpectedOutcome::UnknownThere => Some(Outcome::Unknown("CANCELLED".to_owned())),
            ExpectedOutcome::Silent => None,
            _ => Some(Outcome::Ok(partition, offset)),
        }
    }

    /// Adds a row at the end of its inbox.
    pub(super) fn store(&mut self, row: &Row) {
        let seq = 1 + self.evidence.rows.iter().filter(|other| other.inbox == row.inbox).count();
        let seq = i64::try_from(seq).expect("small");
        let stored = self.micros();
        self.stored.insert((row.sender, row.n), seq);
        self.evidence.rows.push(Row { seq, sent: stored, stored, ..row.clone() });
    }

    /// Adds a record and returns its offset.
    pub(super) fn record(&mut self, partition: i32) -> i64 {
        self.tick();
        let end = &mut self.evidence.ends[usize::try_from(partition).expect("not negative")];
        *end += 1;
        *end - 1
    }

    fn poison(&mut self, partition: i32) {
        let offset = self.record(partition);
        self.evidence.poison.push((partition, offset));
        self.dead_letter(partition, offset, None);
    }

    pub(super) fn dead_letter(&mut self, partition: i32, offset: i64, message: Option<(u32, u32)>) {
        let (reason, seen) = ("INVALID".to_owned(), self.micros());
        self.evidence.dead_letters.push(DeadLetter { partition, offset, message, altered: false, reason, seen });
    }

    /// Adds the dead letter of a record whose content is not its message's.
    pub(super) fn conflict(&mut self, partition: i32, offset: i64, message: (u32, u32)) {
        self.dead_letter(partition, offset, Some(message));
        let letter = self.evidence.dead_letters.last_mut().expect("it was added");
        (letter.altered, letter.reason) = (true, "IDEMPOTENCY_CONFLICT".to_owned());
    }

    /// Commits everything that was sent so far.
    fn commit_offsets(&mut self) {
        self.tick();
        let at = self.micros();
        self.evidence.commits.push(Commits { at, next: self.evidence.ends.clone() });
    }

    fn forbid(&mut self, meanwhile: impl FnOnce(&mut World)) {
        let (began, broken) = (self.tick(), self.tick());
        meanwhile(self);
        let (over, healed) = (self.tick(), self.tick());
        let (name, target) = ("kill-brokers".to_owned(), "broker-1 and broker-2".to_owned());
        let says = Vec::new();
        self.evidence.faults.push(Fault { name, target, began, broken, over, healed, no_ok: true, kills: 2, says });
    }

    /// Adds a fault that damages a batch for 50 seconds. A transfer names the fault after ten.
    fn named(&mut self) {
        let began = self.tick();
        self.now += 50 * SECOND;
        let (over, healed) = (self.now, self.tick());
        let words = vec!["partition 1".to_owned(), "offset 7".to_owned()];
        self.evidence.faults.push(Fault {
            name: "damage-batch".to_owned(),
            target: "partition 1 offset 7".to_owned(),
            began,
            broken: began,
            over,
            healed,
            no_ok: false,
            kills: 0,
            says: vec![Says { process: "transfer".to_owned(), words }],
        });
        self.say_at(began + 10 * SECOND, false, "partitions: msgs partition 1: offset 7: failed CRC32C check");
    }

    fn say_at(&mut self, at: Nanos, ready: bool, reason: &str) {
        let (process, reason) = ("transfer-1".to_owned(), reason.to_owned());
        self.evidence.health.push(Health { at, process, ready, reason });
    }

    /// Deletes and recreates the topic. The new topic exists a moment before the lab detects it.
    pub(super) fn recreate(&mut self, progress: &[i64], meanwhile: impl FnOnce(&mut World)) {
        let deleted = self.tick();
        self.evidence.ends.fill(0);
        meanwhile(self);
        let made = self.tick();
        self.evidence.topics.push(NewTopic { deleted, progress: progress.to_vec(), made });
    }

    /// Truncates partition 0 to `end`. Records up to `stored` were stored before.
    pub(super) fn truncate(&mut self, end: i64, stored: i64) {
        let (at, was) = (self.tick(), std::mem::replace(&mut self.evidence.ends[0], end));
        let over = self.tick();
        self.evidence.truncations.push(Truncation { partition: 0, at, over, end, was, stored });
        self.evidence.lost_offsets = vec![LostOffsets { partition: 0, count: (stored - end) as f64 }];
    }

    pub(super) fn grow(&mut self, count: i32) {
        let at = self.tick();
        self.evidence.growths.push((at, count));
        self.evidence.ends.resize(usize::try_from(count).expect("positive"), 0);
    }

    /// Adds the last samples of everything.
    pub(super) fn rest(&mut self) {
        self.drain();
        for (process, inflight) in [("gateway-1", true), ("transfer-1", true), ("broker-1", false)] {
            for (second, count) in [(0, 7.0), (1, 3.0), (2, 0.0)] {
                self.evidence.samples.push(Sample {
                    at: self.now + second * SECOND,
                    process: process.to_owned(),
                    pid: 1,
                    rss: 50 << 20,
                    fds: 40,
                    sockets: 20,
                    threads: 8,
                    inflight: inflight.then_some((count, count * 100.0)),
                });
            }
        }
        self.blocked(20, true);
        let limit = |process: &str, what, most| Limit { process: process.to_owned(), what, most };
        self.evidence.limits = vec![
            limit("gateway", Measure::Rss, f64::from(100 << 20)),
            limit("transfer", Measure::Threads, 10.0),
            limit("gateway", Measure::Inflight, 10.0),
            limit("transfer", Measure::InflightBytes, 1000.0),
        ];
    }

    /// Makes records of partition 0 wait for some seconds while the only transfer is ready or not, and then commits
    /// them.
    pub(super) fn blocked(&mut self, seconds: u64, ready: bool) {
        for second in 0..=seconds {
            let at = self.now + second * SECOND;
            self.say_at(at, ready, "");
            let (ends, mut committed) = (self.evidence.ends.clone(), self.evidence.ends.clone());
            committed[0] -= if second < seconds { 1 } else { 0 };
            self.evidence.waiting.push(Waiting { at, ends, committed });
        }
        self.now += (seconds + 1) * SECOND;
    }

    pub(super) fn drain(&mut self) {
        self.evidence.committed = self.evidence.ends.clone();
        self.evidence.progress = self.evidence.ends.clone();
    }

    /// Advances the clock by a millisecond.
    fn tick(&mut self) -> Nanos {
        self.now += 1_000_000;
        self.now
    }

    fn micros(&self) -> i64 {
        EPOCH + i64::try_from(self.now / 1000).expect("small")
    }
}
