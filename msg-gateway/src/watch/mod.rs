//! The callers that wait until a message is stored, and the callers that watch inboxes.
//!
//! After each batch, the transfer writes a hint: which inboxes have new rows, and the last `seq` of each. If the rows are
//! fresh, it describes them too, and waiters get their results from it. Without hints, polling the table finds the rows.

mod callbacks;
pub(crate) mod feed;
pub(crate) mod feed_reader;
pub(crate) mod hint_monitor;
pub(crate) mod hint_reader;
pub(crate) mod hinted_rows;
pub(crate) mod message_key;
pub(crate) mod pending_inboxes;
pub(crate) mod queries;
pub mod stream;
pub(crate) mod verdict;
pub(crate) mod waiter_queue;
pub(crate) mod waiters;
pub(crate) mod watchdog;
pub(crate) mod watched;
mod watcher;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use msg_common::config::SettingError;
use msg_common::error::NO_THREAD;
use msg_common::kafka::{ClientPurpose, ClientSettings};
use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::budget::Budgets;
use crate::config::Config;
use crate::metrics::WatchGauges;
use crate::watch::feed::Feed;
use crate::watch::feed_reader::FeedReader;
use crate::watch::hint_monitor::HintMonitor;
use crate::watch::hint_reader::HintReader;
use crate::watch::queries::WatchQueries;
use crate::watch::waiters::Waiters;
use crate::watch::watched::Watches;

/// How long to wait after a failed query.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Why the watch services could not start.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The settings of the database cannot be used.
    #[error(transparent)]
    Database(#[from] SettingError),
    /// librdkafka rejected its settings.
    #[error("kafka client: {0}")]
    Kafka(#[from] KafkaError),
    /// The system has no thread for the hint reader.
    #[error("{NO_THREAD}: {0}")]
    Thread(io::Error),
}

/// The services for waiters and watchers.
#[derive(Clone)]
pub(crate) struct WatchServices {
    pub(crate) waiters: Arc<Waiters>,
    /// `None` without a database.
    pub(crate) watches: Option<Arc<Watches>>,
}

impl WatchServices {
    /// Starts the hint reader and the two tasks that query the table. They run until `stop`. `topic_id` is the ID of the
    /// topic that the gateway writes to.
    pub(crate) fn start(
        config: &Config,
        budgets: &Budgets,
        topic_id: Arc<ArcSwapOption<Uuid>>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, WatchError> {
        let monitor = Arc::new(HintMonitor::default());
        if !config.database.is_given() {
            let waiters = Arc::new(Waiters::new(None, budgets.stored_waiters.clone(), monitor, topic_id));
            return Ok(WatchServices { waiters, watches: None });
        }
        let options = &config.watch;
        let queries = WatchQueries::new(&config.database, options.watch_connections, budgets.catch_ups.clone());
        let queries = Arc::new(queries?);
        let feed = Arc::new(Feed::new(options.watch_cache_bytes));
        let waiters = Waiters::new(Some(queries.clone()), budgets.stored_waiters.clone(), monitor.clone(), topic_id);
        let waiters = Arc::new(waiters);
        let reader = FeedReader {
            feed: feed.clone(),
            queries: queries.clone(),
            monitor: monitor.clone(),
            round: options.watch_poll_interval,
        };
        if let Some(topic) = config.kafka.hints_topic() {
            let settings = |purpose| {
                ClientSettings::new(&config.kafka, move |kafka| HintReader::settings(kafka.client_config(purpose)))
            };
            let (settings, check) = (settings(ClientPurpose::HintReader), settings(ClientPurpose::HintCheck));
            let (waiters, feed, monitor) = (waiters.clone(), feed.clone(), monitor.clone());
            HintReader { settings, check, topic, monitor, waiters, feed }.start(stop.clone())?;
        }
        tasks.spawn(reader.run(stop.clone()));
        tasks.spawn(waiters.clone().run(stop.clone()));
        let watches = Watches::new(feed.clone(), queries, monitor.clone(), budgets, config);
        let watches = Arc::new(watches);
        tasks.spawn(update_gauges(feed, monitor, stop.clone()));
        Ok(WatchServices { waiters, watches: Some(watches) })
    }
}

/// Sets the gauges every second.
async fn update_gauges(feed: Arc<Feed>, monitor: Arc<HintMonitor>, stop: CancellationToken) {
    let gauges = WatchGauges::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => return,
        }
        gauges.cached.set(feed.bytes() as f64);
        gauges.hints.set(f64::from(u8::from(monitor.is_reliable())));
    }
}
