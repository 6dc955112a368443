//! Finds out when librdkafka's clients stand still for good, which they do not tell: a topic that was deleted and made anew is
//! another one (ADR 21), and a partition can be left with a broker that does not lead it. Everything begins anew then, with
//! new clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use machine::{NextOffset, Partition};
use rdkafka::ClientConfig;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::lookup::Lookup;
use crate::lag::kafka::Reader;

/// How often to look.
const EVERY: Duration = Duration::from_secs(5);

/// How long nothing may come of a partition before we ask whether there is something. Longer than a fetch may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// After that, how long they have once more. Longer than the client takes to hear of a leader.
const SETTLE: Duration = Duration::from_secs(15);

/// From when on nothing came of each partition that is fetched.
#[derive(Clone, Default)]
pub struct Silence(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// When it was told of last.
    told: Option<Instant>,
    /// Whether what comes is taken.
    taking: bool,
    since: HashMap<Partition, (NextOffset, Instant)>,
}

impl Silence {
    /// These are fetched now, and so much is expected of each. To be told regularly; what is not told of is not waited for.
    pub fn fetching(&self, now: Instant, expected: impl IntoIterator<Item = (Partition, NextOffset)>) {
        let mut waiting = self.lock();
        let before = std::mem::take(&mut waiting.since);
        waiting.since.extend(expected.into_iter().map(|(partition, next)| {
            let same = before.get(&partition).filter(|(then, _)| *then == next);
            (partition, (next, same.map_or(now, |(_, since)| *since)))
        }));
        (waiting.told, waiting.taking) = (Some(now), true);
    }

    /// Nothing is taken at present: this time does not count.
    pub fn full(&self, now: Instant) {
        let mut waiting = self.lock();
        let passed = waiting.told.map_or(Duration::ZERO, |told| now.duration_since(told));
        waiting.since.values_mut().for_each(|(_, since)| *since += passed);
        (waiting.told, waiting.taking) = (Some(now), false);
    }

    /// The partitions of which nothing came for too long. Each is waited for anew from now on.
    fn too_long(&self, now: Instant) -> Vec<(Partition, NextOffset)> {
        let mut waiting = self.lock();
        if !waiting.taking {
            return Vec::new();
        }
        let long = waiting.since.iter_mut().filter(|(_, (_, since))| now.saturating_duration_since(*since) >= PATIENCE);
        long.map(|(partition, (next, since))| {
            *since = now;
            (*partition, *next)
        })
        .collect()
    }

    /// Whether this is still expected of the partition.
    fn lasts(&self, partition: Partition, next: NextOffset) -> bool {
        let waiting = self.lock();
        waiting.taking && waiting.since.get(&partition).is_some_and(|(expected, _)| *expected == next)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that looks.
pub struct Stalls {
    /// Asked, and cancels by itself when the topic is another.
    pub lookup: Lookup,
    /// What the consumer waits for.
    pub silence: Silence,
    /// Settings of the client that looks for itself.
    pub config: ClientConfig,
    /// The topic.
    pub topic: String,
    /// Cancelled when all is to begin anew.
    pub anew: CancellationToken,
}

impl Stalls {
    /// Looks until all is to begin anew.
    pub async fn watch(self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.anew.is_cancelled() {
            ticks.tick().await;
            self.lookup.same_topic().await;
            let silent = self.silence.too_long(Instant::now());
            let mut behind = self.lookup.behind(silent).await;
            if behind.is_empty() {
                continue;
            }
            let given = self.given_to_another(&behind).await;
            // The process itself may have stood still, or a leader is back: then they come now.
            tokio::time::sleep(SETTLE).await;
            behind.retain(|(partition, next)| given.contains(partition) && self.silence.lasts(*partition, *next));
            if !behind.is_empty() {
                tracing::warn!(positions = ?behind, "Kafka has records at these offsets, and our consumer gets none");
                self.anew.cancel();
            }
        }
    }

    /// Those of which a client that has just been made gets a record: what the end speaks of may be a transaction's marks, or Kafka
    /// gives nothing to anybody.
    async fn given_to_another(&self, behind: &[(Partition, NextOffset)]) -> Vec<Partition> {
        let (config, topic) = (self.config.clone(), self.topic.clone());
        let wanted: Vec<_> = behind.iter().map(|(partition, next)| (*partition, next.0)).collect();
        let read = move || {
            let reader = Reader::new(&config, topic).map_err(|error| error.to_string())?;
            reader.written_at(&wanted)
        };
        match tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(found) => found.written.into_keys().collect(),
            Err(error) => {
                tracing::debug!(error, "not known whether another client gets what we do not");
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_is_what_stays_where_it_is_and_is_fetched_all_the_time() {
        let (silence, begin) = (Silence::default(), Instant::now());
        let told = |after: Duration, expected: &[(Partition, i64)]| {
            silence.fetching(begin + after, expected.iter().map(|(partition, next)| (*partition, NextOffset(*next))));
        };
        told(Duration::ZERO, &[(0, 5), (1, 5), (2, 5)]);
        assert_eq!(silence.too_long(begin + PATIENCE / 2), []);
        told(PATIENCE / 2, &[(0, 5), (1, 6)]);
        told(PATIENCE, &[(0, 5), (1, 6), (2, 5)]);
        assert_eq!(silence.too_long(begin + PATIENCE), [(0, NextOffset(5))]);
        assert_eq!(silence.too_long(begin + PATIENCE), [], "it is waited for anew");
        assert!(silence.lasts(0, NextOffset(5)) && !silence.lasts(1, NextOffset(5)));
        silence.full(begin + 2 * PATIENCE);
        assert!(silence.too_long(begin + 9 * PATIENCE).is_empty() && !silence.lasts(0, NextOffset(5)));
        told(3 * PATIENCE, &[(0, 5)]);
        assert_eq!(
            silence.too_long(begin + 3 * PATIENCE - EVERY),
            [],
            "the time in which nothing was taken does not count"
        );
        assert_eq!(silence.too_long(begin + 3 * PATIENCE), [(0, NextOffset(5))]);
        told(3 * PATIENCE, &[]);
        assert_eq!(silence.too_long(begin + 9 * PATIENCE), []);
    }
}
