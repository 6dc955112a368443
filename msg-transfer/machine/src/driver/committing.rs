//! Makes progress durable as the machine says: the progress rows, then Kafka's offsets, each with its result.

use super::{Driver, Io, ProgressRow, Record, Report, TopicIs};
use crate::consumer::{CommitPoint, Event};

impl<R: Record> Driver<R> {
    pub(super) fn save_progress(&mut self, io: &mut impl Io<Record = R>, points: &[CommitPoint]) {
        let row = |point: &CommitPoint| {
            let assignment = &self.assignments[&point.epoch];
            let known = "what is completed was received, and so its start was read";
            let (topic_id, connection_number) =
                (assignment.topic_id().expect(known), assignment.connection_number().expect(known));
            ProgressRow { topic_id, partition: point.partition, progress: point.progress(), connection_number }
        };
        io.save_progress(points.iter().map(row).collect());
    }

    pub(super) fn start_commit(&mut self, io: &mut impl Io<Record = R>, points: &[CommitPoint]) {
        match io.topic_is() {
            TopicIs::Same => {}
            // They are of the old topic, and would be taken for the new one's.
            TopicIs::Another => return self.handle(io, Event::Committed),
            TopicIs::Missing => return self.handle(io, Event::CommitFailed),
        }
        self.rounds += 1;
        self.commit = Some((self.rounds, io.now() + self.times.commit));
        if let Err(error) = io.commit(points, self.rounds) {
            self.commit_ended(io, Some(&error));
        }
    }

    pub(super) fn poll_commit(&mut self, io: &mut impl Io<Record = R>) {
        while let Some((round, result)) = io.poll_commit() {
            // A late result of a round that timed out says nothing about the present one.
            if self.commit.is_some_and(|(current, _)| current == round) {
                self.commit_ended(io, result.err().as_deref());
            }
        }
        if self.commit.is_some_and(|(_, deadline)| io.now() >= deadline) {
            self.commit_ended(io, Some("timed out"));
        }
    }

    fn commit_ended(&mut self, io: &mut impl Io<Record = R>, error: Option<&str>) {
        self.commit = None;
        io.report(Report::Committed(error.map_or(Ok(()), Err)));
        self.handle(io, if error.is_none() { Event::Committed } else { Event::CommitFailed });
    }
}
