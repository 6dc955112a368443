//! Resolves the start offsets of assigned partitions, and retries without limit. Meanwhile the consumer stays in the
//! group, and these partitions are not fetched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use machine::consumer::start::Lost;
use machine::consumer::{Event, start};
use machine::{Assignment, Partition};
use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::repeat::Repeats;

use super::lookup::{Lookup, LookupError, LookupResult};
use crate::backoff::Backoff;
use crate::metrics;

static NOT_RESOLVED: Repeats = Repeats::new();

/// The task that resolves the start offsets of some assignments.
pub(crate) struct Resolve {
    /// Reads the data that start offsets are resolved from.
    pub lookup: Lookup,
    pub report: Sender<Event>,
    /// Receives the reason while a start offset is not resolved.
    pub readiness: Readiness,
    /// Start at the oldest record if the record at the start offset is deleted.
    pub accept_loss: bool,
    /// How far back dead letters count for the limit, in offsets.
    pub dead_letter_window: i64,
    /// Partitions that are resolved again because their fetch failed. Their start offsets are logged at debug level.
    pub retried: BTreeSet<Partition>,
}

impl Resolve {
    /// Runs until each start offset is resolved or its assignment is fenced.
    pub(crate) async fn run(self, mut pending: Vec<(Partition, Arc<Assignment>)>) {
        let mut backoff = Backoff::default();
        // Several such tasks may run concurrently. One that ends must not clear the reasons of the others.
        let readiness = self.readiness.scope();
        loop {
            pending.retain(|(_, assignment)| !assignment.is_fenced());
            if pending.is_empty() {
                break;
            }
            let partitions: Vec<Partition> = pending.iter().map(|(partition, _)| *partition).collect();
            match self.lookup.read(&partitions, self.dead_letter_window).await {
                Ok(mut result) => {
                    while let Some((partition, known)) = result.partitions.recv().await {
                        let at = pending.iter().position(|(pending, _)| *pending == partition);
                        let Some(at) = at else { continue };
                        let decision = start::resolve(known, self.accept_loss);
                        if let Some(lost) = &decision.lost
                            && let Err(error) = self.lower(&result, partition, lost).await
                        {
                            let error = chain(&error);
                            tracing::warn!(
                                partition,
                                error,
                                "progress row not lowered, start offset will be resolved again"
                            );
                            continue;
                        }
                        let (_, assignment) = pending.swap_remove(at);
                        // Before the event: the lanes use both as soon as the consumer passes them the first record.
                        assignment.start_read(result.topic_id, result.connection_number);
                        let start = &decision.start;
                        if self.retried.contains(&partition) {
                            tracing::debug!(partition, ?known, ?start, "resolved start offset");
                        } else {
                            tracing::info!(partition, ?known, ?start, "resolved start offset");
                        }
                        let mut dead = result.dead.remove(&partition).unwrap_or_default();
                        if let Some(lost) = &decision.lost {
                            // Dead letters at or above this offset belong to lost records.
                            dead.retain(|offset| offset.0 < lost.from.0);
                        }
                        let (epoch, topic_id) = (assignment.epoch, result.topic_id);
                        let event = Event::StartResolved { partition, epoch, start: decision, topic_id, dead };
                        let _ = self.report.send(event);
                    }
                    if pending.is_empty() {
                        break;
                    }
                    let missing: Vec<Partition> = pending.iter().map(|(partition, _)| *partition).collect();
                    readiness.not_ready(
                        "starts",
                        format!("the end offsets of partitions {missing:?} cannot be read: check the brokers"),
                    );
                    backoff.wait().await;
                }
                Err(error) => {
                    let error = chain(&error);
                    if let Some(repeated) = NOT_RESOLVED.occurred(&error) {
                        tracing::warn!(error, repeated, "start offsets not resolved, will be retried");
                    }
                    readiness.not_ready("starts", error);
                    backoff.wait().await;
                }
            }
        }
        readiness.ready("starts");
    }

    /// Lowers the progress row before the partition is fetched. Otherwise the new records at the lost offsets would be
    /// skipped.
    async fn lower(&self, result: &LookupResult, partition: Partition, lost: &Lost) -> Result<(), LookupError> {
        self.lookup.lower(result.topic_id, result.connection_number, partition, lost).await?;
        let (count, continues_at) = (lost.count(), lost.lowered.next.0);
        if count > 0 {
            let (first_lost, last_lost) = (lost.from.0, lost.to.0 - 1);
            tracing::error!(
                topic = self.lookup.topic(),
                partition,
                first_lost,
                last_lost,
                count,
                continues_at,
                "lowered progress row: kafka lost the tail of the log"
            );
        } else {
            let topic = self.lookup.topic();
            tracing::error!(
                topic,
                partition,
                continues_at,
                "lowered progress row: kafka lost records, it is not known which"
            );
        }
        metrics::offsets_lost(partition, count);
        Ok(())
    }
}
