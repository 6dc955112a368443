//! The gateway's settings, each by flag or by environment, and what may be wrong with them together.

mod replica;
pub mod send;
mod watch;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use msg_common::config::{Check, beyond_loopback, number_problem, parse_bytes, parse_duration, time_problem};
use msg_common::kafka::topic::TopicRequirements;
use msg_common::kafka::{KafkaOptions, Role, creation_problem};
use msg_common::limits::{Limits, MAX_ID_BYTES, MAX_REQUEST_MSGS};
use msg_common::postgres::DatabaseOptions;
use msg_common::telemetry::LogOptions;

pub use self::replica::ReplicaOptions;
use self::send::SendOptions;
pub use self::watch::WatchOptions;
use crate::incoming::Age;
use crate::producer::settings;

/// Takes messages in over gRPC and answers once Kafka has them for good; gives stored ones out.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Config {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How callers reach it.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Where to serve gRPC
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where to serve /metrics, /healthz and /readyz, which hold no message and no secret, in plain HTTP
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    pub admin_listen: SocketAddr,
    /// Accepts that gRPC beyond loopback is served in plain text
    #[arg(long, env = "ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
    /// How messages are sent.
    #[command(flatten)]
    pub send: SendOptions,
    /// What is told as it is stored.
    #[command(flatten)]
    pub watch: WatchOptions,
    /// Connections to the database, for reads; 1 or more
    #[arg(long, env = "READ_CONNECTIONS", default_value_t = 8, value_name = "N")]
    pub read_connections: usize,
    /// Most reads at a time, until their answers are sent, which have up to 4 MiB each; as many questions for a message's
    /// status; and 4 times as many of each may wait
    #[arg(long, env = "MAX_READS", default_value_t = 32, value_name = "N")]
    pub max_reads: usize,
    /// The cluster and the topic.
    #[command(flatten)]
    pub kafka: KafkaOptions,
    /// What the topic must be like.
    #[command(flatten)]
    pub requirements: TopicRequirements,
    /// What a message may hold.
    #[command(flatten)]
    pub limits: Limits,
    /// Where stored messages are read.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// A copy that some of it is read from.
    #[command(flatten)]
    pub replica: ReplicaOptions,
    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// What the executable does instead of serving.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Asks the gateway on this machine whether it is ready; the exit code says so
    Healthcheck,
}

/// Connections, and how they end.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Most connections at a time; further ones are closed at once
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 4096, value_name = "N")]
    pub max_connections: usize,
    /// Most calls at a time on one connection
    #[arg(long, env = "MAX_CONCURRENT_STREAMS", default_value_t = 1024, value_name = "N")]
    pub max_concurrent_streams: u32,
    /// Largest request, such as 4MiB; unset: 4MiB, or the largest message where that is more
    #[arg(long, env = "MAX_REQUEST_BYTES", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_request_bytes: Option<usize>,
    /// How long a request may take to arrive in full; on a stream, each of its requests
    #[arg(long, env = "MAX_ARRIVAL_TIME", default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    pub max_arrival_time: Duration,
    /// Most bytes of requests that have not arrived in full yet, over all connections; and of those that wait for room
    #[arg(long, env = "MAX_ARRIVING_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_arriving_bytes: usize,
    /// Maximum number of open calls over all connections, each until its response is read; a call needs up to 32 KiB besides what
    /// other settings limit. Above it, calls fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_OPEN_CALLS", default_value_t = 32_768, value_name = "N")]
    pub max_open_calls: usize,
    /// Maximum bytes of responses that are not read yet, over all connections: of reads, and of batches of more than 5 messages.
    /// Above it, reads wait and batches fail with RESOURCE_EXHAUSTED before anything is sent
    #[arg(long, env = "MAX_RESPONSE_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_response_bytes: usize,
    /// Whether gRPC reflection is served, which describes the contract to tools such as grpcurl
    #[arg(long, env = "REFLECTION", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub reflection: bool,
    /// How long a new connection may take until it speaks HTTP/2, before it is closed
    #[arg(long, env = "HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub handshake_timeout: Duration,
    /// After how long without traffic a caller is asked whether it is still there
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub keepalive_interval: Duration,
    /// How long it has to answer
    #[arg(long, env = "KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    pub keepalive_timeout: Duration,
    /// How long a caller may take to receive the answer to a read or a batch, or take nothing of a stream of results, before
    /// its connection is ended: only so many answers are kept at a time
    #[arg(long, env = "ANSWER_TIMEOUT", default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    pub answer_timeout: Duration,
    /// After how long a connection is asked to end, so that callers spread anew; unset: never
    #[arg(long, env = "MAX_CONNECTION_AGE", value_parser = parse_duration, value_name = "TIME")]
    pub max_connection_age: Option<Duration>,
    /// How long its calls may then take before they are cut off; streams end by themselves in the first half of it
    #[arg(
        long,
        env = "MAX_CONNECTION_AGE_GRACE",
        default_value = "30s",
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub max_connection_age_grace: Duration,
    /// How long it goes on serving as not ready when told to stop, for load balancers to notice
    #[arg(long, env = "SHUTDOWN_DELAY", default_value = "0s", value_parser = parse_duration, value_name = "TIME")]
    pub shutdown_delay: Duration,
    /// How long calls may then take to end, and records to be delivered
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub drain_timeout: Duration,
}

impl ServerOptions {
    /// How old a connection may get.
    pub(crate) fn age(&self) -> Option<Age> {
        self.max_connection_age.map(|max| Age { max, grace: self.max_connection_age_grace })
    }
}

impl Check for Config {
    fn problems(&self) -> Vec<String> {
        if self.command.is_some() {
            return self.log.problems();
        }
        let mut problems = self.kafka.problems();
        problems.extend(self.database.problems());
        problems.extend(self.replica.problems(&self.database));
        problems.extend(self.log.problems());
        problems.extend(beyond_loopback("--listen", self.listen, self.allow_plaintext, "--allow-plaintext"));
        if self.listen == self.admin_listen && self.listen.port() != 0 {
            problems.push(format!("--listen and --admin-listen are the same address, {}", self.listen));
        }
        problems.extend(self.limit_problems());
        problems.extend(self.send.problems());
        problems.extend(self.times().into_iter().filter_map(|(flag, value, range)| time_problem(flag, value, &range)));
        problems
            .extend(self.numbers().into_iter().filter_map(|(flag, value, range)| number_problem(flag, value, &range)));
        if self.send.max_untaken_results < MAX_REQUEST_MSGS {
            problems.push(format!(
                "--max-untaken-results must be at least {MAX_REQUEST_MSGS}, as many as a request may have"
            ));
        }
        if problems.is_empty() {
            let client = settings::producer(&self.kafka, &self.limits, &self.send);
            problems.extend(creation_problem(&client, Role::Producer));
        }
        problems
    }
}

impl Config {
    /// The ranges that need no explanation. A timeout of an hour is longer than anything waits for; a day is longer than any pause.
    fn times(&self) -> Vec<(&'static str, Duration, RangeInclusive<Duration>)> {
        const SHORTEST: Duration = Duration::from_millis(100);
        const HOUR: Duration = Duration::from_secs(3600);
        const DAY: Duration = Duration::from_secs(86_400);
        let mut times = vec![
            ("--max-arrival-time", self.server.max_arrival_time, SHORTEST..=HOUR),
            ("--handshake-timeout", self.server.handshake_timeout, SHORTEST..=HOUR),
            ("--keepalive-interval", self.server.keepalive_interval, SHORTEST..=DAY),
            ("--keepalive-timeout", self.server.keepalive_timeout, SHORTEST..=HOUR),
            ("--answer-timeout", self.server.answer_timeout, SHORTEST..=HOUR),
            ("--max-connection-age-grace", self.server.max_connection_age_grace, Duration::ZERO..=DAY),
            ("--shutdown-delay", self.server.shutdown_delay, Duration::ZERO..=HOUR),
            ("--drain-timeout", self.server.drain_timeout, Duration::ZERO..=HOUR),
            ("--watch-stall-timeout", self.watch.watch_stall_timeout, SHORTEST..=HOUR),
            ("--heartbeat-interval", self.watch.heartbeat_interval, SHORTEST..=DAY),
            ("--look-interval", self.watch.look_interval, SHORTEST..=DAY),
        ];
        times.extend(self.server.max_connection_age.map(|age| ("--max-connection-age", age, SHORTEST..=365 * DAY)));
        times
    }

    fn numbers(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        // The kernel's own limit of connections to one address, and more memory than any machine has.
        const MOST: usize = 10_000_000;
        const MAX_BYTES: usize = 1 << 40;
        vec![
            ("--read-connections", self.read_connections, 1..=10_000),
            ("--max-reads", self.max_reads, 1..=100_000),
            ("--live-connections", self.watch.live_connections, 1..=10_000),
            ("--watch-cache-bytes", self.watch.watch_cache_bytes, 0..=MAX_BYTES),
            ("--watch-buffer-bytes", self.watch.watch_buffer_bytes, 1..=MAX_BYTES),
            ("--max-waiting-msgs", self.watch.max_waiting_msgs, 0..=MOST),
            ("--max-watchers", self.watch.max_watchers, 0..=MOST),
            ("--max-watched-inboxes", self.watch.max_watched_inboxes, 0..=MOST),
            ("--max-connections", self.server.max_connections, 1..=MOST),
            ("--max-open-calls", self.server.max_open_calls, 1..=MOST),
            ("--max-response-bytes", self.server.max_response_bytes, 1..=MAX_BYTES),
            ("--max-concurrent-streams", self.server.max_concurrent_streams as usize, 1..=MOST),
            ("--max-arriving-bytes", self.server.max_arriving_bytes, 1..=MAX_BYTES),
            ("--max-stream-inflight-msgs", self.send.max_stream_inflight_msgs, 1..=MOST),
            ("--max-send-streams", self.send.max_send_streams, 1..=MOST),
            ("--max-batches", self.send.max_batches, 1..=MOST),
            ("--max-untaken-results", self.send.max_untaken_results, 0..=MOST),
        ]
    }

    /// The largest request that is read.
    pub fn max_request_bytes(&self) -> usize {
        // As other gRPC servers have it, and clients of their replies.
        const USUAL: usize = 4 << 20;
        self.server.max_request_bytes.unwrap_or_else(|| USUAL.max(self.limits.max_record_bytes()))
    }

    fn limit_problems(&self) -> Vec<String> {
        // librdkafka's message.max.bytes ends at 1,000,000,000.
        const MAX_CONTENT: usize = 900 << 20;
        let mut problems = Vec::new();
        if !(1..=MAX_ID_BYTES).contains(&self.limits.max_id_bytes) {
            problems.push(format!("--max-id-bytes must be 1 to {MAX_ID_BYTES}"));
        }
        if self.limits.max_content_bytes > MAX_CONTENT {
            problems.push("--max-content-bytes must be at most 900MiB".into());
            return problems;
        }
        let record = self.limits.max_record_bytes();
        let request = self.max_request_bytes();
        for (flag, value, what, least) in [
            ("--max-inflight-bytes", self.send.max_inflight_bytes, "message", record),
            ("--max-request-bytes", request, "message", record),
            ("--max-arriving-bytes", self.server.max_arriving_bytes, "request", request),
        ] {
            if value < least {
                problems.push(format!("{flag} must hold one {what} at least, which may take {least} bytes"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use msg_common::config::{Refusal, read};

    use super::*;

    fn read_words(words: &str) -> Result<Config, Vec<String>> {
        let words = std::iter::once("msg-gateway").chain(words.split_whitespace()).map(OsString::from);
        read(words).map_err(|refusal| match refusal {
            Refusal::Problems(problems) => problems,
            Refusal::Answer(answer) => panic!("{answer}"),
        })
    }

    #[test]
    fn the_defaults_are_good() {
        let config = read_words("").expect("they are good");
        assert_eq!(config.send.topic_partitions, 16);
        assert!(config.send.max_send_wait < config.send.delivery_timeout);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let problems = read_words(
            "--listen 0.0.0.0:1 --max-send-wait 30s --topic-partitions 0 --max-inflight-bytes 1KiB --max-id-bytes 2000 \
             --read-connections 0",
        )
        .expect_err("they are bad");
        for flag in [
            "--listen",
            "--max-send-wait",
            "--topic-partitions",
            "--max-inflight-bytes",
            "--max-id-bytes",
            "--read-connections",
        ] {
            assert_eq!(problems.iter().filter(|problem| problem.starts_with(flag)).count(), 1, "{flag}: {problems:?}");
        }
        assert_eq!(problems.len(), 6, "{problems:?}");
    }

    #[test]
    fn the_largest_request_holds_the_largest_message() {
        assert_eq!(read_words("").expect("they are good").max_request_bytes(), 4 << 20);
        let large = read_words("--max-content-bytes 10MiB").expect("they are good");
        assert_eq!(large.max_request_bytes(), large.limits.max_record_bytes());
        for words in [
            "--max-request-bytes 1000KiB",
            "--max-request-bytes 65MiB",
            "--max-stream-inflight-msgs 0",
            "--max-untaken-results 999",
            "--max-reads 0",
        ] {
            assert_eq!(read_words(words).expect_err("it is bad").len(), 1, "{words}");
        }
    }

    #[test]
    fn a_replica_is_one_of_a_database() {
        let problems = |words| read_words(words).expect_err("it is bad");
        let alone = problems("--replica-url postgres://replica/x");
        assert_eq!(alone, ["--replica-url is given without --database-url"]);
        let bad = problems("--database-url postgres://primary/x --replica-url postgres://replica:port/x");
        assert!(bad.len() == 1 && bad[0].starts_with("--replica-url: "), "{bad:?}");
        let missing = problems("--database-url postgres://primary/x --replica-url-file /nowhere/at/all");
        assert!(missing.len() == 1 && missing[0].starts_with("--replica-url-file: "), "{missing:?}");
        let config = read_words("--database-url postgres://primary/x --replica-url postgres://replica/x");
        let config = config.expect("it is good");
        assert!(config.replica.database(&config.database).is_some());
        // What is left of an unset variable.
        let config = read_words("--database-url postgres://primary/x --replica-url=").expect("it is good");
        assert!(config.replica.database(&config.database).is_none());
    }

    #[test]
    fn plain_text_beyond_loopback_has_to_be_allowed() {
        assert!(read_words("--listen 0.0.0.0:1 --allow-plaintext").is_ok());
        assert!(read_words("--admin-listen 0.0.0.0:1").is_ok());
    }
}
