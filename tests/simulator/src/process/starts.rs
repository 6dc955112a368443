//! Resolves the start offsets of assignments: the tasks query first the database, then Kafka, and the state of either
//! can change in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use machine::consumer::Event;
use machine::consumer::start::{self, Decision, Known, Start};
use machine::reference_connection::Query;
use machine::{Assignment, ConnectionNumber, Epoch, LeaderEpoch, NextOffset, Partition, Progress, RecordOffset};
use uuid::Uuid;

use super::Parts;
use super::reference::Requester;
use crate::database::{Statement, StatementResult};
use crate::env::Env;

/// The progress row of each partition in the database, and its dead letters that count.
type Rows = Vec<(Partition, Option<Progress>, Vec<i64>)>;

/// The next action of a task.
#[derive(Debug)]
enum Stage {
    Topic,
    /// Waits for the database, with the number of the topic.
    Loading(u32),
    Offsets(Read),
    /// Has the committed offsets too; reads the ends of the logs.
    Ends(Read, Vec<(Partition, Option<i64>)>),
    /// Lowers progress rows that refer to records which Kafka lost.
    Lowering(Read, Vec<(Partition, Decision)>),
}

/// The contents of the database that a task has read.
#[derive(Clone, Debug)]
struct Read {
    topic: u32,
    connection_number: ConnectionNumber,
    rows: Rows,
}

/// A task for assignments that were made together.
#[derive(Debug)]
struct Task {
    number: u32,
    assignments: Vec<(Partition, Arc<Assignment>)>,
    stage: Stage,
}

#[derive(Debug, Default)]
pub(super) struct Starts {
    tasks: Vec<Task>,
    last: u32,
    assignments: BTreeMap<Epoch, Arc<Assignment>>,
}

impl Starts {
    pub(super) fn resolve(&mut self, assignments: Vec<(Partition, Arc<Assignment>)>) {
        self.assignments.extend(assignments.iter().map(|(_, assignment)| (assignment.epoch, assignment.clone())));
        self.last += 1;
        self.tasks.push(Task { number: self.last, assignments, stage: Stage::Topic });
    }

    /// Returns the number of the topic of an assignment, if its start is resolved.
    pub(super) fn topic_of(&self, epoch: Epoch) -> Option<u32> {
        let topic_id = self.assignments.get(&epoch)?.topic_id()?;
        u32::try_from(topic_id.as_u128()).ok()
    }
}

impl Task {
    /// Completes the resolution of a partition, and returns the event that reports it.
    fn resolved(&mut self, read: &Read, partition: Partition, decision: Decision) -> Option<Event> {
        let at = self.assignments.iter().position(|(assigned, _)| *assigned == partition)?;
        let (_, assignment) = self.assignments.swap_remove(at);
        // Before the event: the receiver of the event needs the topic's ID.
        let topic_id = Uuid::from_u128(u128::from(read.topic));
        assignment.start_read(topic_id, read.connection_number);
        let (_, _, dead) = read.rows.iter().find(|(row, ..)| *row == partition)?;
        let counts = |offset: &&i64| decision.lost.is_none_or(|lost| **offset < lost.from.0);
        let dead = dead.iter().filter(counts).copied().map(RecordOffset).collect();
        Some(Event::StartResolved { partition, epoch: assignment.epoch, start: decision, topic_id, dead })
    }
}

impl Parts {
    /// Lets one task query Kafka.
    pub(super) fn starts_turn(&mut self, env: &mut Env) -> bool {
        let queries_kafka = |task: &Task| !matches!(task.stage, Stage::Loading(_) | Stage::Lowering(..));
        let Some(index) = self.starts.tasks.iter().position(queries_kafka) else { return false };
        let task = &mut self.starts.tasks[index];
        match std::mem::replace(&mut task.stage, Stage::Topic) {
            Stage::Topic => {
                task.assignments.retain(|(_, assignment)| !assignment.is_fenced());
                if task.assignments.is_empty() {
                    self.starts.tasks.remove(index);
                    return true;
                }
                let topic = env.kafka.topic_number();
                let partitions = task.assignments.iter().map(|(partition, assignment)| (*partition, assignment.epoch));
                let load = Statement::Load(topic, partitions.collect());
                task.stage = Stage::Loading(topic);
                self.reference.query(Query::Load, Requester::Start(task.number, load));
            }
            Stage::Offsets(read) => {
                let offset =
                    |(partition, _): &(Partition, _)| (*partition, env.kafka.group.offsets.get(partition).copied());
                task.stage = Stage::Ends(read, task.assignments.iter().map(offset).collect());
            }
            // The ID is queried before and after the offsets, so that all of them belong to one topic.
            Stage::Ends(read, _) if read.topic != env.kafka.topic_number() => {}
            Stage::Ends(read, offsets) => self.decide(index, read, &offsets, env),
            other => task.stage = other,
        }
        true
    }

    fn decide(&mut self, index: usize, read: Read, offsets: &[(Partition, Option<i64>)], env: &mut Env) {
        let task = &mut self.starts.tasks[index];
        let mut lowering = Vec::new();
        for (partition, committed) in offsets {
            let log = env.kafka.topic().log(*partition);
            let Some((_, progress, _)) = read.rows.iter().find(|(row, ..)| row == partition) else { continue };
            if log.without_leader {
                continue;
            }
            let (committed, progress) = (committed.map(NextOffset), *progress);
            let kept = log.kept(progress.map_or(LeaderEpoch::UNKNOWN, |row| row.leader_epoch));
            let (low, high) = (NextOffset(log.low), NextOffset(log.high));
            let decision = start::resolve(Known { committed, progress, kept, low, high }, env.accept_loss);
            if let (Start::At(from), Some(row)) = (&decision.start, progress)
                && from.next < row.next
            {
                env.database.tables.starts_below(read.topic, *partition, row);
            }
            if let Some(lost) = decision.lost {
                let lower = Statement::Lower(read.topic, *partition, lost);
                self.reference
                    .query(Query::Save(vec![read.connection_number]), Requester::Lower(task.number, *partition, lower));
                lowering.push((*partition, decision));
            } else {
                self.events.extend(task.resolved(&read, *partition, decision));
            }
        }
        if !lowering.is_empty() {
            task.stage = Stage::Lowering(read, lowering);
        } else if task.assignments.is_empty() {
            self.starts.tasks.remove(index);
        }
    }

    /// Receives the result of a task's query.
    pub(super) fn loaded(&mut self, number: u32, result: Option<StatementResult>) {
        let connection_number = self.reference.number();
        let Some(task) = self.starts.tasks.iter_mut().find(|task| task.number == number) else { return };
        task.stage = match (result, &task.stage) {
            (Some(StatementResult::Loaded(rows)), Stage::Loading(topic)) => {
                Stage::Offsets(Read { topic: *topic, connection_number, rows })
            }
            _ => Stage::Topic,
        };
    }

    /// Receives whether a progress row was lowered; if not, the task resolves the start again.
    pub(super) fn lowered(&mut self, number: u32, partition: Partition, lowered: bool) {
        let Some(index) = self.starts.tasks.iter().position(|task| task.number == number) else { return };
        let task = &mut self.starts.tasks[index];
        let Stage::Lowering(read, lowering) = &mut task.stage else { return };
        let Some(at) = lowering.iter().position(|(waiting, _)| *waiting == partition) else { return };
        let (_, decision) = lowering.swap_remove(at);
        let (read, done) = (read.clone(), lowering.is_empty());
        if lowered {
            self.events.extend(task.resolved(&read, partition, decision));
        }
        if done {
            task.stage = Stage::Topic;
            if task.assignments.is_empty() {
                self.starts.tasks.remove(index);
            }
        }
    }
}
