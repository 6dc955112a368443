//! The lanes, the tasks and the clock, as the driver uses them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use machine::consumer::{Event, LaneNumber};
use machine::driver::{ProgressRow, Report, Surroundings};
use machine::error::{ClassifiedError, ErrorClass};
use machine::{Assignment, Millis, Partition};
use msg_common::error::chain;
use msg_common::repeat::Repeats;
use rdkafka::consumer::ConsumerContext;

use super::Io;
use crate::backoff;
use crate::consumer::progress::Saved;
use crate::consumer::starts;
use crate::lane::item::{Item, RawRecord};

static NOT_SAVED: Repeats = Repeats::new();

impl<C: ConsumerContext> Surroundings<RawRecord> for Io<'_, C> {
    fn now(&self) -> Millis {
        u64::try_from(self.outside.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_event(&mut self, wait: Millis) -> Option<Event> {
        let events = &self.outside.parts.events;
        if wait == 0 {
            return events.try_recv().ok();
        }
        events.recv_timeout(Duration::from_millis(wait)).ok()
    }

    fn lanes(&self) -> usize {
        self.outside.parts.lanes.len()
    }

    fn pass(&mut self, lane: LaneNumber, record: RawRecord, assignment: &Arc<Assignment>) {
        let item = Item { record, assignment: assignment.clone() };
        // A lane ends only with the process; a record that it does not accept is not completed.
        if let Err(error) = self.outside.parts.lanes[lane].items.try_send(item) {
            tracing::error!(lane, %error, "lane rejected a record");
        }
    }

    fn approve_dead_letters(&mut self, lane: LaneNumber) {
        self.outside.parts.lanes[lane].approved.notify_one();
    }

    fn resolve(&mut self, assignments: Vec<(Partition, Arc<Assignment>)>, retried: BTreeSet<Partition>) {
        let parts = &self.outside.parts;
        let task = starts::Resolve {
            lookup: parts.lookup.clone(),
            report: parts.report.clone(),
            readiness: parts.readiness.clone(),
            accept_loss: parts.start_at_oldest,
            dead_letter_window: parts.dead_letter_window,
            retried,
        };
        parts.runtime.spawn(task.run(assignments));
    }

    fn save_progress(&mut self, rows: Vec<ProgressRow>) {
        let parts = &self.outside.parts;
        let (progress, report) = (parts.progress.clone(), parts.report.clone());
        let (readiness, failures) = (parts.readiness.clone(), self.outside.failed_saves.clone());
        parts.runtime.spawn(async move {
            match progress.save(&rows).await {
                Ok(Saved::Durable) => {
                    failures.store(0, Ordering::Relaxed);
                    readiness.ready("progress");
                    let _ = report.send(Event::ProgressSaved);
                }
                Ok(Saved::Warned(warning)) => {
                    if failures.fetch_add(1, Ordering::Relaxed) > 0 {
                        let reason = "the progress rows were committed with a warning, so no offset is committed";
                        readiness.not_ready("progress", format!("{reason}: {warning}"));
                    }
                    // The reference connection is still open, so the rows are only written again.
                    let _ = report.send(Event::ProgressFailed);
                }
                Err(ClassifiedError { class, text: error }) => {
                    if let Some(repeated) = NOT_SAVED.occurred(&error) {
                        tracing::warn!(error, repeated, "progress not saved, start offsets will be resolved again");
                    }
                    let before = failures.fetch_add(1, Ordering::Relaxed);
                    // A single failure can be a connection that was closed.
                    if before > 0 || class == ErrorClass::Fatal {
                        readiness.not_ready("progress", error);
                    }
                    if before > 0 {
                        backoff::wait(class, before).await;
                    }
                    let _ = report.send(Event::ProgressFailed);
                    // The database may have lost rows: only its own rows show where to continue.
                    let _ = report.send(Event::Restart);
                }
            }
        });
    }

    fn check_database(&mut self) {
        let parts = &self.outside.parts;
        parts.lookup.discard_events();
        let (progress, report) = (parts.progress.clone(), parts.report.clone());
        parts.runtime.spawn(async move {
            if !progress.check().await {
                let _ = report.send(Event::Restart);
            }
        });
    }

    fn check_resumed(&mut self, halted: Vec<Partition>) {
        let parts = &self.outside.parts;
        let (progress, report) = (parts.progress.clone(), parts.report.clone());
        parts.runtime.spawn(async move {
            match progress.resumed(&halted).await {
                Ok(resumed) if resumed.is_empty() => {}
                Ok(resumed) => {
                    tracing::info!(partitions = ?resumed, "resumed partitions for an operator");
                    let _ = report.send(Event::Resumed(resumed));
                }
                Err(error) => {
                    tracing::debug!(
                        error = chain(&error),
                        "could not check whether an operator has resumed partitions"
                    );
                }
            }
        });
    }

    fn report(&mut self, report: Report<'_>) {
        self.show(&report);
    }
}
