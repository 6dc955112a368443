//! Makes progress durable as the machine says: the progress rows, then Kafka's offsets, each with its answer.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use machine::consumer::{Event, Mark};
use machine::failure::Class;
use machine::lane::Failure;
use msg_common::repeat::Repeats;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;

use super::Driver;
use crate::consumer::context::Context;
use crate::consumer::progress::ProgressRow;
use crate::{backoff, metrics};

/// How long a commit may stay without an answer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

static NOT_SAVED: Repeats = Repeats::new();
static NOT_COMMITTED: Repeats = Repeats::new();

impl Driver {
    pub(super) fn save_progress(&self, marks: &[Mark]) {
        let row = |mark: &Mark| {
            let assignment = &self.assignments[&mark.epoch];
            let known = "what is settled was received, and so its start was read";
            let (topic_id, generation) = (assignment.topic_id().expect(known), assignment.generation().expect(known));
            ProgressRow { topic_id, partition: mark.partition, progress: mark.progress(), generation }
        };
        let rows: Vec<ProgressRow> = marks.iter().map(row).collect();
        let (progress, report) = (self.parts.progress.clone(), self.parts.report.clone());
        let (readiness, failures) = (self.parts.readiness.clone(), self.failed_saves.clone());
        self.parts.runtime.spawn(async move {
            match progress.save(&rows).await {
                Ok(()) => {
                    failures.store(0, Ordering::Relaxed);
                    readiness.ready("progress");
                    let _ = report.send(Event::ProgressSaved);
                }
                Err(Failure { class, text: error }) => {
                    if let Some(repeated) = NOT_SAVED.occurred(&error) {
                        tracing::warn!(
                            error,
                            repeated,
                            "progress not saved, starting again from what the database has"
                        );
                    }
                    let before = failures.fetch_add(1, Ordering::Relaxed);
                    // Once is a connection that went.
                    if before > 0 || class == Class::Fatal {
                        readiness.not_ready("progress", error);
                    }
                    if before > 0 {
                        tokio::time::sleep(backoff::jittered(backoff::ceiling(class, before))).await;
                    }
                    let _ = report.send(Event::ProgressFailed);
                    // The database may have lost what it had: only it can tell where to go on.
                    let _ = report.send(Event::Restart);
                }
            }
        });
    }

    pub(super) fn start_commit(&mut self, consumer: &BaseConsumer<Context>, marks: &[Mark]) {
        if self.parts.lookup.identity().is_another() {
            // They are of the former topic, and would be taken for the new one's.
            return self.handle(consumer, Event::Committed);
        }
        if self.parts.lookup.identity().is_missing() {
            return self.handle(consumer, Event::CommitFailed);
        }
        let list = self.list_at(marks.iter().map(|mark| (mark.partition, mark.progress())));
        self.rounds += 1;
        self.commit = Some((self.rounds, Instant::now() + COMMIT_TIMEOUT));
        let sent = match &self.queues {
            Some((_, commits)) => commits.commit(consumer.client(), &list, self.rounds),
            None => Err(RDKafkaErrorCode::BrokerDestroy),
        };
        if let Err(error) = sent {
            self.commit_answered(consumer, Err(error));
        }
    }

    pub(super) fn poll_commit(&mut self, consumer: &BaseConsumer<Context>) {
        while let Some((round, result)) = self.queues.as_ref().and_then(|(_, commits)| commits.poll()) {
            // A late answer to a round that was given up says nothing about the present one.
            if self.commit.is_some_and(|(current, _)| current == round) {
                self.commit_answered(consumer, result);
            }
        }
        if self.commit.is_some_and(|(_, deadline)| Instant::now() >= deadline) {
            self.commit_answered(consumer, Err(RDKafkaErrorCode::OperationTimedOut));
        }
    }

    pub(super) fn commit_answered(&mut self, consumer: &BaseConsumer<Context>, result: Result<(), RDKafkaErrorCode>) {
        self.commit = None;
        metrics::committed(result.is_ok());
        let event = match result {
            Ok(()) => Event::Committed,
            Err(error) => {
                if matches!(error, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopicId) {
                    // Not again before its id is told: it could be another topic by then.
                    self.parts.lookup.identity().missing();
                }
                if let Some(repeated) = NOT_COMMITTED.occurred(&error.to_string()) {
                    tracing::warn!(%error, repeated, "offsets not committed, will be tried again");
                }
                Event::CommitFailed
            }
        };
        self.handle(consumer, event);
    }
}
