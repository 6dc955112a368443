//! The transfer's settings.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use msg_common::config::{Check, name_problem, number_problem, parse_bytes, parse_duration, time_problem};
use msg_common::kafka::{KafkaOptions, Role, creation_problem};
use msg_common::postgres::DatabaseOptions;
use msg_common::telemetry::LogOptions;
use rdkafka::ClientConfig;

use crate::commands::{check, dead_letters, lag, purge, resume};

/// Takes messages from Kafka into PostgreSQL: each once, in order, none missing.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// What to do; without it, the service runs
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaOptions,
    /// The database.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// The consumer.
    #[command(flatten)]
    pub consumer: ConsumerOptions,
    /// The lanes.
    #[command(flatten)]
    pub lanes: LaneOptions,
    /// Dead letters.
    #[command(flatten)]
    pub dead_letters: DeadLetterOptions,
    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9465", value_name = "ADDRESS:PORT")]
    pub admin_listen: SocketAddr,
    /// Do not migrate the schema at start; wait until somebody else has
    #[arg(long, env = "NO_MIGRATE")]
    pub no_migrate: bool,
}

/// One-shot commands.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Bring the database's schema up to this build's version, and end
    Migrate,
    /// Ask the running service whether it is ready: exit code 0 if it is, 1 if not
    Healthcheck,
    /// Look at Kafka, the topic, the group and the database, and say what is wrong and what to do: exit code 1 if
    /// something has to be done. The running group is left alone
    Check(check::Options),
    /// Show how far the database is behind Kafka, by partition: in records, in time, and until they are deleted
    Lag(lag::Options),
    /// Delete old messages, from the beginning of each inbox on; the newest of an inbox always stays
    Purge(purge::Options),
    /// Look at the records that were kept aside, and send them again
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Let partitions go on that stopped because too many of their records became dead letters
    Resume(resume::Options),
}

/// How records are taken from Kafka.
#[derive(Args, Clone, Debug)]
pub struct ConsumerOptions {
    /// The consumer group
    #[arg(long, env = "GROUP_ID", default_value = "msg-transfer", value_name = "NAME")]
    pub group_id: String,
    /// A name of its own for a static member: a restart within the session time-out moves no partition
    #[arg(long, env = "GROUP_INSTANCE_ID", value_name = "NAME")]
    pub group_instance_id: Option<String>,
    /// How long the group waits for a silent member
    #[arg(long, env = "SESSION_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub session_timeout: Duration,
    /// Commit after so many stored records …
    #[arg(long, env = "COMMIT_RECORDS", default_value_t = 50_000, value_name = "N")]
    pub commit_records: usize,
    /// … or after this long, whichever is first
    #[arg(long, env = "COMMIT_INTERVAL", default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub commit_interval: Duration,
    /// Most bytes between Kafka and the table; reached, nothing more is taken from Kafka
    #[arg(long, env = "MAX_INFLIGHT_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_inflight_bytes: usize,
    /// Most records between Kafka and the table; what is taken from Kafka at a time, 1,000 at most, may pass it
    #[arg(long, env = "MAX_INFLIGHT_RECORDS", default_value_t = 50_000, value_name = "N")]
    pub max_inflight_records: usize,
    /// Most bytes of one partition between Kafka and the table: the rest of the limit is for the others
    #[arg(long, env = "MAX_PARTITION_INFLIGHT_BYTES", default_value = "32MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_partition_inflight_bytes: usize,
    /// Most records of one partition between Kafka and the table
    #[arg(long, env = "MAX_PARTITION_INFLIGHT_RECORDS", default_value_t = 25_000, value_name = "N")]
    pub max_partition_inflight_records: usize,
    /// Most bytes that Kafka's client keeps fetched ahead of that; a fetch under way may bring 2 MiB more, compressed
    #[arg(long, env = "FETCH_AHEAD_BYTES", default_value = "16MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub fetch_ahead_bytes: usize,
    /// When a partition is given back or the service stops: how long to go on storing what was taken; below the
    /// session time-out
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub drain_timeout: Duration,
    /// Records that wait in Kafka while none of their partition is stored for this long are reported: the service is not
    /// ready. An outage of the database does not count, it has a reason of its own
    #[arg(long, env = "STALL_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub stall_timeout: Duration,
    /// Where the record to start with is already deleted, begin with the oldest that is left. Without it, that partition
    /// stands still and the service is not ready
    #[arg(long, env = "START_AT_OLDEST")]
    pub start_at_oldest: bool,
}

/// How records are stored.
#[derive(Args, Clone, Debug)]
pub struct LaneOptions {
    /// Lanes, each with a database connection; the messages of one inbox are always in the same
    #[arg(long, env = "LANES", default_value_t = 4, value_name = "N")]
    pub lanes: usize,
    /// Most records in a batch
    #[arg(long, env = "BATCH_RECORDS", default_value_t = 5_000, value_name = "N")]
    pub batch_records: usize,
    /// Most bytes in a batch, one record excepted
    #[arg(long, env = "BATCH_BYTES", default_value = "8MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub batch_bytes: usize,
    /// A lane begins batches no closer together than this, unless they are full. A message that comes alone does not wait
    #[arg(long, env = "BATCH_INTERVAL", default_value = "10ms", value_parser = parse_duration, value_name = "TIME")]
    pub batch_interval: Duration,
    /// Inboxes whose last seq is remembered, in all lanes together
    #[arg(long, env = "SEQ_CACHE_INBOXES", default_value_t = NonZeroUsize::new(100_000).expect("not 0"), value_name = "N")]
    pub seq_cache_inboxes: NonZeroUsize,
    /// Before each batch, look in the same transaction for the row that each inbox's first new row follows. For a database
    /// whose COMMIT may be answered before its rows can be seen: `auto` does so where it finds Citus
    #[arg(long, env = "SEQ_GUARD", default_value = "auto", value_name = "WHEN")]
    pub seq_guard: SeqGuard,
}

/// When to look for predecessors.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqGuard {
    /// Where Citus is installed.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// When a partition stops because too many of its records would be kept aside: all three together.
#[derive(Args, Clone, Debug)]
pub struct DeadLetterOptions {
    /// A partition stops before it has more dead letters than this …
    #[arg(long, env = "DEAD_LETTER_LIMIT", default_value_t = 100, value_name = "N")]
    pub dead_letter_limit: usize,
    /// … that are more than so many in a hundred …
    #[arg(long, env = "DEAD_LETTER_PERCENT", default_value_t = 1, value_name = "PERCENT")]
    pub dead_letter_percent: usize,
    /// … of the last so many records. IDEMPOTENCY_CONFLICT does not count: callers make those
    #[arg(long, env = "DEAD_LETTER_WINDOW", default_value_t = 10_000, value_name = "N")]
    pub dead_letter_window: usize,
}

/// The limits for one partition are this part of those for all, or more.
const MOST_PARTS: usize = 8;

impl Check for Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = [self.kafka.problems(), self.log.problems()].concat();
        if matches!(self.command, Some(Command::Healthcheck)) {
            return problems;
        }
        let kafka_is_good = problems.is_empty();
        if !self.database.is_given() {
            problems.push("--database-url or --database-url-file is required".into());
        }
        problems.extend(self.database.problems());
        problems.extend(name_problem("--group-id", &self.consumer.group_id));
        match &self.command {
            None | Some(Command::Migrate | Command::Check(_)) => problems.extend(self.service_problems()),
            Some(Command::Purge(options)) => problems.extend(options.problems()),
            Some(Command::DeadLetters(command)) => problems.extend(command.problems()),
            Some(Command::Resume(options)) => problems.extend(options.problems()),
            Some(Command::Healthcheck | Command::Lag(_)) => {}
        }
        if kafka_is_good && problems.is_empty() {
            problems.extend(creation_problem(&self.consumer_config(), Role::Consumer));
        }
        problems
    }
}

impl Config {
    /// What is wrong with what only the service needs.
    fn service_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        const MOST: usize = 10_000_000;
        // librdkafka's queued.max.messages.kbytes ends at 2,097,151.
        const FETCH_AHEAD: usize = 2047 << 20;
        const MAX_BYTES: usize = 1 << 40;
        let numbers = [
            ("--lanes", self.lanes.lanes, 1..=1000),
            ("--batch-records", self.lanes.batch_records, 1..=1_000_000),
            ("--batch-bytes", self.lanes.batch_bytes, 1..=1 << 29),
            ("--seq-cache-inboxes", self.lanes.seq_cache_inboxes.get(), 1..=100_000_000),
            ("--commit-records", self.consumer.commit_records, 1..=usize::MAX),
            ("--max-inflight-bytes", self.consumer.max_inflight_bytes, 1..=MAX_BYTES),
            ("--max-inflight-records", self.consumer.max_inflight_records, 1..=MOST),
            ("--max-partition-inflight-bytes", self.consumer.max_partition_inflight_bytes, 1..=MAX_BYTES),
            ("--max-partition-inflight-records", self.consumer.max_partition_inflight_records, 1..=MOST),
            ("--fetch-ahead-bytes", self.consumer.fetch_ahead_bytes, 1 << 20..=FETCH_AHEAD),
            ("--dead-letter-percent", self.dead_letters.dead_letter_percent, 0..=100),
            ("--dead-letter-window", self.dead_letters.dead_letter_window, 1..=1_000_000_000),
        ];
        problems.extend(numbers.into_iter().filter_map(|(flag, value, range)| number_problem(flag, value, &range)));
        const DAY: Duration = Duration::from_secs(86_400);
        let times = [
            // The brokers' own lower limit, and twice their usual upper one.
            ("--session-timeout", self.consumer.session_timeout, Duration::from_secs(6)..=Duration::from_secs(3600)),
            ("--drain-timeout", self.consumer.drain_timeout, Duration::ZERO..=Duration::from_secs(3600)),
            // It is checked every 5 s.
            ("--stall-timeout", self.consumer.stall_timeout, Duration::from_secs(5)..=DAY),
            ("--commit-interval", self.consumer.commit_interval, Duration::from_millis(1)..=DAY),
            ("--batch-interval", self.lanes.batch_interval, Duration::ZERO..=Duration::from_secs(1)),
        ];
        problems.extend(times.into_iter().filter_map(|(flag, value, range)| time_problem(flag, value, &range)));
        problems
            .extend(self.consumer.group_instance_id.as_ref().and_then(|id| name_problem("--group-instance-id", id)));
        // Partitions that are held back keep what was fetched of them: few at a time.
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
        for (name, _, total) in parts.iter().filter(|(_, part, total)| *part < total / MOST_PARTS) {
            problems.push(format!("{name} must be at least an eighth of the limit for all, {}", total / MOST_PARTS));
        }
        if self.consumer.drain_timeout >= self.consumer.session_timeout {
            problems.push("--drain-timeout must be below --session-timeout".into());
        }
        problems
    }

    /// librdkafka's settings for the group's member. No other function knows their names.
    pub fn consumer_config(&self) -> ClientConfig {
        let options = &self.consumer;
        let mut config = self.lookup_config();
        // What may be changed by KAFKA_PROPERTIES. A broker answers when there are 64 KiB or 10 ms have passed: by
        // default it would answer for each record.
        for (key, value) in [("fetch.min.bytes", "65536"), ("fetch.wait.max.ms", "10")] {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        let session = options.session_timeout.as_millis();
        config
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", (session / 10).max(1).to_string())
            // A broker that hangs: shorter than the default of a minute, which the end of the process would wait for.
            .set("socket.timeout.ms", "10000")
            // The thread polls at all times; this is for one that hangs.
            .set("max.poll.interval.ms", session.max(300_000).to_string())
            // Commits are ours alone, and so is the start.
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // What is not taken stays here; then fetching stops, and begins again soon after there is room.
            .set("queued.max.messages.kbytes", (options.fetch_ahead_bytes >> 10).to_string())
            // A record costs the client some hundred bytes beside its own: each counts for 1 KiB at least.
            .set("queued.min.messages", (options.fetch_ahead_bytes >> 10).to_string())
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100")
            // A broker answers with as much as this at once, beyond the limit above. It counts as compressed: text of
            // few words grows tenfold when it is unpacked.
            .set("fetch.max.bytes", (2 << 20).to_string())
            .set("max.partition.fetch.bytes", (512 << 10).to_string())
            // A topic made after the start, and partitions added to it, are found within this time.
            .set("topic.metadata.refresh.interval.ms", "10000");
        if let Some(id) = &options.group_instance_id {
            config.set("group.instance.id", id);
        }
        config
    }

    /// Connections to the database: one for each lane, and three for what comes besides (progress rows, the lag, whether
    /// partitions may go on).
    pub fn pool_size(&self) -> usize {
        self.lanes.lanes + 3
    }

    /// librdkafka's settings for a client that asks in the group's name and joins nothing.
    pub fn lookup_config(&self) -> ClientConfig {
        let mut config = self.kafka.client_config();
        config
            .set("group.id", &self.consumer.group_id)
            .set("enable.auto.commit", "false")
            // Off by default: what a disk or a network has changed would be stored as if it had been sent.
            .set("check.crcs", "true");
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msg_common::config::{Refusal, read};
    use std::ffi::OsString;

    fn read_words(words: &str) -> Result<Config, Refusal> {
        read(words.split(' ').map(OsString::from))
    }

    #[test]
    fn the_defaults_need_only_a_database() {
        let config = read_words("msg-transfer --database-url postgres://localhost/x").expect("they are good");
        config.consumer_config().create_native_config().expect("librdkafka knows each key and value");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let words = "msg-transfer --lanes 0 --batch-records 0 --session-timeout 1s --group-id= --kafka-topic=a/b";
        let Err(Refusal::Problems(problems)) = read_words(words) else { panic!("they are bad") };
        assert_eq!(problems.len(), 7, "{problems:?}");
    }
}
