//! The operator's commands, as an operator runs them: exit code, output and effect.

mod check;
mod dead_letters;
mod lag;
mod purge;
mod replay;
mod resume;

use std::time::{Duration, SystemTime};

use msg_common::partition::Partition;
use msg_stack::service::find_binary;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use crate::support::kafka::RawRecord;
use crate::support::world::World;

const HOUR: Duration = Duration::from_secs(3600);

/// Exit code and output of a command.
pub(crate) struct CommandResult {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CommandResult {
    /// The output, which is one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }

    pub(crate) fn assert_code(self, code: i32) -> CommandResult {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// Runs `msg-transfer` with these arguments and the world's settings.
pub(crate) async fn run(world: &World, arguments: &str) -> CommandResult {
    run_with(world, arguments, &[]).await
}

/// Runs `msg-transfer` with these arguments, the world's settings and further settings.
pub(crate) async fn run_with(world: &World, arguments: &str, settings: &[(&str, &str)]) -> CommandResult {
    let service = world.transfer("command", |spec| spec.env("TOPIC_PARTITIONS", world.partitions));
    let output = tokio::process::Command::new(find_binary("msg-transfer").unwrap())
        .args(arguments.split_whitespace())
        .envs(service.spec().env.iter().map(|(name, value)| (name, value)))
        .envs(settings.iter().copied())
        .output()
        .await
        .unwrap();
    CommandResult {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A world whose database has the tables.
pub(crate) async fn migrated(name: &str) -> World {
    let world = World::new(name).await;
    run(&world, "migrate").await.assert_code(0);
    world
}

/// Writes a record with the timestamp that is this old.
pub(super) fn put_with_age(world: &World, partition: Partition, record: &RawRecord, age: Duration) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", world.brokers()).create().unwrap();
    let written = SystemTime::now() - age;
    let millis = written.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let mut base = BaseRecord::<[u8], [u8]>::to(world.topic()).partition(partition);
    base = base.timestamp(i64::try_from(millis).unwrap());
    base = base.headers(
        rdkafka::message::OwnedHeaders::new()
            .insert(rdkafka::message::Header { key: msg_common::record::VERSION_HEADER, value: record.version }),
    );
    base.key = record.key.as_deref();
    base.payload = record.value.as_deref();
    producer.send(base).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
}
