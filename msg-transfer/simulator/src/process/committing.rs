//! Makes progress durable as the machine says: the progress rows, then the group's offsets.

use std::collections::VecDeque;

use machine::consumer::{Event, Mark};
use machine::keeper::Ask;

use super::Process;
use super::keeper::For;
use crate::database::Statement;
use crate::env::Env;
use crate::facts::Fact;
use crate::kafka::CommitRequest;

/// The rounds.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    last: u64,
    under_way: Option<u64>,
    /// What the coordinator answered to which round.
    pub(crate) answers: VecDeque<(u64, bool)>,
    /// Which database the last progress rows were written to.
    pub(super) saved_to: Option<u32>,
    /// Of which topic, the earliest, if of several.
    topic: u32,
}

impl Process {
    pub(super) fn save_progress(&mut self, marks: &[Mark]) {
        let known = "what is settled was received, and so its start was read";
        let row = |mark: &Mark| {
            let topic = self.assignments[&mark.epoch].topic_id().expect(known);
            (u32::try_from(topic.as_u128()).expect("a small number"), mark.partition, mark.progress())
        };
        let generation = |mark: &Mark| self.assignments[&mark.epoch].generation().expect(known);
        let generations = marks.iter().map(generation).collect();
        let rows: Vec<_> = marks.iter().map(row).collect();
        self.commits.saved_to = None;
        self.commits.topic = rows.iter().map(|(topic, ..)| *topic).min().unwrap_or_default();
        self.keeper.ask(Ask::Save(generations), For::Save(Statement::Save(rows)));
    }

    pub(super) fn start_commit(&mut self, marks: Vec<Mark>, env: &mut Env) {
        self.commits.last += 1;
        self.commits.under_way = Some(self.commits.last);
        env.kafka.commits.push_back(CommitRequest {
            process: self.number,
            life: self.life,
            round: self.commits.last,
            member: self.membership.member,
            generation: self.membership.generation,
            marks,
            incarnation: self.commits.saved_to,
            topic: self.commits.topic,
        });
    }

    pub(super) fn next_commit_answer(&mut self, env: &mut Env) -> bool {
        let Some((round, accepted)) = self.commits.answers.pop_front() else { return false };
        // A late answer to a round that was given up says nothing about the present one.
        if self.commits.under_way == Some(round) {
            self.commits.under_way = None;
            self.handle(if accepted { Event::Committed } else { Event::CommitFailed }, env);
        }
        true
    }

    /// No answer came in time.
    pub(crate) fn commit_timeout(&mut self, env: &mut Env) -> bool {
        if self.commits.under_way.is_none() || !self.commits.answers.is_empty() {
            return false;
        }
        self.commits.under_way = None;
        env.count(Fact::OffsetsUnanswered);
        self.handle(Event::CommitFailed, env);
        true
    }
}
