//! The driver's surroundings: librdkafka's model, the lanes, the tasks and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use machine::consumer::{Action, CommitPoint, Event, LaneNumber, RecordRef};
use machine::driver::{
    self, CommitTimedOut, FetchStart, Fetched, Happened, Kafka, ProgressRow, Report, Surroundings, TopicIs,
};
use machine::lane::{Entry, Kind, Message};
use machine::reference_connection::Query;
use machine::{Assignment, Epoch, LeaderEpoch, Millis, Partition, Reason, RecordOffset};

use super::library::Rejected;
use super::reference::Requester;
use super::{DAMAGED, Parts};
use crate::database::Statement;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::CommitRequest;
use crate::kafka::log::{Record, RecordKind};

/// The surroundings of the driver of one process.
pub(super) struct Io<'a> {
    pub(super) parts: &'a mut Parts,
    pub(super) env: &'a mut Env,
}

/// The database and the topic of the progress rows that were last written.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// The incarnation of the database that has the rows, once they are written.
    pub(super) saved_to: Option<u32>,
    /// The topic of the rows; if there are several, the lowest.
    topic: u32,
}

impl driver::Record for Record {
    fn partition(&self) -> Partition {
        self.partition
    }

    fn offset(&self) -> RecordOffset {
        RecordOffset(self.offset)
    }

    fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch(self.leader_epoch)
    }

    fn cost(&self) -> usize {
        self.kind.bytes()
    }

    fn key(&self) -> Option<&[u8]> {
        Some(self.recv_id().as_bytes())
    }
}

impl Io<'_> {
    /// Lets librdkafka's threads run between two calls of the driver, as in the service.
    fn meanwhile(&mut self) {
        let env = &mut *self.env;
        if !env.healing && env.choices.one_in(4) {
            let number = self.parts.number;
            match env.choices.choose(3) {
                0 => self.parts.library.membership_turn(number, env),
                _ => self.parts.library.turn(env),
            };
        }
    }

    fn trace_step(&mut self, text: impl FnOnce() -> String) {
        if self.env.trace.is_some() {
            let name = self.parts.name();
            self.env.trace_step(|| format!("{name}: {}", text()));
        }
    }
}

impl Kafka for Io<'_> {
    type Record = Record;
    type Error = Rejected;

    fn poll(&mut self) -> Option<Happened> {
        let happened = self.parts.library.poll(self.env)?;
        self.parts.busy = true;
        self.trace_step(|| format!("polls {happened:?}"));
        Some(happened)
    }

    fn is_assignment_lost(&mut self) -> bool {
        self.parts.library.membership.is_lost()
    }

    fn incremental_assign(&mut self, starting: &BTreeMap<Partition, FetchStart>) -> Result<(), Rejected> {
        self.meanwhile();
        self.trace_step(|| format!("assigns {starting:?}"));
        let topic = |epoch: Epoch| {
            let number = self.parts.starts.topic_of(epoch);
            number.unwrap_or_else(|| self.env.kafka.topic_number())
        };
        let starting =
            starting.iter().map(|(partition, start)| (*partition, (topic(start.epoch), start.from))).collect();
        self.parts.library.incremental_assign(&starting, self.env)
    }

    fn incremental_unassign(&mut self, partitions: &BTreeSet<Partition>) -> Result<(), Rejected> {
        self.meanwhile();
        self.trace_step(|| format!("unassigns {partitions:?}"));
        let released = self.parts.library.incremental_unassign(partitions, self.env)?.unwrap_or_default();
        if let Some(record) = self.parts.unfenced(|partition| released.contains(&partition)) {
            let name = self.parts.name();
            self.env
                .violate(format!("{name} responds to the revocation of {released:?} with {} in a lane", record.show()));
        }
        Ok(())
    }

    fn forward(&mut self, partition: Partition) {
        self.meanwhile();
        self.parts.library.take_over(partition);
    }

    fn stop_forwarding(&mut self, partition: Partition) {
        self.meanwhile();
        self.parts.library.stop_forwarding(partition);
    }

    fn consume(&mut self, _wait: Millis, into: &mut Vec<Fetched<Record>>) {
        self.meanwhile();
        let env = &mut *self.env;
        let count = if env.healing { env.config.chunk } else { env.choices.index(env.config.chunk + 1) };
        self.parts.library.consume(count, into, env);
        self.parts.busy |= !into.is_empty();
    }

    fn topic_is(&self) -> TopicIs {
        TopicIs::Same
    }

    fn commit(&mut self, points: &[CommitPoint], round: usize) -> Result<(), Rejected> {
        let parts = &self.parts;
        self.env.kafka.commits.push_back(CommitRequest {
            process: parts.number,
            restarts: parts.restarts,
            round,
            member: parts.library.membership.member,
            generation: parts.library.membership.generation,
            points: points.to_vec(),
            incarnation: parts.commits.saved_to,
            topic: parts.commits.topic,
        });
        Ok(())
    }

    fn poll_commit(&mut self) -> Option<(usize, Result<(), Rejected>)> {
        let (round, accepted) = self.parts.library.commit_results.pop_front()?;
        self.parts.busy = true;
        Some((round, if accepted { Ok(()) } else { Err(Rejected("the coordinator rejects the commit")) }))
    }
}

impl Surroundings<Record> for Io<'_> {
    fn now(&self) -> Millis {
        self.env.now
    }

    /// May delay an event that is ready, as a busy lane or task does.
    fn next_event(&mut self, _wait: Millis) -> Option<Event> {
        if !self.env.healing && !self.parts.events.is_empty() && self.env.choices.one_in(3) {
            return None;
        }
        let event = self.parts.events.pop_front()?;
        self.parts.busy = true;
        Some(event)
    }

    fn lanes(&self) -> usize {
        self.parts.lanes.len()
    }

    fn pass(&mut self, lane: LaneNumber, record: Record, assignment: &Arc<Assignment>) {
        let (partition, offset, bytes) = (record.partition, RecordOffset(record.offset), record.kind.bytes());
        let record_ref = RecordRef { partition, epoch: assignment.epoch, offset, bytes };
        let entry = entry(record, record_ref, assignment.clone(), self.env.upgraded);
        self.parts.lanes[lane].waiting.push_back(entry);
    }

    fn approve_dead_letters(&mut self, lane: LaneNumber) {
        self.parts.lanes[lane].dead_letters_approved();
    }

    fn resolve(&mut self, assignments: Vec<(Partition, Arc<Assignment>)>, _retried: BTreeSet<Partition>) {
        self.env.facts.add(Fact::Restarted, assignments.len());
        self.parts.starts.resolve(assignments);
    }

    fn save_progress(&mut self, rows: Vec<ProgressRow>) {
        let number = |row: &ProgressRow| u32::try_from(row.topic_id.as_u128()).expect("a small number");
        let connection_numbers = rows.iter().map(|row| row.connection_number).collect();
        self.parts.commits.saved_to = None;
        self.parts.commits.topic = rows.iter().map(number).min().unwrap_or_default();
        let rows = rows.iter().map(|row| (number(row), row.partition, row.progress)).collect();
        self.parts.reference.query(Query::Save(connection_numbers), Requester::Save(Statement::Save(rows)));
    }

    fn check_database(&mut self) {
        self.parts.reference.check();
    }

    /// Does nothing: `World::resume` reports it.
    fn check_resumed(&mut self, _halted: Vec<Partition>) {}

    fn report(&mut self, report: Report<'_>) {
        match report {
            Report::Event(event) => self.event(event),
            Report::Action(action) => self.action(action),
            Report::Received(offset, partition, epoch) => {
                self.trace_step(|| format!("receives {partition}@{offset} under {epoch:?}"));
            }
            Report::DrainExpired => self.env.count(Fact::DrainExpired),
            Report::ReleaseExpired => self.env.count(Fact::ReleaseExpired),
            Report::Rejected(call, error) => self.env.violate(format!("librdkafka rejects: {call}: {error}")),
            Report::Committed(Err(error)) if error.is::<CommitTimedOut>() => self.env.count(Fact::OffsetsNotConfirmed),
            Report::Expected(None) => self.env.count(Fact::AtLimit),
            Report::Turn { inflight, .. } => self.parts.check_bounds(inflight, self.env),
            _ => {}
        }
    }
}

impl Io<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Tick => return,
            Event::Dropped(records) => self.env.facts.add(Fact::Fenced, records.len()),
            Event::Blocked(records) => self.env.facts.add(Fact::BlockedFound, records.len()),
            _ => {}
        }
        self.parts.busy = true;
        self.trace_step(|| show(event));
    }

    fn action(&mut self, action: &Action) {
        self.parts.busy = true;
        self.trace_step(|| format!("  -> {action:?}"));
        let env = &mut *self.env;
        match action {
            Action::Throttle { .. } => env.count(Fact::Throttled),
            Action::Unthrottle { .. } => env.count(Fact::Unthrottled),
            Action::FetchFailing { .. } => env.count(Fact::FetchFailing),
            Action::FetchRecovered { .. } => env.count(Fact::FetchRecovered),
            Action::Halted { reason, .. } => {
                env.count(Fact::Halted);
                let fact = [
                    ("would be dead letters", Fact::Breaker),
                    ("may have been deleted", Fact::DeletedUnread),
                    ("newer", Fact::NewerHalt),
                    (DAMAGED, Fact::DamageHalt),
                ];
                fact.into_iter().filter(|(part, _)| reason.contains(part)).for_each(|(_, fact)| env.count(fact));
            }
            _ => {}
        }
    }
}

fn entry(record: Record, record_ref: RecordRef, assignment: Arc<Assignment>, upgraded: bool) -> Entry<Record> {
    let kind = match record.kind {
        RecordKind::Undecodable => Kind::Broken(Reason::Undecodable, "no record".into()),
        RecordKind::Invalid => Kind::Broken(Reason::Invalid, "breaks a rule".into()),
        RecordKind::Newer if !upgraded => Kind::Newer("of a newer version".into()),
        _ => Kind::Message,
    };
    Entry::new(assignment, record_ref, kind, record)
}

/// Returns a short text for the trace.
fn show(event: &Event) -> String {
    let offsets = |records: &[RecordRef]| {
        let each = records.iter().map(|record_ref| format!("{}@{}", record_ref.partition, record_ref.offset));
        each.collect::<Vec<_>>().join(", ")
    };
    match event {
        Event::Completed(records) => format!("completed {}", offsets(records)),
        Event::Blocked(records) => format!("blocked {}", offsets(records)),
        Event::Unblocked(records) => format!("unblocked {}", offsets(records)),
        Event::Dropped(records) => format!("dropped {}", offsets(records)),
        Event::DeadLettersRequested { lane, dead } => format!("lane {lane} requests dead letters {}", offsets(dead)),
        other => format!("{other:?}"),
    }
}
