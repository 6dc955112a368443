//! Finds out where assignments start: Kafka is asked first, the database after it, and something may happen in between.

use std::sync::Arc;

use machine::consumer::Event;
use machine::consumer::start::{self, Known};
use machine::keeper::Ask;
use machine::{Assignment, Epoch, NextOffset, Partition, RecordOffset};
use uuid::Uuid;

use super::Process;
use super::keeper::For;
use crate::database::{Reply, Statement};
use crate::env::Env;

/// What a task does next.
#[derive(Debug)]
enum Stage {
    Offsets,
    /// It has the topic's number and the committed offsets.
    Ends(u32, Vec<(Partition, Option<i64>)>),
    /// It has all that Kafka knows, and waits for the database.
    Rows(u32, Vec<(Partition, Known)>),
}

/// One task, for assignments that were made together.
#[derive(Debug)]
struct Task {
    number: u32,
    asked: Vec<(Partition, Arc<Assignment>)>,
    stage: Stage,
}

/// The tasks that are under way.
#[derive(Debug, Default)]
pub(super) struct Starts {
    tasks: Vec<Task>,
    last: u32,
}

impl Process {
    pub(super) fn resolve(&mut self, unresolved: &[(Partition, Epoch)]) {
        self.forget_assignments();
        for (_, epoch) in unresolved {
            self.assignments.insert(*epoch, Arc::new(Assignment::new(*epoch)));
        }
        let asked = unresolved.iter().map(|(partition, epoch)| (*partition, self.assignments[epoch].clone())).collect();
        self.starts.last += 1;
        self.starts.tasks.push(Task { number: self.starts.last, asked, stage: Stage::Offsets });
    }

    /// One of the tasks goes on with Kafka.
    pub(super) fn starts_turn(&mut self, env: &mut Env) -> bool {
        let asks_kafka = |task: &&mut Task| !matches!(task.stage, Stage::Rows(..));
        let Some(task) = self.starts.tasks.iter_mut().find(asks_kafka) else { return false };
        match &task.stage {
            Stage::Offsets => {
                task.asked.retain(|(_, assignment)| !assignment.is_fenced());
                if task.asked.is_empty() {
                    let number = task.number;
                    self.starts.tasks.retain(|task| task.number != number);
                    return true;
                }
                let offset =
                    |(partition, _): &(Partition, _)| (*partition, env.kafka.group.offsets.get(partition).copied());
                task.stage = Stage::Ends(env.kafka.topic_number(), task.asked.iter().map(offset).collect());
            }
            Stage::Ends(topic, offsets) => {
                if *topic != env.kafka.topic_number() {
                    // It is asked for before and after: what lies between is of one topic.
                    task.stage = Stage::Offsets;
                    return true;
                }
                let mut known = Vec::new();
                for (partition, committed) in offsets {
                    let log = env.kafka.topic().log(*partition);
                    if log.without_leader {
                        continue;
                    }
                    let committed = committed.map(NextOffset);
                    let (low, high) = (NextOffset(log.low), NextOffset(log.high));
                    known.push((*partition, Known { committed, progress: None, low, high }));
                }
                if known.is_empty() {
                    task.stage = Stage::Offsets;
                    return true;
                }
                let epoch = |partition: Partition| {
                    let asked = task.asked.iter().find(|(asked, _)| *asked == partition);
                    asked.expect("it was asked for").1.epoch
                };
                let partitions = known.iter().map(|(partition, _)| (*partition, epoch(*partition))).collect();
                self.keeper.ask(Ask::Load, For::Start(task.number, Statement::Load(*topic, partitions)));
                task.stage = Stage::Rows(*topic, known);
            }
            Stage::Rows(..) => {}
        }
        true
    }

    /// The database's answer to a task.
    pub(super) fn loaded(&mut self, number: u32, reply: Option<Reply>, env: &Env) {
        let Some(place) = self.starts.tasks.iter().position(|task| task.number == number) else { return };
        let task = &mut self.starts.tasks[place];
        let (Some(Reply::Loaded(rows)), Stage::Rows(topic, known)) = (reply, &task.stage) else {
            task.stage = Stage::Offsets;
            return;
        };
        for (partition, progress, dead) in rows {
            let Some((_, known)) = known.iter().find(|(known, _)| *known == partition) else { continue };
            let Some(at) = task.asked.iter().position(|(asked, _)| *asked == partition) else { continue };
            let (_, assignment) = task.asked.swap_remove(at);
            // Before the event: whoever hears of the start needs it.
            let topic_id = Uuid::from_u128(u128::from(*topic));
            assignment.start_read(topic_id, self.keeper.generation());
            let known = Known { progress: progress.map(NextOffset), ..*known };
            let start = start::resolve(known, env.accept_loss);
            let dead = dead.into_iter().map(RecordOffset).collect();
            self.events.push_back(Event::StartResolved { partition, epoch: assignment.epoch, start, topic_id, dead });
        }
        task.stage = Stage::Offsets;
        if task.asked.is_empty() {
            self.starts.tasks.remove(place);
        }
    }
}
