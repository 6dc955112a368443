//! What nobody tells us, and has to be looked at from time to time.

use std::time::Instant;

use machine::Partition;
use machine::consumer::Event;
use rdkafka::consumer::BaseConsumer;

use super::Driver;
use crate::consumer::context::Context;
use crate::lag::states::State;

impl Driver {
    /// What is waited for, whether the database is still the one that it was, and
    /// whether somebody has let a partition go on.
    pub fn look_around(&mut self, consumer: &BaseConsumer<Context>) {
        self.parts.lookup.forget_events();
        let (progress, report) = (self.parts.progress.clone(), self.parts.report.clone());
        self.parts.runtime.spawn(async move {
            if !progress.check().await {
                let _ = report.send(Event::Restart);
            }
        });
        if !self.halted.is_empty() {
            self.look_for_resumed();
        }
        self.tell_states();
        let taking = self.machine.wants_records();
        let mut expected = Vec::new();
        for partition in self.fetching.iter().filter(|partition| !self.paused.contains_key(partition)) {
            // librdkafka ends the forwarding when a fetch stops, which may come after the next one has begun.
            self.take_over(consumer, *partition);
            expected.extend(self.machine.expected(*partition).map(|next| (*partition, next)));
        }
        let now = Instant::now();
        if taking {
            self.parts.silence.fetching(now, expected);
        } else {
            self.parts.silence.full(now);
        }
    }

    /// What is being done with each partition of ours.
    pub(super) fn tell_states(&self) {
        let state = |partition: Partition| match () {
            () if self.halted.contains_key(&partition) => State::Halted,
            () if self.failing.contains_key(&partition) => State::Failing,
            () if self.paused.contains_key(&partition) => State::Throttled,
            () if self.fetching.contains(&partition) => State::Fetching,
            () => State::Resolving,
        };
        self.parts.states.are(self.machine.partitions().map(|partition| (partition, state(partition))));
    }

    /// Has somebody said that a partition that stands still may go on?
    fn look_for_resumed(&self) {
        let halted: Vec<Partition> = self.halted.keys().copied().collect();
        let (progress, report) = (self.parts.progress.clone(), self.parts.report.clone());
        self.parts.runtime.spawn(async move {
            match progress.resumed(&halted).await {
                Ok(resumed) if resumed.is_empty() => {}
                Ok(resumed) => {
                    tracing::info!(partitions = ?resumed, "told to go on");
                    let _ = report.send(Event::Resumed(resumed));
                }
                Err(error) => tracing::debug!(error, "not known whether partitions may go on"),
            }
        });
    }
}
