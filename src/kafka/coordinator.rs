//! Detects that a consumer group has no coordinator: the leader of one partition of Kafka's internal topic. While that
//! partition has no leader, librdkafka retries every request of the group, and reports no error.

use std::time::Duration;

use rdkafka::client::{Client, ClientContext};

use crate::partition::Partition;

/// The topic of the groups' offsets.
const TOPIC: &str = "__consumer_offsets";

/// Returns which partition without a leader keeps the group from having a coordinator. Returns `None` if the group has
/// one, or if the brokers do not show that topic: it needs a right of its own. Blocks up to `timeout`.
pub fn missing<C: ClientContext>(client: &Client<C>, group: &str, timeout: Duration) -> Option<String> {
    let metadata = client.fetch_metadata(Some(TOPIC), timeout).ok()?;
    let partitions = metadata.topics().iter().find(|topic| topic.name() == TOPIC)?.partitions();
    let wanted = partition_of(group, u32::try_from(partitions.len()).ok()?)?;
    let is_missing = partitions.iter().any(|partition| partition.id() == wanted && partition.leader() < 0);
    is_missing.then(|| format!("{TOPIC} partition {wanted} has no leader"))
}

/// Returns the partition of a group, as the brokers compute it with Java's hash of a text.
fn partition_of(group: &str, count: u32) -> Option<Partition> {
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()));
    // Kafka uses 0 for the lowest number, which has no absolute value.
    let positive = hash.checked_abs().unwrap_or(0).unsigned_abs();
    Partition::try_from(positive.checked_rem(count)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_of_a_group_is_that_of_the_brokers() {
        assert_eq!(partition_of("a", 50), Some(97 % 50));
        assert_eq!(partition_of("msg-transfer", 50), Some(817_072_969 % 50));
        // Its hash is the lowest number.
        assert_eq!(partition_of("polygenelubricants", 50), Some(0));
        assert_eq!(partition_of("a", 0), None);
    }
}
