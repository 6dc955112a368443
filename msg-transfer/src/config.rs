//! The transfer's settings.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, ValueEnum};
use msg_common::admin::{AdminAddress, AdminTlsOptions};
use msg_common::config::{name_problem, number_problem, parse_bytes, parse_duration, time_problem};
use msg_common::kafka::{ClientPurpose, ClientSetup, KafkaOptions};
use msg_common::postgres::DatabaseOptions;
use msg_common::telemetry::LogOptions;

use crate::consumer::pace::FULL;

/// The settings of the service and its commands.
#[derive(Args, Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Config {
    #[command(flatten)]
    pub kafka: KafkaOptions,
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub consumer: ConsumerOptions,
    #[command(flatten)]
    pub lanes: LaneOptions,
    #[command(flatten)]
    pub dead_letters: DeadLetterOptions,
    #[command(flatten)]
    pub log: LogOptions,
    /// Address or Unix socket (unix:/path) on which /metrics, /healthz and /readyz are served over HTTP. They contain no
    /// message and no secret
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9465", value_name = "ADDRESS")]
    pub admin_listen: AdminAddress,
    #[command(flatten)]
    pub admin_tls: AdminTlsOptions,
    /// Do not migrate the schema at startup; wait until another process has migrated it
    #[arg(long, env = "NO_MIGRATE")]
    pub no_migrate: bool,
}

/// Limits and timeouts of the consumer.
#[derive(Args, Clone, Debug)]
pub struct ConsumerOptions {
    /// Consumer group
    #[arg(long, env = "GROUP_ID", default_value = "msg-transfer", value_name = "NAME")]
    pub group_id: String,
    /// Name of this process as a static member of the group. With it, a restart within --session-timeout moves no
    /// partition
    #[arg(long, env = "GROUP_INSTANCE_ID", value_name = "NAME")]
    pub group_instance_id: Option<String>,
    /// Timeout for a member's heartbeat. After it, the group assigns the member's partitions to others
    #[arg(long, env = "SESSION_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub session_timeout: Duration,
    /// Number of completed records after which offsets are committed, unless --commit-interval passes first
    #[arg(long, env = "COMMIT_RECORDS", default_value_t = 50_000, value_name = "N")]
    pub commit_records: usize,
    /// Time after which offsets are committed, unless --commit-records is reached first
    #[arg(long, env = "COMMIT_INTERVAL", default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub commit_interval: Duration,
    /// Maximum bytes of records in flight: consumed from Kafka, and not completed. At it, consuming stops until half of
    /// it is free
    #[arg(long, env = "MAX_INFLIGHT_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_inflight_bytes: usize,
    /// Maximum number of records in flight, which one chunk of up to 1000 records may exceed. At it, consuming stops
    /// until half of it is free
    #[arg(long, env = "MAX_INFLIGHT_RECORDS", default_value_t = 50_000, value_name = "N")]
    pub max_inflight_records: usize,
    /// Maximum bytes of one partition's records in flight, at least an eighth of --max-inflight-bytes. At it, the
    /// partition is throttled, so that the others are still consumed
    #[arg(long, env = "MAX_PARTITION_INFLIGHT_BYTES", default_value = "32MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_partition_inflight_bytes: usize,
    /// Maximum number of one partition's records in flight, at least an eighth of --max-inflight-records. At it, the
    /// partition is throttled
    #[arg(long, env = "MAX_PARTITION_INFLIGHT_RECORDS", default_value_t = 25_000, value_name = "N")]
    pub max_partition_inflight_records: usize,
    /// Timeout for storing the records in flight when a partition is revoked or the service stops; less than
    /// --session-timeout. After it, they are abandoned and consumed again later
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub drain_timeout: Duration,
    /// Time that records may wait in Kafka while none of their partition is stored. After it, the service is not ready.
    /// An outage of the database does not count: it is reported separately
    #[arg(long, env = "STALL_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub stall_timeout: Duration,
    /// Start at the oldest record of a partition if the record at its start offset is deleted. Without it, the
    /// partition is halted and the service is not ready
    #[arg(long, env = "START_AT_OLDEST")]
    pub start_at_oldest: bool,
}

/// The number of lanes, and the limits of their batches.
#[derive(Args, Clone, Debug)]
pub struct LaneOptions {
    /// Number of lanes, each with one database connection. All messages of an inbox are in the same lane
    #[arg(long, env = "LANES", default_value_t = 4, value_name = "N")]
    pub lanes: usize,
    /// Maximum number of records in a batch. Further records are in the next batch
    #[arg(long, env = "BATCH_RECORDS", default_value_t = 5_000, value_name = "N")]
    pub batch_records: usize,
    /// Maximum bytes of records in a batch, which its last record may exceed
    #[arg(long, env = "BATCH_BYTES", default_value = "8MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub batch_bytes: usize,
    /// Minimum time between the starts of two batches of a lane after a batch of 8 records or more, unless a batch is
    /// full; proportionally shorter after a smaller batch, and none after a single record. The first record after a
    /// longer time does not wait
    #[arg(long, env = "BATCH_INTERVAL", default_value = "10ms", value_parser = parse_duration, value_name = "TIME")]
    pub batch_interval: Duration,
    /// Maximum number of inboxes whose last `seq` is cached, over all lanes. The `seq` of other inboxes is read from
    /// the table
    #[arg(long, env = "SEQ_CACHE_INBOXES", default_value_t = NonZeroUsize::new(100_000).expect("not 0"), value_name = "N")]
    pub seq_cache_inboxes: NonZeroUsize,
    /// Check before each batch, in its transaction, that the row before each inbox's first new row exists. Needed if
    /// the database may confirm a COMMIT before its rows are visible: `auto` checks if Citus is installed
    #[arg(long, env = "SEQ_GUARD", default_value = "auto", value_name = "WHEN")]
    pub seq_guard: SeqGuard,
}

/// When to check for predecessors.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqGuard {
    /// If Citus is installed
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

/// The dead-letter limit: a partition is halted before it exceeds all three.
#[derive(Args, Clone, Debug)]
pub struct DeadLetterOptions {
    /// Maximum number of a partition's dead letters within --dead-letter-window. The partition is halted before it
    /// exceeds this and --dead-letter-percent. IDEMPOTENCY_CONFLICT does not count, because callers cause it
    #[arg(long, env = "DEAD_LETTER_LIMIT", default_value_t = 100, value_name = "N")]
    pub dead_letter_limit: usize,
    /// Maximum percentage of dead letters within --dead-letter-window. The partition is halted only if both limits are
    /// exceeded
    #[arg(long, env = "DEAD_LETTER_PERCENT", default_value_t = 1, value_name = "PERCENT")]
    pub dead_letter_percent: usize,
    /// Number of a partition's last records in which dead letters are counted
    #[arg(long, env = "DEAD_LETTER_WINDOW", default_value_t = 10_000, value_name = "N")]
    pub dead_letter_window: usize,
}

/// The limits of one partition are at least the limits of all partitions divided by this.
const MAX_PARTITION_SHARES: usize = 8;

impl Config {
    /// Returns the problems of the settings that only the service needs.
    pub fn service_problems(&self) -> Vec<String> {
        let mut problems = self.admin_tls.problems();
        const MAX_RECORDS: usize = 10_000_000;
        const MAX_BYTES: usize = 1 << 40;
        let numbers = [
            ("--lanes", self.lanes.lanes, 1..=1000),
            ("--batch-records", self.lanes.batch_records, 1..=1_000_000),
            ("--batch-bytes", self.lanes.batch_bytes, 1..=1 << 29),
            ("--seq-cache-inboxes", self.lanes.seq_cache_inboxes.get(), 1..=100_000_000),
            ("--commit-records", self.consumer.commit_records, 1..=usize::MAX),
            ("--max-inflight-bytes", self.consumer.max_inflight_bytes, 1..=MAX_BYTES),
            ("--max-inflight-records", self.consumer.max_inflight_records, 1..=MAX_RECORDS),
            ("--max-partition-inflight-bytes", self.consumer.max_partition_inflight_bytes, 1..=MAX_BYTES),
            ("--max-partition-inflight-records", self.consumer.max_partition_inflight_records, 1..=MAX_RECORDS),
            ("--dead-letter-percent", self.dead_letters.dead_letter_percent, 0..=100),
            ("--dead-letter-window", self.dead_letters.dead_letter_window, 1..=1_000_000_000),
        ];
        problems.extend(numbers.into_iter().filter_map(|(flag, value, range)| number_problem(flag, value, &range)));
        const DAY: Duration = Duration::from_secs(86_400);
        let times = [
            // The brokers' own minimum, and twice their default maximum.
            ("--session-timeout", self.consumer.session_timeout, Duration::from_secs(6)..=Duration::from_secs(3600)),
            ("--drain-timeout", self.consumer.drain_timeout, Duration::ZERO..=Duration::from_secs(3600)),
            // The watchdog checks every 2 s.
            ("--stall-timeout", self.consumer.stall_timeout, Duration::from_secs(5)..=DAY),
            ("--commit-interval", self.consumer.commit_interval, Duration::from_millis(1)..=DAY),
            ("--batch-interval", self.lanes.batch_interval, Duration::ZERO..=Duration::from_secs(1)),
        ];
        problems.extend(times.into_iter().filter_map(|(flag, value, range)| time_problem(flag, value, &range)));
        problems
            .extend(self.consumer.group_instance_id.as_ref().and_then(|id| name_problem("--group-instance-id", id)));
        // The Kafka client keeps the fetched records of throttled partitions. The minimum keeps their number small.
        let parts = [
            (
                "--max-partition-inflight-bytes",
                self.consumer.max_partition_inflight_bytes,
                self.consumer.max_inflight_bytes,
            ),
            (
                "--max-partition-inflight-records",
                self.consumer.max_partition_inflight_records,
                self.consumer.max_inflight_records,
            ),
        ];
        for (name, _, total) in parts.iter().filter(|(_, part, total)| *part < total / MAX_PARTITION_SHARES) {
            problems.push(format!(
                "{name} must be at least an eighth of the limit for all, {}",
                total / MAX_PARTITION_SHARES
            ));
        }
        if self.consumer.drain_timeout >= self.consumer.session_timeout {
            problems.push("--drain-timeout must be below --session-timeout".into());
        }
        problems
    }

    /// Returns librdkafka's settings for the member of the group. No other function knows their names.
    pub fn consumer_config(&self) -> ClientSetup {
        let options = &self.consumer;
        let mut config = self.lookup_config(ClientPurpose::Consumer);
        // Defaults that KAFKA_PROPERTIES may change (ADR 9). A broker responds to a fetch when it has a record. Without
        // one it responds after the wait; until then no partition joins the fetch.
        let defaults = [("fetch.min.bytes", "1"), ("fetch.wait.max.ms", "100"), ("fetch.queue.backoff.ms", "10")];
        for (key, value) in defaults {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        let session = options.session_timeout.as_millis();
        config
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", (session / 10).max(1).to_string())
            // For a stalled broker. The default is a minute, which a shutdown would wait for.
            .set("socket.timeout.ms", "10000")
            // The thread always polls; this is for a stalled thread.
            .set("max.poll.interval.ms", session.max(300_000).to_string())
            // Only the transfer commits offsets and chooses start offsets, never librdkafka.
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // Records that are not consumed stay in librdkafka. While this number or size of them do, no further fetch
            // starts: meanwhile records gather in Kafka, so the next fetch is larger.
            .set("queued.min.messages", FULL.to_string())
            .set("queued.max.messages.kbytes", "64")
            .set("fetch.error.backoff.ms", "100")
            // The maximum size of one response, and with the setting above of all records that wait in librdkafka. It is
            // the compressed size: repetitive text can be ten times as large after decompression.
            .set("fetch.max.bytes", (2 << 20).to_string())
            .set("max.partition.fetch.bytes", (512 << 10).to_string())
            // A topic that is created after the start, and added partitions, are detected within this time.
            .set("topic.metadata.refresh.interval.ms", "10000");
        if let Some(id) = &options.group_instance_id {
            config.set("group.instance.id", id);
        }
        config
    }

    /// Returns the number of connections to the database: one for each lane, and three for the progress rows, the lag,
    /// and the check whether partitions were resumed.
    pub fn pool_size(&self) -> usize {
        self.lanes.lanes + 3
    }

    /// Returns librdkafka's settings for a client that reads the group's offsets and does not join the group.
    pub fn lookup_config(&self, purpose: ClientPurpose) -> ClientSetup {
        let mut config = self.kafka.client_config(purpose);
        config
            .set("group.id", &self.consumer.group_id)
            .set("enable.auto.commit", "false")
            // Off by default: then a message that a disk or a network has damaged would be stored.
            .set("check.crcs", "true");
        config
    }
}
