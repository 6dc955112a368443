//! Settings of WatchMsgs and WAIT_FOR_STORED.

use std::time::Duration;

use clap::Args;
use msg_common::config::{parse_bytes, parse_duration};

/// Limits and timeouts of WatchMsgs and WAIT_FOR_STORED.
#[derive(Args, Clone, Debug)]
pub struct WatchOptions {
    /// Number of database connections with which watches open and catch up; 1 or more. If all are in use, a new watch
    /// fails with RESOURCE_EXHAUSTED. New messages and WAIT_FOR_STORED use two other connections
    #[arg(long, env = "WATCH_CONNECTIONS", default_value_t = 4, value_name = "N")]
    pub watch_connections: usize,
    /// Maximum number of messages that callers wait for with WAIT_FOR_STORED. Above it, such sends fail with
    /// RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_STORED_WAITERS", default_value_t = 20_000, value_name = "N")]
    pub max_stored_waiters: usize,
    /// Maximum number of open WatchMsgs streams. Above it, new streams fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_WATCHERS", default_value_t = 20_000, value_name = "N")]
    pub max_watchers: usize,
    /// Maximum number of inboxes over all WatchMsgs streams. Above it, new streams fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_WATCHED_INBOXES", default_value_t = 200_000, value_name = "N")]
    pub max_watched_inboxes: usize,
    /// Maximum bytes of the newest messages of watched inboxes that are kept in memory. Messages beyond it are read
    /// from the table
    #[arg(long, env = "WATCH_CACHE_BYTES", default_value = "32MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub watch_cache_bytes: usize,
    /// Maximum bytes of messages that are read from the cache or table and not read by watchers. At it, watchers wait
    #[arg(long, env = "WATCH_BUFFER_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub watch_buffer_bytes: usize,
    /// Timeout for a watcher to read the next messages. After it, its stream fails with SLOW_READER
    #[arg(long, env = "WATCH_STALL_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub watch_stall_timeout: Duration,
    /// Time without a message after which a watcher gets a heartbeat
    #[arg(long, env = "HEARTBEAT_INTERVAL", default_value = "15s", value_parser = parse_duration, value_name = "TIME")]
    pub heartbeat_interval: Duration,
    /// Interval at which the table is queried for each watched inbox, even if no hint arrives
    #[arg(long, env = "WATCH_POLL_INTERVAL", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub watch_poll_interval: Duration,
}
