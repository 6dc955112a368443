//! What is told as it is stored: who waits for a message of their own, and who watches inboxes.
//!
//! The transfer writes a hint after each batch: which inboxes, and how far they reach now. Nothing rests on it but speed:
//! what counts is the row, and what no hint tells of is found by looking at the table from time to time.

mod callbacks;
pub mod digest;
pub mod feed;
pub mod feed_reader;
pub mod hint_monitor;
pub mod hint_reader;
pub mod pending_inboxes;
pub mod queries;
pub mod stream;
pub mod verdict;
pub mod waiter_queue;
pub mod waiters;
pub mod watchdog;
pub mod watched;
mod watcher;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::metrics::WatchGauges;
use crate::watch::feed::Feed;
use crate::watch::feed_reader::FeedReader;
use crate::watch::hint_monitor::HintMonitor;
use crate::watch::hint_reader::HintReader;
use crate::watch::queries::WatchQueries;
use crate::watch::waiters::Waiters;
use crate::watch::watched::Watches;

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The pool cannot be made.
    #[error("database pool: {0}")]
    Database(String),
    /// Librdkafka refuses its settings.
    #[error("kafka client: {0}")]
    Kafka(#[from] KafkaError),
}

/// Those who wait and those who watch.
#[derive(Clone, Default)]
pub struct WatchServices {
    /// Who waits for a message.
    pub waiters: Arc<Waiters>,
    /// Who watches; `None` without a database.
    pub watches: Option<Arc<Watches>>,
}

impl WatchServices {
    /// Starts what they need, until `stop`: the reader of the hints, and two tasks that ask the table.
    pub fn start(config: &Config, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Self, WatchError> {
        if !config.database.is_given() {
            return Ok(WatchServices::default());
        }
        let options = &config.watch;
        let queries = WatchQueries::new(&config.database, options.live_connections).map_err(WatchError::Database)?;
        let queries = Arc::new(queries);
        let monitor = Arc::new(HintMonitor::default());
        let feed = Arc::new(Feed::new(options.watch_cache_bytes));
        let waiters = Arc::new(Waiters::new(queries.clone(), options.max_waiting_msgs, monitor.clone()));
        let reader = FeedReader {
            feed: feed.clone(),
            queries: queries.clone(),
            monitor: monitor.clone(),
            round: options.look_interval,
        };
        if let Some(topic) = config.kafka.hints_topic() {
            let settings = HintReader::settings(config.kafka.client_config());
            let (waiters, feed, monitor) = (waiters.clone(), feed.clone(), monitor.clone());
            HintReader { config: settings, topic, monitor, waiters, feed }.start(stop.clone())?;
        }
        tasks.spawn(reader.run(stop.clone()));
        tasks.spawn(waiters.clone().run(stop.clone()));
        let watches = Watches::new(feed.clone(), queries, monitor.clone(), config);
        let watches = Arc::new(watches);
        tasks.spawn(update_gauges(waiters.clone(), watches.clone(), feed, monitor, stop.clone()));
        Ok(WatchServices { waiters, watches: Some(watches) })
    }
}

/// Looks at what changes all the time, from time to time.
async fn update_gauges(
    waiters: Arc<Waiters>,
    watches: Arc<Watches>,
    feed: Arc<Feed>,
    monitor: Arc<HintMonitor>,
    stop: CancellationToken,
) {
    let gauges = WatchGauges::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => return,
        }
        let (streams, inboxes) = watches.usage();
        gauges.waiting.set(waiters.count() as f64);
        gauges.watchers.set(streams as f64);
        gauges.inboxes.set(inboxes as f64);
        gauges.cached.set(feed.bytes() as f64);
        gauges.hints.set(f64::from(u8::from(monitor.is_reliable())));
    }
}
