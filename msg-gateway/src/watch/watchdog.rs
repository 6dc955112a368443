//! Detects a stalled hint reader: a second client checks regularly that the topic is still the same, and that the
//! reader receives the topic's records. librdkafka reports neither (ADR 21).

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, Thread};
use std::time::{Duration, Instant};

use msg_common::error::chain;
use msg_common::kafka::ends::{self, Answers, Ends};
use msg_common::kafka::{ClientError, ClientSetup, KafkaClient, RequestError, raw};
use msg_common::partition::Partition;
use rdkafka::consumer::{BaseConsumer, Consumer};
use uuid::Uuid;

use crate::watch::callbacks::LogContext;

const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a record may be in the topic before the reader receives it.
const MAX_DELAY: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the hint reader has to be replaced.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StallError {
    #[error("the topic was recreated")]
    Recreated,
    #[error("the topic has {found} partitions, not {read} any more")]
    Partitions { read: usize, found: usize },
    #[error("the reader receives nothing of partition {0}, which has records")]
    Silent(i32),
}

/// Checks one hint reader until it is dropped.
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    /// The next offset of the reader in each partition.
    received: Mutex<HashMap<i32, i64>>,
    verdict: OnceLock<StallError>,
    done: AtomicBool,
}

impl Watchdog {
    /// Starts to check a reader that was just assigned the topic's `partitions` at their ends. Fails if the system has no
    /// thread for it.
    pub(crate) fn start(config: ClientSetup, topic: String, partitions: usize) -> io::Result<Self> {
        Watchdog::start_in(Builder::new(), config, topic, partitions)
    }

    fn start_in(thread: Builder, config: ClientSetup, topic: String, partitions: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let check =
            Checks { config, topic, partitions, shared: shared.clone(), topic_id: None, progress: HashMap::new() };
        let thread = thread.name("hints-check".into()).spawn(|| check.run())?;
        Ok(Watchdog { shared, thread: thread.thread().clone() })
    }

    /// Records that the reader received this record.
    pub(crate) fn received(&self, partition: i32, offset: i64) {
        self.shared.received.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, offset + 1);
    }

    /// Returns why the reader has to be replaced, if it has to.
    pub(crate) fn verdict(&self) -> Option<StallError> {
        self.shared.verdict.get().cloned()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

struct Checks {
    config: ClientSetup,
    topic: String,
    partitions: usize,
    shared: Arc<Shared>,
    topic_id: Option<Uuid>,
    progress: HashMap<i32, Progress>,
}

impl Checks {
    fn run(mut self) {
        let mut client = None;
        while !self.shared.done.load(Ordering::Relaxed) {
            match self.check(&mut client) {
                Ok(Some(reason)) => {
                    let _ = self.shared.verdict.set(reason);
                    return;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = chain(&error), "cannot check the hint reader");
                    // Use a new client for the next check: the old one may remember wrong metadata.
                    client = None;
                }
            }
            std::thread::park_timeout(CHECK_INTERVAL);
        }
    }

    fn check(
        &mut self,
        client: &mut Option<KafkaClient<BaseConsumer<LogContext>>>,
    ) -> Result<Option<StallError>, RequestError> {
        let client = match client {
            Some(client) => client,
            None => {
                let created = self.config.create_with_context(LogContext);
                client.insert(created.map_err(RequestError::create)?)
            }
        };
        // The client reads no records; polling it reports its errors.
        while client.poll(Duration::ZERO).is_some() {}
        let id = raw::topic_id(client.client(), &self.topic, REQUEST_TIMEOUT)?;
        if self.topic_id.is_some() && id.is_some() && id != self.topic_id {
            return Ok(Some(StallError::Recreated));
        }
        self.topic_id = self.topic_id.or(id);
        let count = partitions(client, &self.topic);
        let count = count.map_err(RequestError::of_topic("read the partitions", &self.topic))?;
        if count != self.partitions {
            return Ok(Some(StallError::Partitions { read: self.partitions, found: count }));
        }
        let all: Vec<Partition> = (0..Partition::try_from(count).unwrap_or(Partition::MAX)).collect();
        let mut found = Vec::new();
        ends::read(client.client(), &self.topic, &all, REQUEST_TIMEOUT, |ends| found.extend(ends))?;
        Ok(self.stalled(found, Instant::now()))
    }

    /// Returns the first partition that the reader is stalled in. A partition whose end is not known does not count: it
    /// has no leader, or its leader did not respond.
    fn stalled(&mut self, ends: Answers<Ends>, now: Instant) -> Option<StallError> {
        let received = self.shared.received.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ends.into_iter().filter_map(|(partition, ends)| Some((partition, ends.ok()?.end)));
        let mut stalled = known.filter(|(partition, end)| {
            let progress = self.progress.entry(*partition).or_insert_with(|| Progress::new(*end, now));
            progress.is_stalled(*end, received.get(partition).copied(), now)
        });
        stalled.next().map(|(partition, _)| StallError::Silent(partition))
    }
}

fn partitions(client: &BaseConsumer<LogContext>, topic: &str) -> Result<usize, ClientError> {
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    found.map(|found| found.partitions().len()).ok_or_else(|| ClientError::MissingTopic(topic.to_owned()))
}

/// The records that the reader must receive of a partition.
struct Progress {
    /// The end offset of the first check. The reader started at the end, so earlier records may not be for it.
    first: i64,
    /// The end offset at `since`, when the reader had received everything before it.
    expected: i64,
    since: Instant,
}

impl Progress {
    fn new(end: i64, now: Instant) -> Self {
        Progress { first: end, expected: end, since: now }
    }

    fn is_stalled(&mut self, end: i64, received: Option<i64>, now: Instant) -> bool {
        if received.unwrap_or(self.first).max(self.first) >= self.expected {
            (self.expected, self.since) = (end, now);
            return false;
        }
        now.saturating_duration_since(self.since) >= MAX_DELAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_is_stalled_if_it_does_not_receive_written_records() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut progress = Progress::new(7, start);
        assert!(!progress.is_stalled(7, None, at(100)), "no record is written");
        assert!(!progress.is_stalled(9, None, at(105)));
        assert!(!progress.is_stalled(12, Some(8), at(110)), "it may need some time");
        assert!(progress.is_stalled(12, Some(8), at(115)));
        assert!(
            !progress.is_stalled(12, Some(9), at(116)),
            "it has all records that existed when it was last complete"
        );
        assert!(!progress.is_stalled(30, Some(12), at(200)));
        assert!(!progress.is_stalled(30, Some(30), at(215)));
    }

    fn checks(partitions: usize) -> Checks {
        Checks {
            config: ClientSetup::default(),
            topic: "hints".to_owned(),
            partitions,
            shared: Arc::default(),
            topic_id: None,
            progress: HashMap::new(),
        }
    }

    #[test]
    fn partition_without_a_leader_does_not_hide_a_stalled_one() {
        let (mut checks, start) = (checks(3), Instant::now());
        let ends = |end: i64| -> Answers<Ends> {
            let until = |end| Ok(Ends { start: 0, stable: end, end });
            vec![(0, Err(ClientError::NoLeader)), (1, until(5)), (2, until(end))]
        };
        assert!(checks.stalled(ends(7), start).is_none());
        assert!(checks.stalled(ends(9), start + CHECK_INTERVAL).is_none(), "it may need some time");
        let stalled = checks.stalled(ends(9), start + CHECK_INTERVAL + MAX_DELAY);
        assert!(matches!(stalled, Some(StallError::Silent(2))), "{stalled:?}");
    }

    #[test]
    fn missing_thread_is_an_error() {
        // No system has this much memory for a stack.
        let thread = Builder::new().stack_size(1 << 60);
        let started = Watchdog::start_in(thread, ClientSetup::default(), "hints".to_owned(), 1);
        assert!(started.is_err());
    }
}
