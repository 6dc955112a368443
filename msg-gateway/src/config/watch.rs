//! Settings of WatchMsgs and of waiting until a message is stored.

use std::time::Duration;

use clap::Args;
use msg_common::config::{parse_bytes, parse_duration};

/// Limits and intervals of waiters and watchers.
#[derive(Args, Clone, Debug)]
pub struct WatchOptions {
    /// Connections to the database over which watches open and catch up; 1 or more. Live delivery and WAIT_FOR_STORED have two
    /// more of their own
    #[arg(long, env = "LIVE_CONNECTIONS", default_value_t = 4, value_name = "N")]
    pub live_connections: usize,
    /// Most messages at a time that callers wait for until they are stored
    #[arg(long, env = "MAX_WAITING_MSGS", default_value_t = 20_000, value_name = "N")]
    pub max_waiting_msgs: usize,
    /// Most WatchMsgs streams at a time
    #[arg(long, env = "MAX_WATCHERS", default_value_t = 20_000, value_name = "N")]
    pub max_watchers: usize,
    /// Most inboxes over all of these streams
    #[arg(long, env = "MAX_WATCHED_INBOXES", default_value_t = 200_000, value_name = "N")]
    pub max_watched_inboxes: usize,
    /// How much of what was stored last in the watched inboxes is kept in memory
    #[arg(long, env = "WATCH_CACHE_BYTES", default_value = "32MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub watch_cache_bytes: usize,
    /// Most bytes that were read for watchers and not yet taken by them
    #[arg(long, env = "WATCH_BUFFER_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub watch_buffer_bytes: usize,
    /// How long a watcher may take nothing while there is something for it, before its stream is ended
    #[arg(long, env = "WATCH_STALL_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub watch_stall_timeout: Duration,
    /// After how long without a message a watcher gets a sign of life
    #[arg(long, env = "HEARTBEAT_INTERVAL", default_value = "15s", value_parser = parse_duration, value_name = "TIME")]
    pub heartbeat_interval: Duration,
    /// How often each watched inbox is looked at though no hint told of it
    #[arg(long, env = "LOOK_INTERVAL", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub look_interval: Duration,
}
