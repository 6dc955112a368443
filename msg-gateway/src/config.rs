//! Owns the gateway's settings, which are flags or environment variables, and the rules between them.

pub mod auth;
pub(crate) mod producer;
mod quota;
mod replica;
pub mod send;
mod tls;
mod watch;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use msg_common::admin::{AdminAddress, AdminTlsOptions};
use msg_common::config::{Check, beyond_loopback, number_problem, parse_bytes, parse_duration, time_problem};
use msg_common::kafka::topic::TopicRequirements;
use msg_common::kafka::{KafkaOptions, Role};
use msg_common::limits::{Limits, MAX_ID_BYTES, MAX_REQUEST_MSGS};
use msg_common::postgres::DatabaseOptions;
use msg_common::telemetry::LogOptions;

use self::auth::{AuthMode, AuthOptions};
pub use self::quota::QuotaOptions;
pub use self::replica::ReplicaOptions;
use self::send::SendOptions;
pub use self::tls::TlsOptions;
pub use self::watch::WatchOptions;

/// Accepts messages over gRPC once Kafka has them on every in-sync replica, and serves the stored ones.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Config {
    /// Command to run; without one, the gateway serves
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    /// Address on which gRPC is served
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Address or Unix socket (unix:/path) on which /metrics, /healthz and /readyz are served over HTTP. They contain no
    /// message and no secret
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    pub admin_listen: AdminAddress,
    /// TLS of the admin port.
    #[command(flatten)]
    pub admin_tls: AdminTlsOptions,
    /// TLS of gRPC.
    #[command(flatten)]
    pub tls: TlsOptions,
    /// Accept that gRPC is served in plain text beyond loopback. Without it and without --tls-cert-file, such an address
    /// is rejected at startup
    #[arg(long, env = "ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
    #[command(flatten)]
    pub(crate) auth: AuthOptions,
    #[command(flatten)]
    pub(crate) quota: QuotaOptions,
    #[command(flatten)]
    pub(crate) send: SendOptions,
    #[command(flatten)]
    pub(crate) watch: WatchOptions,
    /// Number of database connections for reads; 1 or more. A replica has as many in addition
    #[arg(long, env = "READ_CONNECTIONS", default_value_t = 8, value_name = "N")]
    pub read_connections: usize,
    /// Maximum number of concurrent PullMsgs and GetMaxSeqs calls, each until its response of up to 4 MiB is read, and
    /// again of GetMsgStatus calls. Up to 4 times as many of each wait; above that, calls fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_READS", default_value_t = 32, value_name = "N")]
    pub max_reads: usize,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    #[command(flatten)]
    pub(crate) requirements: TopicRequirements,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) database: DatabaseOptions,
    #[command(flatten)]
    pub(crate) replica: ReplicaOptions,
    /// The level and the format of the log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// The commands that end by themselves.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Check whether the gateway on this machine is ready: exit code 0 if it is, 1 if not
    Healthcheck,
}

/// Limits and timeouts of connections and calls.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Maximum number of connections, and with --auth-mode of open health checks. Above it, new ones are closed or fail
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 4096, value_name = "N")]
    pub max_connections: usize,
    /// Maximum number of concurrent calls on one connection. Above it, calls wait in the caller's gRPC library
    #[arg(long, env = "MAX_CONCURRENT_STREAMS", default_value_t = 1024, value_name = "N")]
    pub max_concurrent_streams: u32,
    /// Maximum size of a request, such as 4MiB. A larger request fails with RESOURCE_EXHAUSTED and is not read
    /// [default: 4MiB, or the size of the largest message if that is larger]
    #[arg(long, env = "MAX_REQUEST_BYTES", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_request_bytes: Option<usize>,
    /// Timeout for receiving a request completely; on a stream, for each of its requests. After it, the call fails with
    /// UNAVAILABLE
    #[arg(long, env = "REQUEST_RECEIVE_TIMEOUT", default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    pub request_receive_timeout: Duration,
    /// Maximum bytes of partially received requests over all connections, and again of stream requests that wait for
    /// capacity. Above it, calls fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_BUFFERED_REQUEST_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_buffered_request_bytes: usize,
    /// Maximum number of open calls over all connections, each until its response is read. A call needs up to 32 KiB in
    /// addition to what other settings limit. Above it, calls fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "MAX_OPEN_CALLS", default_value_t = 32_768, value_name = "N")]
    pub max_open_calls: usize,
    /// Maximum bytes of responses that are not read yet, over all connections: of reads, and of batches of more than 5
    /// messages. Above it, reads wait, and batches fail with RESOURCE_EXHAUSTED before anything is sent
    #[arg(long, env = "MAX_RESPONSE_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_response_bytes: usize,
    /// Serve gRPC reflection, which describes the contract to tools such as grpcurl. With --auth-mode, it needs the
    /// same credentials as other calls [default: true, or false with --auth-mode]
    #[arg(long, env = "REFLECTION", action = ArgAction::Set, value_name = "BOOL")]
    pub reflection: Option<bool>,
    /// Timeout for the TLS and HTTP/2 handshakes of a new connection together. After it, the connection is closed
    #[arg(long, env = "HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub handshake_timeout: Duration,
    /// Time without traffic on a connection after which the gateway sends a keepalive ping
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub keepalive_interval: Duration,
    /// Timeout for the response to a keepalive ping. After it, the connection is closed
    #[arg(long, env = "KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    pub keepalive_timeout: Duration,
    /// Timeout for a caller to read the response to a read or a batch, or the next results of a stream. After it, the
    /// gateway closes the connection, because it keeps a limited number of unread responses
    #[arg(long, env = "RESPONSE_READ_TIMEOUT", default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    pub response_read_timeout: Duration,
    /// Age at which the gateway asks the caller to open a new connection, so that callers spread over all gateways
    /// again [default: no limit, or 1h with --tls-client-ca-file]
    #[arg(long, env = "MAX_CONNECTION_AGE", value_parser = parse_duration, value_name = "TIME")]
    pub max_connection_age: Option<Duration>,
    /// Time that calls may continue on a connection of --max-connection-age before it is closed. Streams are ended in
    /// the first half of this time
    #[arg(
        long,
        env = "MAX_CONNECTION_AGE_GRACE",
        default_value = "30s",
        value_parser = parse_duration,
        value_name = "TIME"
    )]
    pub max_connection_age_grace: Duration,
    /// Time that the gateway continues to serve after SIGTERM while it reports not ready, so that load balancers notice
    #[arg(long, env = "SHUTDOWN_DELAY", default_value = "0s", value_parser = parse_duration, value_name = "TIME")]
    pub shutdown_delay: Duration,
    /// Timeout for open calls to end and for records in flight to be confirmed before the gateway exits. After it,
    /// calls are aborted and records are abandoned
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub drain_timeout: Duration,
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
        problems.extend(self.tls.problems());
        problems.extend(self.auth.problems(self.tls.tls_client_ca_file.is_some()));
        let allowed = self.allow_plaintext || self.tls.files().is_some();
        problems.extend(beyond_loopback("--listen", self.listen, allowed, "--allow-plaintext"));
        problems.extend(self.admin_tls.problems());
        if AdminAddress::Tcp(self.listen) == self.admin_listen && self.listen.port() != 0 {
            problems.push(format!("--listen and --admin-listen are the same address, {}", self.listen));
        }
        problems.extend(self.limit_problems());
        problems.extend(self.send.problems());
        problems.extend(self.quota.problems(&self.auth));
        problems.extend(self.times().into_iter().filter_map(|(flag, value, range)| time_problem(flag, value, &range)));
        problems
            .extend(self.numbers().into_iter().filter_map(|(flag, value, range)| number_problem(flag, value, &range)));
        if self.send.max_unread_results < MAX_REQUEST_MSGS {
            problems.push(format!(
                "--max-unread-results must be at least {MAX_REQUEST_MSGS}, as many as a request may have"
            ));
        }
        if problems.is_empty() {
            let client = producer::producer(&self.kafka, &self.limits, &self.send);
            problems.extend(self.kafka.creation_problem(&client, Role::Producer));
        }
        problems
    }
}

impl Config {
    /// Returns the maximum age of a connection, if there is one. With client CAs there always is: the certificate of a
    /// caller is verified only when it connects.
    pub(crate) fn max_connection_age(&self) -> Option<Duration> {
        const WITH_CLIENT_CA: Duration = Duration::from_secs(3600);
        let default = self.tls.tls_client_ca_file.is_some().then_some(WITH_CLIENT_CA);
        self.server.max_connection_age.or(default)
    }

    /// Flag, value and range of each time. An hour is longer than any caller waits; a day is longer than any interval.
    fn times(&self) -> Vec<(&'static str, Duration, RangeInclusive<Duration>)> {
        const SHORTEST: Duration = Duration::from_millis(100);
        const HOUR: Duration = Duration::from_secs(3600);
        const DAY: Duration = Duration::from_secs(86_400);
        let mut times = vec![
            ("--request-receive-timeout", self.server.request_receive_timeout, SHORTEST..=HOUR),
            ("--handshake-timeout", self.server.handshake_timeout, SHORTEST..=HOUR),
            ("--keepalive-interval", self.server.keepalive_interval, SHORTEST..=DAY),
            ("--keepalive-timeout", self.server.keepalive_timeout, SHORTEST..=HOUR),
            ("--response-read-timeout", self.server.response_read_timeout, SHORTEST..=HOUR),
            ("--max-connection-age-grace", self.server.max_connection_age_grace, Duration::ZERO..=DAY),
            ("--shutdown-delay", self.server.shutdown_delay, Duration::ZERO..=HOUR),
            ("--drain-timeout", self.server.drain_timeout, Duration::ZERO..=HOUR),
            ("--watch-stall-timeout", self.watch.watch_stall_timeout, SHORTEST..=HOUR),
            ("--heartbeat-interval", self.watch.heartbeat_interval, SHORTEST..=DAY),
            ("--watch-poll-interval", self.watch.watch_poll_interval, SHORTEST..=DAY),
        ];
        times.extend(self.server.max_connection_age.map(|age| ("--max-connection-age", age, SHORTEST..=365 * DAY)));
        times
    }

    fn numbers(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        // Above the kernel's limit of connections to one address, and above the memory of any machine.
        const MOST: usize = 10_000_000;
        const MAX_BYTES: usize = 1 << 40;
        vec![
            ("--read-connections", self.read_connections, 1..=10_000),
            ("--max-reads", self.max_reads, 1..=100_000),
            ("--watch-connections", self.watch.watch_connections, 1..=10_000),
            ("--watch-cache-bytes", self.watch.watch_cache_bytes, 0..=MAX_BYTES),
            ("--watch-buffer-bytes", self.watch.watch_buffer_bytes, 1..=MAX_BYTES),
            ("--max-stored-waiters", self.watch.max_stored_waiters, 0..=MOST),
            ("--max-watchers", self.watch.max_watchers, 0..=MOST),
            ("--max-watched-inboxes", self.watch.max_watched_inboxes, 0..=MOST),
            ("--max-connections", self.server.max_connections, 1..=MOST),
            ("--max-open-calls", self.server.max_open_calls, 1..=MOST),
            ("--max-response-bytes", self.server.max_response_bytes, 1..=MAX_BYTES),
            ("--max-concurrent-streams", self.server.max_concurrent_streams as usize, 1..=MOST),
            ("--max-buffered-request-bytes", self.server.max_buffered_request_bytes, 1..=MAX_BYTES),
            ("--max-stream-inflight-msgs", self.send.max_stream_inflight_msgs, 1..=MOST),
            ("--max-send-streams", self.send.max_send_streams, 1..=MOST),
            ("--max-batches", self.send.max_batches, 1..=MOST),
            ("--max-unread-results", self.send.max_unread_results, 0..=MOST),
        ]
    }

    /// The maximum size of a request in bytes.
    pub fn max_request_bytes(&self) -> usize {
        // The default of other gRPC servers, and of clients for responses.
        const USUAL: usize = 4 << 20;
        self.server.max_request_bytes.unwrap_or_else(|| USUAL.max(self.limits.max_record_bytes()))
    }

    /// Returns whether reflection is served.
    pub(crate) fn reflection(&self) -> bool {
        self.server.reflection.unwrap_or(self.auth.auth_mode == AuthMode::None)
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
            ("--max-buffered-request-bytes", self.server.max_buffered_request_bytes, "request", request),
        ] {
            if value < least {
                problems.push(format!("{flag} must be at least {least}, the maximum size of one {what} in bytes"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use msg_common::config::{LoadError, read};

    use super::*;

    fn read_words(words: &str) -> Result<Config, Vec<String>> {
        let words = std::iter::once("msg-gateway").chain(words.split_whitespace()).map(OsString::from);
        read(words).map_err(|error| match error {
            LoadError::Problems(problems) => problems,
            LoadError::HelpRequested(help) => panic!("{help}"),
        })
    }

    #[test]
    fn defaults_are_valid() {
        let config = read_words("").expect("the defaults are valid");
        assert_eq!(config.send.topic_partitions, 16);
        assert!(config.send.max_send_wait < config.send.delivery_timeout);
    }

    #[test]
    fn all_problems_are_reported_together() {
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
    fn largest_request_holds_the_largest_message() {
        assert_eq!(read_words("").expect("they are good").max_request_bytes(), 4 << 20);
        let large = read_words("--max-content-bytes 10MiB").expect("they are good");
        assert_eq!(large.max_request_bytes(), large.limits.max_record_bytes());
        for words in [
            "--max-request-bytes 1000KiB",
            "--max-request-bytes 65MiB",
            "--max-stream-inflight-msgs 0",
            "--max-unread-results 999",
            "--max-reads 0",
        ] {
            assert_eq!(read_words(words).expect_err("it is bad").len(), 1, "{words}");
        }
    }

    #[test]
    fn replica_needs_a_database() {
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
        // A compose file or a shell sets an unset variable to "".
        let config = read_words("--database-url postgres://primary/x --replica-url=").expect("it is good");
        assert!(config.replica.database(&config.database).is_none());
    }

    #[test]
    fn tls_settings_are_given_together_and_their_files_checked() {
        let problems = |words| read_words(words).expect_err("it is bad");
        for (words, problem) in [
            ("--tls-cert-file c.pem", "--tls-cert-file is given without --tls-key-file"),
            ("--tls-key-file k.pem", "--tls-key-file is given without --tls-cert-file"),
            ("--tls-client-ca-file ca.pem", "--tls-client-ca-file is given without --tls-cert-file"),
        ] {
            assert_eq!(problems(words), [problem]);
        }
        let found = problems("--listen 0.0.0.0:1 --tls-cert-file /nowhere/c.pem --tls-key-file k.pem");
        assert!(found.len() == 1 && found[0].starts_with("--tls-cert-file: cannot read /nowhere/c.pem"), "{found:?}");
    }

    #[test]
    fn connections_have_an_age_if_callers_have_certificates() {
        let age = |client_ca: bool, words| {
            let mut config = read_words(words).expect("it is good");
            config.tls.tls_client_ca_file = client_ca.then(|| "ca.pem".into());
            config.max_connection_age().map(|age| age.as_secs())
        };
        assert_eq!([age(false, ""), age(true, "")], [None, Some(3600)]);
        let given = "--max-connection-age 5min";
        assert_eq!([age(false, given), age(true, given)], [Some(300), Some(300)]);
    }

    #[test]
    fn plaintext_beyond_loopback_must_be_allowed() {
        assert!(read_words("--listen 0.0.0.0:1 --allow-plaintext").is_ok());
        assert!(read_words("--admin-listen 0.0.0.0:1").is_ok());
    }
}
