//! Reads the hints topic, from its end on, while a waiter or watcher exists: in a thread of its own, without joining a
//! group.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use msg_common::error::{NO_THREAD, chain};
use msg_common::kafka::{ClientError, ClientSettings, ClientSetup, KafkaClient, RequestError};
use msg_common::proto::StoredHint;
use msg_common::repeat::Repeats;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use crate::metrics::{HINT_READERS_REPLACED, HINTS};
use crate::watch::WatchError;
use crate::watch::callbacks::LogContext;
use crate::watch::feed::Feed;
use crate::watch::hint_monitor::HintMonitor;
use crate::watch::waiters::Waiters;
use crate::watch::watchdog::{StallError, Watchdog};

/// How long it continues to read after the last waiter or watcher has ended: the next one usually follows soon.
const LINGER: Duration = Duration::from_secs(10);
/// The timeout of a request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before the next client is created.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often the thread checks whether hints are still wanted. A hint, or the first waiter or watcher, wakes it earlier.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

static UNDECODABLE: Repeats = Repeats::new();

/// Why the hints cannot be read.
#[derive(Debug, thiserror::Error)]
enum HintError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Stalled(#[from] StallError),
    #[error("{NO_THREAD}")]
    Thread(#[source] io::Error),
}

/// The reader of the hints topic.
pub(crate) struct HintReader {
    pub(crate) settings: ClientSettings,
    /// The settings of the client that checks the reader.
    pub(crate) check: ClientSettings,
    pub(crate) topic: String,
    pub(crate) monitor: Arc<HintMonitor>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) feed: Arc<Feed>,
}

impl HintReader {
    /// Adds the settings for reading new hints to those of the client.
    pub(crate) fn settings(mut client: ClientSetup) -> ClientSetup {
        client
            // librdkafka needs a group to read at all; no group is joined, and no offset is committed.
            .set("group.id", "msg-gateway-hints")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A reader that falls behind the retention continues at the end: hints may be lost.
            .set("auto.offset.reset", "latest")
            .set("enable.partition.eof", "true")
            // A broker responds to a fetch as soon as there is a hint; without hints, the fetches are rare.
            .set("fetch.min.bytes", "1")
            .set("fetch.wait.max.ms", "5000")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "4096");
        client
    }

    /// Starts the thread, which runs until `stop`. Fails if librdkafka rejects the settings, or if the system has no
    /// thread for it.
    pub(crate) fn start(self, stop: CancellationToken) -> Result<(), WatchError> {
        self.settings.current().0.config().create_native_config()?;
        let run = move || {
            self.monitor.set_reader_thread(std::thread::current());
            self.run(&stop);
        };
        std::thread::Builder::new().name("hints".into()).spawn(run).map_err(WatchError::Thread)?;
        Ok(())
    }

    fn run(&self, stop: &CancellationToken) {
        let repeats = Repeats::new();
        while !stop.is_cancelled() {
            if !self.monitor.has_interest() {
                std::thread::park_timeout(POLL_INTERVAL);
                continue;
            }
            let followed = self.follow(stop);
            self.monitor.set_caught_up(false);
            let Err(error) = followed else { continue };
            counter!(HINT_READERS_REPLACED).increment(1);
            let error = chain(&error);
            if let Some(repeated) = repeats.occurred(&error) {
                tracing::warn!(topic = self.topic, error, repeated, "cannot read hints, polling the table instead");
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Reads hints until the last waiter or watcher has ended, or the files of the settings have changed. Fails if the
    /// topic cannot be read, or if the client is stalled. It uses a new client each time: an old one may keep wrong leaders and leader epochs indefinitely (ADR
    /// 21).
    fn follow(&self, stop: &CancellationToken) -> Result<(), HintError> {
        let (config, created_at) = self.settings.current();
        let created = config.create_with_context(LogContext);
        let consumer: KafkaClient<BaseConsumer<LogContext>> = created.map_err(RequestError::create)?;
        let partitions =
            self.assign(&consumer).map_err(RequestError::of_topic("assign the partitions", &self.topic))?;
        let watchdog = Watchdog::start(self.check.current().0, self.topic.clone(), partitions);
        let watchdog = watchdog.map_err(HintError::Thread)?;
        let mut wanted = Instant::now();
        while !stop.is_cancelled() {
            if self.monitor.has_interest() {
                wanted = Instant::now();
            } else if wanted.elapsed() > LINGER {
                return Ok(());
            }
            if self.settings.changed_since(created_at) {
                return Ok(());
            }
            if let Some(reason) = watchdog.verdict() {
                return Err(reason.into());
            }
            match consumer.poll(POLL_INTERVAL) {
                None => {}
                Some(Ok(record)) => {
                    self.monitor.set_caught_up(true);
                    watchdog.received(record.partition(), record.offset());
                    self.pass_on(record.payload().unwrap_or_default());
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.monitor.set_caught_up(true),
                Some(Err(error)) => {
                    tracing::debug!(%error, "cannot read hints");
                    self.monitor.set_caught_up(false);
                    if !is_transient(&error) {
                        return Err(RequestError::of_topic("read a hint", &self.topic)(error).into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Assigns all partitions, from their ends. Returns their number.
    fn assign(&self, consumer: &BaseConsumer<LogContext>) -> Result<usize, ClientError> {
        let metadata = consumer.fetch_metadata(Some(&self.topic), TIMEOUT)?;
        let found = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        let found = found.filter(|topic| topic.error().is_none() && !topic.partitions().is_empty());
        let mut list = TopicPartitionList::new();
        for partition in found.ok_or_else(|| ClientError::MissingTopic(self.topic.clone()))?.partitions() {
            list.add_partition_offset(&self.topic, partition.id(), Offset::End)?;
        }
        consumer.assign(&list)?;
        Ok(list.count())
    }

    fn pass_on(&self, payload: &[u8]) {
        match StoredHint::decode(payload) {
            Ok(hint) => {
                counter!(HINTS, "outcome" => "READ").increment(1);
                self.waiters.hinted(&hint);
                self.feed.hinted(&hint);
            }
            Err(error) => {
                counter!(HINTS, "outcome" => "UNDECODABLE").increment(1);
                if let Some(repeated) = UNDECODABLE.occurred("") {
                    tracing::warn!(%error, repeated, "cannot decode a hint");
                }
            }
        }
    }
}

/// Returns whether the client recovers from the error by itself.
fn is_transient(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| matches!(code, Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve))
}
