//! Detects stalled Kafka clients, which librdkafka does not report: the topic was recreated (ADR 21), or a client keeps
//! fetching a partition from a broker that does not lead it. Then the transfer restarts its Kafka clients and lanes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use machine::{NextOffset, Partition};
use msg_common::error::chain;
use msg_common::kafka::{ClientSetup, RequestError};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::lookup::Lookup;
use crate::lag::kafka::Reader;

/// How often the topic and the silent partitions are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long a partition may be silent before its end offset is read. Longer than a fetch may take.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// How long the consumer then has to receive the record after all. Longer than a client needs to detect a new leader.
const SECOND_CHANCE: Duration = Duration::from_secs(15);

/// For each fetched partition: the next offset that is expected, and since when it has not been received.
#[derive(Clone, Default)]
pub(crate) struct FetchSilence(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    updated: Option<Instant>,
    /// Whether the consumer consumes records. At the limits it does not.
    consuming: bool,
    since: HashMap<Partition, (NextOffset, Instant)>,
}

impl FetchSilence {
    /// Updates the fetched partitions and the next offset that is expected of each. Has to be called regularly; a
    /// partition that is left out is not waited for.
    pub(crate) fn fetching(&self, now: Instant, expected: impl IntoIterator<Item = (Partition, NextOffset)>) {
        let mut waiting = self.lock();
        let before = std::mem::take(&mut waiting.since);
        waiting.since.extend(expected.into_iter().map(|(partition, next)| {
            let same = before.get(&partition).filter(|(then, _)| *then == next);
            (partition, (next, same.map_or(now, |(_, since)| *since)))
        }));
        (waiting.updated, waiting.consuming) = (Some(now), true);
    }

    /// Records that the consumer consumes nothing at present: this time does not count.
    pub(crate) fn full(&self, now: Instant) {
        let mut waiting = self.lock();
        let passed = waiting.updated.map_or(Duration::ZERO, |updated| now.duration_since(updated));
        waiting.since.values_mut().for_each(|(_, since)| *since += passed);
        (waiting.updated, waiting.consuming) = (Some(now), false);
    }

    /// Returns the partitions that were silent for too long, and starts their time again.
    fn too_long(&self, now: Instant) -> Vec<(Partition, NextOffset)> {
        let mut waiting = self.lock();
        if !waiting.consuming {
            return Vec::new();
        }
        let long =
            waiting.since.iter_mut().filter(|(_, (_, since))| now.saturating_duration_since(*since) >= MAX_SILENCE);
        long.map(|(partition, (next, since))| {
            *since = now;
            (*partition, *next)
        })
        .collect()
    }

    fn lasts(&self, partition: Partition, next: NextOffset) -> bool {
        let waiting = self.lock();
        waiting.consuming && waiting.since.get(&partition).is_some_and(|(expected, _)| *expected == next)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that detects stalled clients.
pub(crate) struct Stalls {
    /// Checks the topic's ID, and cancels `restart` by itself when the topic was recreated.
    pub lookup: Lookup,
    /// The offsets that the consumer expects.
    pub silence: FetchSilence,
    /// The settings of the fresh client.
    pub config: ClientSetup,
    pub topic: String,
    /// Cancelled when the Kafka clients have to be restarted.
    pub restart: CancellationToken,
}

impl Stalls {
    /// Checks until the Kafka clients have to be restarted.
    pub(crate) async fn watch(self) {
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.restart.is_cancelled() {
            ticks.tick().await;
            self.lookup.check_topic().await;
            let silent = self.silence.too_long(Instant::now());
            let mut behind = self.lookup.behind(silent).await;
            if behind.is_empty() {
                continue;
            }
            let readable = self.readable_by_fresh_client(&behind).await;
            // The process may have been frozen, or a leader is available again: then the consumer receives the records
            // now.
            tokio::time::sleep(SECOND_CHANCE).await;
            behind.retain(|(partition, next)| readable.contains(partition) && self.silence.lasts(*partition, *next));
            if !behind.is_empty() {
                tracing::warn!(
                    positions = ?behind,
                    "detected a stalled consumer: kafka has records at these positions, and the consumer receives none"
                );
                self.restart.cancel();
            }
        }
    }

    /// Returns the partitions of which a new client receives a record. An end offset alone proves nothing: the last
    /// records may be transaction markers, or Kafka returns no records to any client.
    async fn readable_by_fresh_client(&self, behind: &[(Partition, NextOffset)]) -> Vec<Partition> {
        let (config, topic) = (self.config.clone(), self.topic.clone());
        let wanted: Vec<_> = behind.iter().map(|(partition, next)| (*partition, next.0)).collect();
        let read = move || {
            let reader = Reader::new(&config, topic).map_err(RequestError::create)?;
            reader.written_at(&wanted)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(found)) => found.written.into_keys().collect(),
            Ok(Err(error)) => {
                tracing::debug!(error = chain(&error), "could not check whether a fresh client receives the records");
                Vec::new()
            }
            // The process stops.
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_is_silent_while_fetched_without_a_new_offset() {
        let (silence, start) = (FetchSilence::default(), Instant::now());
        let update = |after: Duration, expected: &[(Partition, i64)]| {
            silence.fetching(start + after, expected.iter().map(|(partition, next)| (*partition, NextOffset(*next))));
        };
        update(Duration::ZERO, &[(0, 5), (1, 5), (2, 5)]);
        assert_eq!(silence.too_long(start + MAX_SILENCE / 2), []);
        update(MAX_SILENCE / 2, &[(0, 5), (1, 6)]);
        update(MAX_SILENCE, &[(0, 5), (1, 6), (2, 5)]);
        assert_eq!(silence.too_long(start + MAX_SILENCE), [(0, NextOffset(5))]);
        assert_eq!(silence.too_long(start + MAX_SILENCE), [], "its time starts again");
        assert!(silence.lasts(0, NextOffset(5)) && !silence.lasts(1, NextOffset(5)));
        silence.full(start + 2 * MAX_SILENCE);
        assert!(silence.too_long(start + 9 * MAX_SILENCE).is_empty() && !silence.lasts(0, NextOffset(5)));
        update(3 * MAX_SILENCE, &[(0, 5)]);
        assert_eq!(
            silence.too_long(start + 3 * MAX_SILENCE - CHECK_INTERVAL),
            [],
            "the time in which nothing was consumed does not count"
        );
        assert_eq!(silence.too_long(start + 3 * MAX_SILENCE), [(0, NextOffset(5))]);
        update(3 * MAX_SILENCE, &[]);
        assert_eq!(silence.too_long(start + 9 * MAX_SILENCE), []);
    }
}
