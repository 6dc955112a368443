//! Finds out where assignments start, for as long as it takes: the group is kept meanwhile, and nothing is fetched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use machine::consumer::start::Lost;
use machine::consumer::{Event, start};
use machine::{Assignment, Partition};
use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::repeat::Repeats;

use super::lookup::{Answer, Lookup, LookupError};
use crate::backoff::Backoff;
use crate::metrics;

static NOT_RESOLVED: Repeats = Repeats::new();

/// One round of assignments.
pub struct Resolve {
    /// Who is asked.
    pub lookup: Lookup,
    /// Who is told.
    pub report: Sender<Event>,
    /// Says what keeps the process from being ready.
    pub readiness: Readiness,
    /// Begin with the oldest record where the wanted one is deleted.
    pub accept_loss: bool,
    /// How far back dead letters count for the limit, in offsets.
    pub dead_letter_window: i64,
    /// Partitions whose fetch fails: each attempt is no news.
    pub retried: BTreeSet<Partition>,
}

impl Resolve {
    /// Comes back when each start is known, or nobody needs it any more.
    pub async fn run(self, mut asked: Vec<(Partition, Arc<Assignment>)>) {
        let mut backoff = Backoff::default();
        // Several rounds may run at a time, and one that is through must not speak for the others.
        let readiness = self.readiness.scope();
        loop {
            asked.retain(|(_, assignment)| !assignment.is_fenced());
            if asked.is_empty() {
                break;
            }
            let partitions: Vec<Partition> = asked.iter().map(|(partition, _)| *partition).collect();
            match self.lookup.ask(&partitions, self.dead_letter_window).await {
                Ok(mut answer) => {
                    while let Some((partition, known)) = answer.partitions.recv().await {
                        let Some(at) = asked.iter().position(|(asked, _)| *asked == partition) else { continue };
                        let decision = start::resolve(known, self.accept_loss);
                        if let Some(lost) = &decision.lost
                            && let Err(error) = self.lower(&answer, partition, lost).await
                        {
                            let error = chain(&error);
                            tracing::warn!(partition, error, "progress row not lowered, the start is resolved again");
                            continue;
                        }
                        let (_, assignment) = asked.swap_remove(at);
                        // Before the event: whoever hears of the start needs it.
                        assignment.start_read(answer.topic_id, answer.connection_number);
                        let start = &decision.start;
                        if self.retried.contains(&partition) {
                            tracing::debug!(partition, ?known, ?start, "start resolved");
                        } else {
                            tracing::info!(partition, ?known, ?start, "start resolved");
                        }
                        let mut dead = answer.dead.remove(&partition).unwrap_or_default();
                        if let Some(lost) = &decision.lost {
                            // Those above are lost records' too.
                            dead.retain(|offset| offset.0 < lost.from.0);
                        }
                        let (epoch, topic_id) = (assignment.epoch, answer.topic_id);
                        let event = Event::StartResolved { partition, epoch, start: decision, topic_id, dead };
                        let _ = self.report.send(event);
                    }
                    if asked.is_empty() {
                        break;
                    }
                    let missing: Vec<Partition> = asked.iter().map(|(partition, _)| *partition).collect();
                    readiness.not_ready("starts", format!("the ends of partitions {missing:?} are not known"));
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

    /// Before anything is fetched: a row that stays above would skip the records that get these offsets.
    async fn lower(&self, answer: &Answer, partition: Partition, lost: &Lost) -> Result<(), LookupError> {
        self.lookup.lower(answer.topic_id, answer.connection_number, partition, lost).await?;
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
                "kafka lost the tail of the log; progress row lowered"
            );
        } else {
            let topic = self.lookup.topic();
            tracing::error!(
                topic,
                partition,
                continues_at,
                "kafka lost records, it is not known which; progress row lowered"
            );
        }
        metrics::offsets_lost(partition, count);
        Ok(())
    }
}
