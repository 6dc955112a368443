//! What the topic must be like for an OK to mean what it says, and how it is found out.

use std::time::Duration;

use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::metadata::Metadata;

use crate::config::parse_duration;
use crate::partition::Partition;

/// What is required of the topic.
#[derive(Args, Clone, Debug)]
pub struct TopicRequirements {
    /// Fewest replicas of each partition
    #[arg(long, env = "REQUIRED_REPLICAS", default_value_t = 3, value_name = "N")]
    pub required_replicas: usize,
    /// Lowest min.insync.replicas
    #[arg(long, env = "REQUIRED_MIN_INSYNC", default_value_t = 2, value_name = "N")]
    pub required_min_insync: usize,
    /// Shortest retention: how long the database may be away before a message is lost
    #[arg(long, env = "REQUIRED_RETENTION", default_value = "3days", value_parser = parse_duration, value_name = "TIME")]
    pub required_retention: Duration,
}

/// What the topic is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// How many partitions.
    pub partitions: Partition,
    /// Replicas of the partition that has the fewest.
    pub replicas: usize,
    /// `min.insync.replicas`.
    pub min_insync: usize,
    /// `unclean.leader.election.enable`.
    pub unclean_election: bool,
    /// `cleanup.policy`.
    pub cleanup_policy: String,
    /// `retention.ms`; `None` is for ever.
    pub retention: Option<Duration>,
    /// `retention.bytes` of a partition; `None` is no limit.
    pub retention_bytes: Option<u64>,
    /// `max.message.bytes`.
    pub max_message_bytes: usize,
}

/// Why the topic's settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// It is not there.
    #[error("topic {0} does not exist")]
    Missing(String),
    /// Kafka did not answer, or with an error.
    #[error("{0}")]
    Unreachable(String),
}

/// Reads the topic's settings. Blocks one thread of the runtime's blocking pool for up to `timeout`, twice.
pub async fn describe<C: ClientContext + 'static>(
    admin: &std::sync::Arc<AdminClient<C>>,
    topic: &str,
    timeout: Duration,
) -> Result<Topic, TopicError> {
    let (client, name) = (admin.clone(), topic.to_owned());
    let metadata = tokio::task::spawn_blocking(move || client.inner().fetch_metadata(Some(&name), timeout))
        .await
        .map_err(|error| TopicError::Unreachable(error.to_string()))?
        .map_err(|error| TopicError::Unreachable(error.to_string()))?;
    // Taken out of it before the next wait: the metadata itself may not move between threads.
    let (partitions, replicas) = placed(&metadata, topic)?;
    drop(metadata);
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let described = admin
        .describe_configs(&[ResourceSpecifier::Topic(topic)], &options)
        .await
        .map_err(|error| TopicError::Unreachable(error.to_string()))?;
    let config = match described.into_iter().next() {
        Some(Ok(config)) => config,
        Some(Err(error)) => return Err(TopicError::Unreachable(error.to_string())),
        None => return Err(TopicError::Unreachable("no answer about the topic".into())),
    };
    let text = |name: &str| {
        let value = config.entry_map().get(name).and_then(|entry| entry.value.clone());
        value.ok_or_else(|| TopicError::Unreachable(format!("the broker did not tell {name}")))
    };
    let number = |name: &str| {
        let text = text(name)?;
        text.parse::<i64>().map_err(|_| TopicError::Unreachable(format!("{name} is {text}")))
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
    })
}

/// How many partitions the topic has, and how many replicas the one that has the fewest.
fn placed(metadata: &Metadata, topic: &str) -> Result<(Partition, usize), TopicError> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or_else(|| TopicError::Missing(topic.to_owned()))?;
    match found.error().map(rdkafka::types::RDKafkaErrorCode::from) {
        None => {}
        Some(rdkafka::types::RDKafkaErrorCode::UnknownTopicOrPartition) => {
            return Err(TopicError::Missing(topic.to_owned()));
        }
        Some(error) => return Err(TopicError::Unreachable(error.to_string())),
    }
    let partitions = Partition::try_from(found.partitions().len()).unwrap_or(Partition::MAX);
    Ok((partitions, found.partitions().iter().map(|p| p.replicas().len()).min().unwrap_or(0)))
}

impl TopicRequirements {
    /// Why an accepted message could be lost with this topic: empty when it is safe.
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
        found
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
        }
    }

    #[test]
    fn a_safe_topic_is_safe() {
        assert_eq!(requirements().unsafe_settings(&safe()), Vec::<String>::new());
        assert_eq!(requirements().unsafe_settings(&Topic { retention: None, ..safe() }), Vec::<String>::new());
    }

    #[test]
    fn each_unsafe_setting_is_told() {
        for (name, topic) in [
            ("replication factor", Topic { replicas: 2, ..safe() }),
            ("min.insync.replicas", Topic { min_insync: 1, ..safe() }),
            ("unclean", Topic { unclean_election: true, ..safe() }),
            ("cleanup.policy", Topic { cleanup_policy: "compact,delete".into(), ..safe() }),
            ("retention.ms", Topic { retention: Some(DAY), ..safe() }),
            ("retention.bytes", Topic { retention_bytes: Some(1), ..safe() }),
        ] {
            let found = requirements().unsafe_settings(&topic);
            assert!(found.len() == 1 && found[0].contains(name), "{name}: {found:?}");
        }
    }
}
