//! Makes progress durable in the machine's order: first the progress rows, then the offsets in Kafka.

use std::error::Error;

use super::{CommitTimedOut, Driver, Io, PendingCommit, ProgressRow, Record, Report, TopicIs};
use crate::consumer::{CommitPoint, Event};

impl<R: Record> Driver<R> {
    pub(super) fn save_progress(&mut self, io: &mut impl Io<Record = R>, points: &[CommitPoint]) {
        let row = |point: &CommitPoint| {
            let assignment = &self.assignments[&point.epoch];
            let known = "a completed record was received after its start offset was resolved";
            let (topic_id, connection_number) =
                (assignment.topic_id().expect(known), assignment.connection_number().expect(known));
            ProgressRow { topic_id, partition: point.partition, progress: point.progress(), connection_number }
        };
        io.save_progress(points.iter().map(row).collect());
    }

    pub(super) fn start_commit(&mut self, io: &mut impl Io<Record = R>, points: &[CommitPoint]) {
        match io.topic_is() {
            TopicIs::Same => {}
            // The offsets belong to the old topic. Kafka would commit them for the new one.
            TopicIs::Another => return self.handle(io, Event::Committed),
            TopicIs::Missing => return self.handle(io, Event::CommitFailed),
        }
        self.rounds += 1;
        self.commit = Some(PendingCommit { round: self.rounds, deadline: io.now() + self.times.commit });
        if let Err(error) = io.commit(points, self.rounds) {
            self.commit_ended(io, Some(&error));
        }
    }

    pub(super) fn poll_commit(&mut self, io: &mut impl Io<Record = R>) {
        while let Some((round, result)) = io.poll_commit() {
            // A late result of a round that timed out says nothing about the current one.
            if self.commit.as_ref().is_some_and(|commit| commit.round == round) {
                self.commit_ended(io, result.err().as_ref().map(|error| error as _));
            }
        }
        if self.commit.as_ref().is_some_and(|commit| io.now() >= commit.deadline) {
            self.commit_ended(io, Some(&CommitTimedOut));
        }
    }

    fn commit_ended(&mut self, io: &mut impl Io<Record = R>, error: Option<&(dyn Error + 'static)>) {
        self.commit = None;
        io.report(Report::Committed(error.map_or(Ok(()), Err)));
        self.handle(io, if error.is_none() { Event::Committed } else { Event::CommitFailed });
    }
}
