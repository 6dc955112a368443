//! What is told as it is stored: who waits for a message of their own, and who watches inboxes.
//!
//! The transfer writes a hint after each batch: which inboxes, and how far they reach now. Nothing rests on it but speed:
//! what counts is the row, and what no hint tells of is found by looking at the table from time to time.

mod callbacks;
pub mod digest;
pub mod feed;
pub mod look;
pub mod mailbox;
pub mod pulse;
pub mod reader;
pub mod tail;
pub mod verdict;
pub mod wait;
pub mod waiting;
pub mod watch;
pub mod watchdog;
pub mod watched;
mod watcher;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::live::feed::Feed;
use crate::live::look::Looker;
use crate::live::pulse::Pulse;
use crate::live::reader::Reader;
use crate::live::tail::Tail;
use crate::live::wait::Waiters;
use crate::live::watched::Watches;
use crate::metrics::LiveLevels;

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The pool cannot be made.
    #[error("database pool: {0}")]
    Database(String),
    /// Librdkafka refuses its settings.
    #[error("kafka client: {0}")]
    Kafka(#[from] KafkaError),
}

/// Those who wait and those who watch.
#[derive(Clone, Default)]
pub struct Live {
    /// Who waits for a message.
    pub waiters: Arc<Waiters>,
    /// Who watches; `None` without a database.
    pub watches: Option<Arc<Watches>>,
}

impl Live {
    /// Starts what they need, until `stop`: the reader of the hints, and two tasks that ask the table.
    pub fn start(config: &Config, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Self, LiveError> {
        if !config.database.is_given() {
            return Ok(Live::default());
        }
        let options = &config.live;
        let looker = Looker::new(&config.database, options.live_connections).map_err(LiveError::Database)?;
        let looker = Arc::new(looker);
        let pulse = Arc::new(Pulse::default());
        let feed = Arc::new(Feed::new(options.watch_cache_bytes));
        let waiters = Arc::new(Waiters::new(looker.clone(), options.max_waiting_msgs, pulse.clone()));
        let reader =
            Reader { feed: feed.clone(), looker: looker.clone(), pulse: pulse.clone(), round: options.look_interval };
        if let Some(topic) = config.kafka.hints_topic() {
            let settings = Tail::settings(config.kafka.client_config());
            let (waiters, feed, pulse) = (waiters.clone(), feed.clone(), pulse.clone());
            Tail { config: settings, topic, pulse, waiters, feed }.start(stop.clone())?;
        }
        tasks.spawn(reader.run(stop.clone()));
        tasks.spawn(waiters.clone().run(stop.clone()));
        let watches = Watches::new(feed.clone(), looker, pulse.clone(), config);
        let watches = Arc::new(watches);
        tasks.spawn(watch_levels(waiters.clone(), watches.clone(), feed, pulse, stop.clone()));
        Ok(Live { waiters, watches: Some(watches) })
    }
}

/// Looks at what changes all the time, from time to time.
async fn watch_levels(
    waiters: Arc<Waiters>,
    watches: Arc<Watches>,
    feed: Arc<Feed>,
    pulse: Arc<Pulse>,
    stop: CancellationToken,
) {
    let levels = LiveLevels::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => return,
        }
        let (streams, inboxes) = watches.taken();
        levels.waiting.set(waiters.seats() as f64);
        levels.watchers.set(streams as f64);
        levels.inboxes.set(inboxes as f64);
        levels.cached.set(feed.bytes() as f64);
        levels.hints.set(f64::from(u8::from(pulse.is_reliable())));
    }
}
