//! Checks Kafka: the brokers, the topic, the group and the lag.

use std::time::{Duration, Instant, SystemTime};

use msg_common::error::chain;
use msg_common::kafka::ClientPurpose;
use msg_common::kafka::topic::Topic;
use msg_common::limits::{DEFAULT_CONTENT_BYTES, Limits};
use msg_common::postgres::Pool;

use super::{Findings, Options};
use crate::commands::access::lag_reader;
use crate::commands::output::for_people;
use crate::config::Config;
use crate::lag::members::Group;
use crate::lag::watchdog::held;
use crate::lag::{Lag, LagError, LagReader, PartitionLag};

/// How long to wait until a record of each lagging partition is stored.
const STALL_CHECK_TIME: Duration = Duration::from_secs(5);

/// The assignor of the transfers.
const ASSIGNOR: &str = "cooperative-sticky";

/// Checks Kafka, as far as it responds.
pub(super) async fn check(config: &Config, options: &Options, pool: &Pool, findings: &mut Findings) {
    let reader = match lag_reader(config, pool.clone()).await {
        Ok(reader) => reader,
        Err(error) => return findings.failed("brokers", chain(&error)),
    };
    let name = &config.kafka.kafka_topic;
    match reader.topic().await {
        Err(error) if error.is_missing_topic() => {
            findings.ok("brokers", format!("{} respond", config.kafka.kafka_brokers));
            return findings.failed("topic", format!("{}; create it, or correct --kafka-topic", chain(&error)));
        }
        Err(error) => {
            let (brokers, error) = (&config.kafka.kafka_brokers, chain(&error));
            return findings.failed(
                "brokers",
                format!("{brokers}: {error}; check --kafka-brokers, the network, and the client's rights"),
            );
        }
        Ok(topic) => {
            findings.ok("brokers", format!("{} respond", config.kafka.kafka_brokers));
            check_topic(name, &topic, options, findings);
            check_message_size(&topic, findings);
        }
    }
    check_hints(config, &reader, findings).await;
    match reader.topic_id().await {
        Err(error) => {
            findings.failed("topic id", format!("{}; the client needs the right to describe the topic", chain(&error)));
        }
        Ok(id) if id.is_nil() => findings.warning(
            "topic id",
            "the brokers return none (they are older than 3.1), so the transfer does not detect that the topic was \
             recreated: never recreate it",
        ),
        Ok(id) => findings.ok("topic id", id.to_string()),
    }
    check_group(config, &reader, findings).await;
    match reader.read().await {
        Ok(lag) => {
            check_lag(&lag, findings);
            check_stalled(config, &reader, lag, findings).await;
        }
        Err(LagError::Kafka(error)) if error.missing_coordinator().is_some() => findings.failed("lag", chain(&error)),
        Err(LagError::Kafka(error)) => {
            let error = chain(&error);
            findings.failed("lag", format!("{error}; the client needs the right to read the topic and the group"));
        }
        Err(LagError::Database(error)) => {
            let error = chain(&error);
            findings.warning("lag", format!("cannot be read without the database's progress rows: {error}"));
        }
    }
}

fn check_topic(name: &str, topic: &Topic, options: &Options, findings: &mut Findings) {
    let found = options.requirements.unsafe_settings(topic);
    for setting in &found {
        let detail = format!("an accepted message could be lost: {setting}");
        if options.allow_unsafe_topic {
            findings.warning("topic", format!("{detail} (accepted by --allow-unsafe-topic)"));
        } else {
            findings.failed("topic", format!("{detail}; change it, or accept it with --allow-unsafe-topic"));
        }
    }
    if found.is_empty() {
        let retention =
            topic.retention.map_or_else(|| "without limit".to_owned(), |time| format!("for {}", for_people(time)));
        findings.ok(
            "topic",
            format!(
                "{name} has {} partitions with {} replicas, min.insync.replicas {}, and keeps records {retention}",
                topic.partitions, topic.replicas, topic.min_insync
            ),
        );
    }
}

/// Reports the maximum content size that the topic accepts. The gateways' own limit is not known here.
fn check_message_size(topic: &Topic, findings: &mut Findings) {
    let limit = topic.max_message_bytes;
    let fits = limit.saturating_sub(Limits { max_id_bytes: 256, max_content_bytes: 0 }.max_record_bytes());
    let detail = format!("max.message.bytes is {limit}: MAX_CONTENT_BYTES of the gateways may be up to {fits}");
    if fits < DEFAULT_CONTENT_BYTES {
        findings.warning("message size", format!("{detail}, and its default is {DEFAULT_CONTENT_BYTES}"));
    } else {
        findings.ok("message size", detail);
    }
}

/// Checks the hints topic. Without hints no message is lost, so a problem is only a warning.
async fn check_hints(config: &Config, reader: &LagReader, findings: &mut Findings) {
    let Some(name) = config.kafka.hints_topic() else {
        return findings.ok("hints", "switched off: gateways find new rows only by polling");
    };
    match reader.describe(&name).await {
        Ok(_) => findings.ok("hints", format!("{name} exists")),
        Err(error) => findings.warning(
            "hints",
            format!(
                "{}: WAIT_FOR_STORED and WatchMsgs respond later; create it with one partition, or set --hints-topic \
                 to none",
                chain(&error)
            ),
        ),
    }
}

async fn check_group(config: &Config, reader: &LagReader, findings: &mut Findings) {
    let name = &config.consumer.group_id;
    match reader.group(name).await {
        Err(error) => findings.failed("group", chain(&error)),
        Ok(Some(group)) if !group.members.is_empty() => {
            findings.ok("group", format!("{name} is {}, members: {}", group.state, group.members.len()));
            check_members(config, &group, findings);
        }
        Ok(_) => findings.warning("group", format!("{name} has no members: no transfer runs, so nothing is stored")),
    }
}

/// Checks that all members are transfers. Another program gets partitions whose records no transfer stores, or its
/// protocol prevents every transfer from joining.
fn check_members(config: &Config, group: &Group, findings: &mut Findings) {
    let name = &config.consumer.group_id;
    let ours = config.kafka.client_id(ClientPurpose::Consumer);
    let foreign = group.foreign(&ours).join(", ");
    let fix = "give it a group of its own, or the transfers another --group-id";
    if group.protocol_type != "consumer" {
        findings
            .failed("members", format!("{name} is a group of type {}, not of consumers: {fix}", group.protocol_type));
    } else if !group.assignor.is_empty() && group.assignor != ASSIGNOR {
        let who = if foreign.is_empty() { "another program".to_owned() } else { foreign };
        findings.failed(
            "members",
            format!(
                "{who}: the group uses the assignor {}, and transfers use {ASSIGNOR}, so no transfer can join: {fix}",
                group.assignor
            ),
        );
    } else if foreign.is_empty() {
        findings.ok("members", format!("all are transfers (client.id {ours})"));
    } else {
        findings.warning(
            "members",
            format!("{foreign}: not a transfer (client.id {ours}); partitions that it gets are not stored: {fix}"),
        );
    }
}

/// Checks that no partition is stalled: its oldest record is older than the stall timeout, and during the check none is
/// stored.
async fn check_stalled(config: &Config, reader: &LagReader, before: Lag, findings: &mut Findings) {
    // Without members no record is stored. The check of the group reports that.
    let group = reader.group(&config.consumer.group_id).await;
    if !matches!(group, Ok(Some(group)) if !group.members.is_empty()) {
        return;
    }
    let now = SystemTime::now();
    let old = |lag: &PartitionLag| lag.age(now).is_none_or(|age| age >= config.consumer.stall_timeout);
    let mut waiting: Vec<PartitionLag> = before.partitions.into_iter().filter(old).collect();
    let deadline = Instant::now() + STALL_CHECK_TIME;
    while !waiting.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Ok(after) = reader.count().await else { continue };
        waiting = waiting
            .iter()
            .filter_map(|lag| Some(*after.of(lag.partition)?).filter(|a| a.next() == lag.next()))
            .collect();
    }
    let empty = reader.without_records(waiting.iter().map(|lag| (lag.partition, lag.unstored_from())).collect()).await;
    let (empty, stalled): (Vec<PartitionLag>, Vec<PartitionLag>) =
        waiting.into_iter().partition(|lag| empty.contains(&lag.partition));
    // Of the other empty partitions, the end offset counts only the marks of transactions.
    let in_transaction: Vec<_> = empty.into_iter().filter(|lag| lag.readable_end() < lag.end).collect();
    for lag in &in_transaction {
        findings.failed("stalled", held(&config.kafka.kafka_topic, lag.partition, lag.stable));
    }
    let stalled: Vec<_> = stalled.iter().map(|lag| lag.partition).collect();
    if !stalled.is_empty() {
        findings.failed(
            "stalled",
            format!(
                "records of partitions {stalled:?} wait and none is stored, though the group has members: /readyz of \
                 each transfer says why"
            ),
        );
    } else if in_transaction.is_empty() {
        findings.ok("stalled", "no partition is stalled");
    }
}

fn check_lag(lag: &Lag, findings: &mut Findings) {
    let now = SystemTime::now();
    if !lag.unreachable.is_empty() {
        let unreachable = &lag.unreachable;
        findings
            .failed("leaders", format!("partitions {unreachable:?} have no leader that responds: check the brokers"));
    }
    let deleted: Vec<_> =
        lag.partitions.iter().filter(|one| one.expired_unstored() > 0).map(|one| one.partition).collect();
    if !deleted.is_empty() {
        findings.failed(
            "lag",
            format!(
                "partitions {deleted:?} start above their progress rows: Kafka may have deleted records before they \
                 were stored; restore the database, or accept the loss with --start-at-oldest"
            ),
        );
    }
    for one in lag.partitions.iter().filter(|one| one.next() > one.end) {
        findings.warning(
            "lost records",
            format!(
                "partition {} ends at {} and was read up to {}: Kafka lost the records in between; the transfer that \
                 owns it reports them and continues at the end",
                one.partition,
                one.end,
                one.next()
            ),
        );
    }
    let behind = lag.records();
    let Some(left) = lag.least_headroom(now) else {
        return findings.ok("lag", format!("{behind} records are not stored yet"));
    };
    let age = lag.longest_age(now).map_or_else(|| "an unknown time".to_owned(), for_people);
    let detail = format!(
        "{behind} records are not stored yet, the oldest for {age}; {} until it may be deleted",
        for_people(left)
    );
    // A day is enough for an operator to act, also at night.
    let little = lag.topic.retention.is_some_and(|retention| left < retention / 4) || left.as_secs() < 86_400;
    if little {
        findings.warning("lag", format!("{detail}: start transfers, or lengthen the topic's retention.ms now"));
    } else {
        findings.ok("lag", detail);
    }
}
