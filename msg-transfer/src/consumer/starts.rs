//! Finds out where assignments start, for as long as it takes: the group is kept meanwhile, and nothing is fetched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use machine::consumer::{Event, start};
use machine::{Assignment, Partition};
use msg_common::admin::Readiness;
use msg_common::repeat::Repeats;

use super::lookup::Lookup;
use crate::backoff::Backoff;

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
                        let (_, assignment) = asked.swap_remove(at);
                        // Before the event: whoever hears of the start needs it.
                        assignment.start_read(answer.topic_id, answer.generation);
                        let start = start::resolve(known, self.accept_loss);
                        if self.retried.contains(&partition) {
                            tracing::debug!(partition, ?known, ?start, "start resolved");
                        } else {
                            tracing::info!(partition, ?known, ?start, "start resolved");
                        }
                        let dead = answer.dead.remove(&partition).unwrap_or_default();
                        let (epoch, topic_id) = (assignment.epoch, answer.topic_id);
                        let _ = self.report.send(Event::StartResolved { partition, epoch, start, topic_id, dead });
                    }
                    if asked.is_empty() {
                        break;
                    }
                    let missing: Vec<Partition> = asked.iter().map(|(partition, _)| *partition).collect();
                    self.readiness.not_ready("starts", format!("the ends of partitions {missing:?} are not known"));
                    backoff.wait().await;
                }
                Err(error) => {
                    if let Some(repeated) = NOT_RESOLVED.occurred(&error.to_string()) {
                        tracing::warn!(%error, repeated, "starts not resolved, will be tried again");
                    }
                    self.readiness.not_ready("starts", error.to_string());
                    backoff.wait().await;
                }
            }
        }
        self.readiness.ready("starts");
    }
}
