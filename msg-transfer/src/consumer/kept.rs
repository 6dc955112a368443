//! Reads from each partition's leader where the records of a leader epoch end: the consumed records below it are still
//! in the log.
//!
//! librdkafka sends that request (OffsetForLeaderEpoch) only to validate a position, and returns the result only in the
//! text of the error that it reports if the position is above that end. So the position is above the end of every log.

use std::collections::HashMap;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use machine::consumer::start::Kept;
use machine::{LeaderEpoch, NextOffset, Partition, Progress};
use msg_common::kafka::cause::Causes;
use msg_common::kafka::{ClientError, ClientSetup, KafkaClient, raw};
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::lag::kafka::LogContext;

/// An offset that is above the end of every log.
const BEYOND: i64 = 1 << 62;

/// How long to wait for a result before the requests that could not be sent yet are retried.
const STEP: Duration = Duration::from_millis(50);

/// Reads the ends, each time with a new client: a validation needs an assignment, and after its error librdkafka
/// validates no further position in the same client.
#[derive(Clone)]
pub(crate) struct KeptProbe {
    config: ClientSetup,
    topic: String,
}

impl KeptProbe {
    /// Creates a probe. `config` names the group, which the probe does not join.
    pub(crate) fn new(config: &ClientSetup, topic: String) -> Self {
        let mut config = config.clone();
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Otherwise librdkafka continues at the log's end, and reports no error.
            .set("auto.offset.reset", "error")
            .set("queued.min.messages", "1")
            .set("fetch.message.max.bytes", "1024")
            .set("fetch.wait.max.ms", "10");
        KeptProbe { config, topic }
    }

    /// Returns where the records up to these leader epochs end. If a partition is left out, its leader did not respond
    /// within `timeout`. Blocks.
    pub(crate) fn read(
        &self,
        rows: &[(Partition, LeaderEpoch)],
        timeout: Duration,
    ) -> Result<HashMap<Partition, Kept>, ClientError> {
        let mut known = HashMap::new();
        if rows.is_empty() {
            return Ok(known);
        }
        let context = LogContext(Causes::default());
        let consumer: KafkaClient<BaseConsumer<LogContext>> = self.config.create_with_context(context)?;
        let deadline = Instant::now() + timeout;
        let mut list = TopicPartitionList::new();
        for (partition, _) in rows {
            list.add_partition_offset(&self.topic, *partition, Offset::End)?;
        }
        consumer.assign(&list)?;
        let epochs: HashMap<Partition, LeaderEpoch> = rows.iter().copied().collect();
        let mut remaining: Vec<Partition> = epochs.keys().copied().collect();
        while known.len() < epochs.len() && Instant::now() < deadline {
            remaining = self.seek(&consumer, &remaining, &epochs)?;
            while let Some((partition, text)) = next_error(&consumer, STEP) {
                let kept = epochs.get(&partition).and_then(|epoch| parse(&text, *epoch));
                if let Some(kept) = kept {
                    known.insert(partition, kept);
                } else {
                    tracing::debug!(partition, text, "received an error that is no result of a validation");
                }
                if known.len() == epochs.len() {
                    break;
                }
            }
        }
        consumer.unassign()?;
        Ok(known)
    }

    /// Sends the requests for these partitions. Returns the partitions whose requests could not be sent, because
    /// librdkafka has not carried out their assignment yet.
    fn seek(
        &self,
        consumer: &BaseConsumer<LogContext>,
        partitions: &[Partition],
        epochs: &HashMap<Partition, LeaderEpoch>,
    ) -> Result<Vec<Partition>, ClientError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(BEYOND))?;
        }
        raw::set_leader_epochs(&mut list, |partition| epochs.get(&partition).map_or(-1, |epoch| epoch.0));
        let millis = i32::try_from(STEP.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: both are alive; the error, which the elements contain too, is destroyed once.
        unsafe {
            let error = rd::rd_kafka_seek_partitions(consumer.client().native_ptr(), list.ptr(), millis);
            rd::rd_kafka_error_destroy(error);
        }
        Ok(list
            .elements()
            .iter()
            .filter(|element| element.error().is_err())
            .map(|element| element.partition())
            .collect())
    }
}

/// Returns the next error of a partition, or `None` if there is none within `wait`.
fn next_error(consumer: &BaseConsumer<LogContext>, wait: Duration) -> Option<(Partition, String)> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client is alive; the message is checked, and destroyed once after its last use; the text is
        // copied.
        unsafe {
            let message = rd::rd_kafka_consumer_poll(consumer.client().native_ptr(), millis);
            if message.is_null() {
                return None;
            }
            let view = &*message;
            let failed = view.err != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
            let text = failed.then(|| rd::rd_kafka_message_errstr(message));
            let text = text.filter(|text| !text.is_null());
            let found = text.map(|text| (view.partition, CStr::from_ptr(text).to_string_lossy().into_owned()));
            rd::rd_kafka_message_destroy(message);
            if found.is_some() {
                return found;
            }
        }
    }
}

/// Parses the result for this leader epoch from librdkafka's text. Returns `None` if the text is about something else.
fn parse(text: &str, epoch: LeaderEpoch) -> Option<Kept> {
    let (_, rest) = text.split_once(&format!("offset {BEYOND} (leader epoch {})", epoch.0))?;
    let Some((_, rest)) = rest.split_once("broker end offset is ") else {
        // If the broker does not support the request, librdkafka fetches a record at that offset instead.
        return text.contains("not available on the broker").then_some(Kept::Unknown);
    };
    let (offset, rest) = rest.split_once(" (offset leader epoch ")?;
    let (found, _) = rest.split_once(')')?;
    let (offset, found): (i64, i32) = (offset.parse().ok()?, found.parse().ok()?);
    if offset < 0 || found < 0 {
        return Some(Kept::Nothing);
    }
    Some(Kept::UpTo(Progress { next: NextOffset(offset), leader_epoch: LeaderEpoch(found) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_of_validation_is_read_from_its_text() {
        let text = |epoch: i32, end: &str| {
            format!(
                "Partition log truncation detected at offset {BEYOND} (leader epoch {epoch}): broker end offset is \
                 {end}. Reset to INVALID."
            )
        };
        let at = |next, epoch| Progress { next: NextOffset(next), leader_epoch: LeaderEpoch(epoch) };
        let found = text(3, "80 (offset leader epoch 2)");
        assert_eq!(parse(&found, LeaderEpoch(3)), Some(Kept::UpTo(at(80, 2))));
        assert_eq!(parse(&found, LeaderEpoch(30)), None, "the result is for another epoch");
        assert_eq!(parse(&text(3, "-1 (offset leader epoch -1)"), LeaderEpoch(3)), Some(Kept::Nothing));
        let old =
            format!("fetch failed: offset {BEYOND} (leader epoch 3): requested offset not available on the broker");
        assert_eq!(parse(&old, LeaderEpoch(3)), Some(Kept::Unknown));
        assert_eq!(parse("something else", LeaderEpoch(3)), None);
    }
}
