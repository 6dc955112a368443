//! The members of the consumer group, and which of them has a partition. A member with another `client.id` than ours is
//! no transfer: what it gets, no transfer stores.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use msg_common::error::chain;
use msg_common::kafka::RequestError;
use msg_common::partition::Partition;
use rdkafka::groups::GroupMemberInfo;

/// The consumer group, as its coordinator describes it.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub state: String,
    /// `consumer` for programs that share partitions.
    pub protocol_type: String,
    /// The assignor that its members use; empty while none is chosen.
    pub assignor: String,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub client_id: String,
    pub host: String,
    /// The partitions of the topic that the group has assigned to it. None during a rebalance.
    pub partitions: Vec<Partition>,
}

impl Member {
    /// Returns the name of the program for operators.
    pub(crate) fn name(&self) -> String {
        format!("{} on {}", self.client_id, self.host.trim_start_matches('/'))
    }
}

impl Group {
    /// Returns the names of the members that are no transfers, each once.
    pub(crate) fn foreign(&self, client_id: &str) -> Vec<String> {
        let foreign = self.members.iter().filter(|member| member.client_id != client_id).map(Member::name);
        foreign.collect::<BTreeSet<String>>().into_iter().collect()
    }
}

pub(super) fn member(info: &GroupMemberInfo, topic: &str) -> Member {
    Member {
        client_id: info.client_id().to_owned(),
        host: info.client_host().to_owned(),
        partitions: info.assignment().and_then(|bytes| assigned(bytes, topic)).unwrap_or_default(),
    }
}

/// Parses the partitions of a topic from an assignment of Kafka's consumer protocol: a version, and for each topic its
/// name and partitions. Returns `None` if the bytes are something else.
fn assigned(bytes: &[u8], topic: &str) -> Option<Vec<Partition>> {
    let (_version, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut found = Vec::new();
    for _ in 0..number(&mut rest)? {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        rest = after;
        for _ in 0..number(&mut rest)? {
            let partition = number(&mut rest)?;
            if name == topic.as_bytes() {
                found.push(partition);
            }
        }
    }
    Some(found)
}

/// Removes a number of 32 bits from the start.
fn number(bytes: &mut &[u8]) -> Option<i32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(i32::from_be_bytes(*number))
}

/// The members that have stalled partitions which this process does not own, as the group was described last.
#[derive(Debug)]
pub(super) struct Holders {
    client_id: String,
    members: Option<Result<Vec<Member>, String>>,
    /// When a transfer last had each partition.
    transfers: HashMap<Partition, Duration>,
}

impl Holders {
    pub(super) fn new(client_id: String) -> Self {
        Holders { client_id, members: None, transfers: HashMap::new() }
    }

    /// Updates the members with a description of the group, which does not exist if it is `None`.
    pub(super) fn update(&mut self, now: Duration, group: Result<Option<Group>, RequestError>) {
        let members = group.map(|group| group.map_or_else(Vec::new, |group| group.members));
        let transfers = members.iter().flatten().filter(|member| member.client_id == self.client_id);
        self.transfers.extend(transfers.flat_map(|member| &member.partitions).map(|partition| (*partition, now)));
        self.members = Some(members.map_err(|error| chain(&error)));
    }

    /// Returns why no transfer stores the records of a partition, or `None` if another transfer had the partition
    /// within `recently`: that one reports it, and a rebalance may be in progress.
    pub(super) fn problem(&self, now: Duration, partition: Partition, recently: Duration) -> Option<String> {
        if let Some(Ok(members)) = &self.members
            && let Some(member) = members.iter().find(|member| member.partitions.contains(&partition))
            && member.client_id != self.client_id
        {
            return Some(format!(
                "{} has it, and is no transfer, because their client.id is {}; give that program a group of its own",
                member.name(),
                self.client_id
            ));
        }
        if self.transfers.get(&partition).is_some_and(|seen| now.saturating_sub(*seen) <= recently) {
            return None;
        }
        Some(match &self.members {
            Some(Ok(_)) => "no member of the group has it".to_owned(),
            Some(Err(error)) => format!("not known which member of the group has it: {error}"),
            None => "not known which member of the group has it".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use msg_common::kafka::ClientError;

    use super::*;

    /// Returns an assignment of the consumer protocol with these topics.
    fn assignment(topics: &[(&str, &[Partition])]) -> Vec<u8> {
        let number = |count: usize| u32::try_from(count).expect("small").to_be_bytes();
        let mut bytes = vec![0, 1];
        bytes.extend(number(topics.len()));
        for (topic, partitions) in topics {
            bytes.extend(u16::try_from(topic.len()).expect("small").to_be_bytes());
            bytes.extend(topic.as_bytes());
            bytes.extend(number(partitions.len()));
            partitions.iter().for_each(|partition| bytes.extend(partition.to_be_bytes()));
        }
        // The assignor's own data follows.
        bytes.extend([0xff; 4]);
        bytes
    }

    #[test]
    fn partitions_of_the_topic_are_read_from_an_assignment() {
        let bytes = assignment(&[("other", &[7]), ("msgs", &[3, 260]), ("msgs-hints", &[0])]);
        assert_eq!(assigned(&bytes, "msgs"), Some(vec![3, 260]));
        assert_eq!(assigned(&bytes, "missing"), Some(vec![]));
        for length in 0..bytes.len() - 4 {
            assert_eq!(assigned(&bytes[..length], "msgs"), None, "{length} bytes");
        }
    }

    fn group(members: &[(&str, &[Partition])]) -> Result<Option<Group>, RequestError> {
        let member = |(client_id, partitions): &(&str, &[Partition])| Member {
            client_id: (*client_id).to_owned(),
            host: "/10.0.0.7".to_owned(),
            partitions: partitions.to_vec(),
        };
        Ok(Some(Group {
            state: "Stable".to_owned(),
            protocol_type: "consumer".to_owned(),
            assignor: "cooperative-sticky".to_owned(),
            members: members.iter().map(member).collect(),
        }))
    }

    #[test]
    fn partition_is_a_problem_unless_a_transfer_recently_had_it() {
        let seconds = Duration::from_secs;
        let mut holders = Holders::new("msg".to_owned());
        let problem =
            |holders: &Holders, now| holders.problem(seconds(now), 1, seconds(15)).unwrap_or_else(|| "none".to_owned());
        assert_eq!(problem(&holders, 1), "not known which member of the group has it");
        holders.update(seconds(2), group(&[("msg", &[0]), ("console", &[1])]));
        let foreign = problem(&holders, 2);
        assert!(foreign.starts_with("console on 10.0.0.7 has it, and is no transfer"), "{foreign}");
        assert_eq!(holders.problem(seconds(2), 0, seconds(15)), None);
        holders.update(seconds(4), group(&[("msg", &[0, 1])]));
        assert_eq!(problem(&holders, 4), "none");
        // A rebalance: the group does not say who has which partition.
        holders.update(seconds(6), group(&[("msg", &[]), ("msg", &[])]));
        assert_eq!((problem(&holders, 6).as_str(), problem(&holders, 19).as_str()), ("none", "none"));
        assert_eq!(problem(&holders, 20), "no member of the group has it");
        holders.update(seconds(22), Err(RequestError::of_topic("x", "msgs")(ClientError::TimedOut)));
        assert!(problem(&holders, 22).starts_with("not known which member of the group has it: cannot x"));
    }

    #[test]
    fn foreign_members_are_named_once() {
        let group = group(&[("msg", &[]), ("console", &[]), ("console", &[1]), ("a", &[])]);
        let group = group.expect("it is described").expect("it exists");
        assert_eq!(group.foreign("msg"), ["a on 10.0.0.7", "console on 10.0.0.7"]);
    }
}
