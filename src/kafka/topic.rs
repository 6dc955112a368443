//! Owns the requirements of a safe topic, and reads the topic's settings.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaErrorCode;

use crate::config::parse_duration;
use crate::kafka::{ClientError, KafkaClient, RequestError};
use crate::partition::Partition;

/// Requirements of a safe topic.
#[derive(Args, Clone, Debug)]
pub struct TopicRequirements {
    /// Minimum number of replicas of each partition. A topic with fewer is unsafe: accepted messages may be lost
    #[arg(long, env = "REQUIRED_REPLICAS", default_value_t = 3, value_name = "N")]
    pub required_replicas: usize,
    /// Minimum of the topic's min.insync.replicas. A topic with a lower value is unsafe
    #[arg(long, env = "REQUIRED_MIN_INSYNC", default_value_t = 2, value_name = "N")]
    pub required_min_insync: usize,
    /// Minimum retention of the topic: how long the database may be unavailable before a message is lost. A topic with
    /// a shorter one is unsafe
    #[arg(long, env = "REQUIRED_RETENTION", default_value = "3days", value_parser = parse_duration, value_name = "TIME")]
    pub required_retention: Duration,
}

/// The settings and the state of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The number of partitions, which may be above the pinned count.
    pub partitions: Partition,
    /// The number of replicas of the partition that has the fewest.
    pub replicas: usize,
    /// `min.insync.replicas`: a partition with fewer in-sync replicas confirms nothing.
    pub min_insync: usize,
    /// `unclean.leader.election.enable`: whether a replica that is behind may become the leader.
    pub unclean_election: bool,
    /// `cleanup.policy`, such as `delete` or `compact`.
    pub cleanup_policy: String,
    /// `retention.ms`; `None` is without limit.
    pub retention: Option<Duration>,
    /// `retention.bytes` of a partition; `None` is without limit.
    pub retention_bytes: Option<u64>,
    /// `max.message.bytes`: the maximum size of a batch of records, after compression.
    pub max_message_bytes: usize,
    /// The clock that retention uses.
    pub clock: RetentionClock,
    /// The number of in-sync replicas of each partition; 0 if it has no leader.
    pub in_sync: Vec<usize>,
}

/// `message.timestamp.type`: the clock that decides when a record is old enough to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionClock {
    /// The clock of the brokers (LogAppendTime).
    Brokers,
    /// The clock of the producer (CreateTime), so that a wrong clock of a gateway changes when records are deleted.
    Producers {
        /// `message.timestamp.before.max.ms`: how far it may be behind the brokers' clock; `None` is without limit.
        behind: Option<Duration>,
        /// `message.timestamp.after.max.ms`: how far it may be ahead; `None` is without limit.
        ahead: Option<Duration>,
    },
}

/// Reads the topic's settings. Blocks one thread of the runtime's blocking pool for up to `timeout`, twice.
pub async fn describe<C: ClientContext + 'static>(
    admin: &Arc<KafkaClient<AdminClient<C>>>,
    topic: &str,
    timeout: Duration,
) -> Result<Topic, RequestError> {
    read_settings(admin, topic, timeout).await.map_err(RequestError::of_topic("read the settings", topic))
}

async fn read_settings<C: ClientContext + 'static>(
    admin: &Arc<KafkaClient<AdminClient<C>>>,
    topic: &str,
    timeout: Duration,
) -> Result<Topic, ClientError> {
    let (client, name) = (admin.clone(), topic.to_owned());
    let metadata = tokio::task::spawn_blocking(move || client.inner().fetch_metadata(Some(&name), timeout)).await??;
    // Read the metadata before the next `await`, because it cannot be sent to another thread.
    let (partitions, replicas, in_sync) = replication(&metadata, topic)?;
    drop(metadata);
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
    let config = match described.into_iter().next() {
        Some(Ok(config)) => config,
        Some(Err(code)) => return Err(code.into()),
        None => return Err(ClientError::Unexpected(0)),
    };
    let text = |name: &str| {
        let value = config.entry_map().get(name).and_then(|entry| entry.value.clone());
        value.ok_or_else(|| ClientError::NotDescribed(name.to_owned()))
    };
    let number = |name: &str| {
        let value = text(name)?;
        value.parse::<i64>().map_err(|_| ClientError::NotANumber { name: name.to_owned(), value })
    };
    // Kafka before 3.6 has one limit for both directions.
    let limit = |name: &str| {
        let limit = number(name).or_else(|_| number("message.timestamp.difference.max.ms")).ok()?;
        // Kafka's default is the largest possible number. A thousand years or more count as no limit.
        u64::try_from(limit).ok().map(Duration::from_millis).filter(|limit| limit.as_secs() < 1000 * 365 * 86_400)
    };
    let clock = if text("message.timestamp.type")? == "LogAppendTime" {
        RetentionClock::Brokers
    } else {
        let (behind, ahead) = (limit("message.timestamp.before.max.ms"), limit("message.timestamp.after.max.ms"));
        RetentionClock::Producers { behind, ahead }
    };
    Ok(Topic {
        partitions,
        replicas,
        min_insync: usize::try_from(number("min.insync.replicas")?).unwrap_or(0),
        unclean_election: text("unclean.leader.election.enable")? != "false",
        cleanup_policy: text("cleanup.policy")?,
        retention: u64::try_from(number("retention.ms")?).ok().map(Duration::from_millis),
        retention_bytes: u64::try_from(number("retention.bytes")?).ok(),
        max_message_bytes: usize::try_from(number("max.message.bytes")?).unwrap_or(0),
        clock,
        in_sync,
    })
}

/// Returns the number of partitions, the number of replicas of the partition that has the fewest, and the number of in-sync
/// replicas of each.
fn replication(metadata: &Metadata, topic: &str) -> Result<(Partition, usize, Vec<usize>), ClientError> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or_else(|| ClientError::MissingTopic(topic.to_owned()))?;
    match found.error().map(RDKafkaErrorCode::from) {
        None => {}
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return Err(ClientError::MissingTopic(topic.to_owned())),
        Some(code) => return Err(code.into()),
    }
    let partitions = Partition::try_from(found.partitions().len()).unwrap_or(Partition::MAX);
    let mut in_sync = vec![0; found.partitions().len()];
    for partition in found.partitions().iter().filter(|partition| partition.leader() >= 0) {
        if let Some(count) = usize::try_from(partition.id()).ok().and_then(|id| in_sync.get_mut(id)) {
            *count = partition.isr().len();
        }
    }
    Ok((partitions, found.partitions().iter().map(|p| p.replicas().len()).min().unwrap_or(0), in_sync))
}

impl TopicRequirements {
    /// Returns the reasons why an accepted message could be lost with this topic. Without reasons the topic is safe.
    pub fn unsafe_settings(&self, topic: &Topic) -> Vec<String> {
        let mut found = Vec::new();
        if topic.replicas < self.required_replicas {
            found.push(format!("replication factor is {}, required {}", topic.replicas, self.required_replicas));
        }
        if topic.min_insync < self.required_min_insync {
            found.push(format!("min.insync.replicas is {}, required {}", topic.min_insync, self.required_min_insync));
        }
        if topic.unclean_election {
            found.push("unclean.leader.election.enable is not false".into());
        }
        if topic.cleanup_policy != "delete" {
            found.push(format!("cleanup.policy is {}, required delete", topic.cleanup_policy));
        }
        if let Some(retention) = topic.retention.filter(|retention| *retention < self.required_retention) {
            let (is, required) = (humantime::format_duration(retention), self.required_retention);
            found.push(format!("retention.ms is {is}, required {}", humantime::format_duration(required)));
        }
        if let Some(bytes) = topic.retention_bytes {
            found.push(format!("retention.bytes is {bytes}: a backlog beyond it would be deleted"));
        }
        found.extend(self.unsafe_clock(topic));
        found
    }

    /// Checks the clock of retention: Kafka deletes a record too early if its timestamp is too old.
    fn unsafe_clock(&self, topic: &Topic) -> Option<String> {
        let (RetentionClock::Producers { behind, .. }, Some(retention)) = (topic.clock, topic.retention) else {
            return None;
        };
        // A retention that is too short has a reason of its own.
        let spare = retention.saturating_sub(self.required_retention);
        if behind.is_some_and(|behind| behind <= spare) {
            return None;
        }
        Some(format!(
            "message.timestamp.type is CreateTime: if a gateway's clock is behind, Kafka deletes its messages early; set \
             message.timestamp.type=LogAppendTime, or message.timestamp.before.max.ms to {} or less",
            spare.as_millis()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn requirements() -> TopicRequirements {
        TopicRequirements { required_replicas: 3, required_min_insync: 2, required_retention: 3 * DAY }
    }

    fn safe() -> Topic {
        Topic {
            partitions: 16,
            replicas: 3,
            min_insync: 2,
            unclean_election: false,
            cleanup_policy: "delete".into(),
            retention: Some(7 * DAY),
            retention_bytes: None,
            max_message_bytes: 2 << 20,
            clock: RetentionClock::Brokers,
            in_sync: vec![3; 16],
        }
    }

    #[test]
    fn producers_clock_is_safe_within_the_spare_retention() {
        let unsafe_clock = |behind, retention| {
            let clock = RetentionClock::Producers { behind, ahead: None };
            !requirements().unsafe_settings(&Topic { clock, retention, ..safe() }).is_empty()
        };
        assert!(unsafe_clock(None, Some(7 * DAY)));
        assert!(unsafe_clock(Some(5 * DAY), Some(7 * DAY)));
        assert!(!unsafe_clock(Some(4 * DAY), Some(7 * DAY)));
        assert!(!unsafe_clock(None, None), "without retention nothing is deleted");
    }

    #[test]
    fn safe_topic_has_no_unsafe_setting() {
        assert_eq!(requirements().unsafe_settings(&safe()), Vec::<String>::new());
        assert_eq!(requirements().unsafe_settings(&Topic { retention: None, ..safe() }), Vec::<String>::new());
    }

    #[test]
    fn each_unsafe_setting_is_reported() {
        for (name, topic) in [
            ("replication factor", Topic { replicas: 2, ..safe() }),
            ("min.insync.replicas", Topic { min_insync: 1, ..safe() }),
            ("unclean", Topic { unclean_election: true, ..safe() }),
            ("cleanup.policy", Topic { cleanup_policy: "compact,delete".into(), ..safe() }),
            ("retention.ms", Topic { retention: Some(DAY), ..safe() }),
            ("retention.bytes", Topic { retention_bytes: Some(1), ..safe() }),
            ("LogAppendTime", Topic { clock: RetentionClock::Producers { behind: None, ahead: None }, ..safe() }),
        ] {
            let found = requirements().unsafe_settings(&topic);
            assert!(found.len() == 1 && found[0].contains(name), "{name}: {found:?}");
        }
    }
}
