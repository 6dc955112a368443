//! Reads the start offsets, stable offsets and end offsets of partitions, with one request of each kind to each leader,
//! concurrently. A partition without a leader, or whose leader does not respond, delays no other partition.

use std::collections::{BTreeMap, HashMap};
use std::ptr;
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_IsolationLevel_t as IsolationLevel;
use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::{ClientError, RequestError};
use crate::partition::Partition;

/// The start offset, stable offset and end offset of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The offset of the oldest record, or the end offset if the partition is empty.
    pub start: i64,
    /// Consumers that read only committed records receive no record from here on: the first offset of an open
    /// transaction, or the end offset if no transaction is open.
    pub stable: i64,
    /// The end offset: after the last record that every in-sync replica has, whatever transactions are open.
    pub end: i64,
}

/// The requests to each leader: the offset that is requested, and whether the records of open transactions count. The
/// stable offset is requested last, so that a record that arrives between two requests does not look like an open
/// transaction.
const REQUESTS: [(Offset, IsolationLevel); 3] = [
    (Offset::Beginning, IsolationLevel::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED),
    (Offset::End, IsolationLevel::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED),
    (Offset::End, IsolationLevel::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED),
];

/// The partitions of one leader, with the offsets that it has returned so far.
#[derive(Default)]
struct Group {
    offsets: [HashMap<Partition, Result<i64, ClientError>>; REQUESTS.len()],
    /// The number of responses that are outstanding.
    open: usize,
}

/// Requests the start offsets, stable offsets and end offsets of these partitions. When a leader responds, `found` is called with all of its partitions.
/// It is not called with the partitions whose leader did not respond within `timeout`. Blocks up to `timeout`.
pub fn read<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partitions: &[Partition],
    timeout: Duration,
    mut found: impl FnMut(Answers<Ends>),
) -> Result<(), RequestError> {
    if partitions.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + timeout;
    // librdkafka waits until each partition of a request has a leader, and responds when the last leader has: so each leader
    // gets a request of its own, and only for partitions that are known to have one.
    let leaders = by_leader(client, topic, partitions, timeout);
    let (leaders, without) = leaders.map_err(RequestError::of_topic("find the leaders", topic))?;
    if !without.is_empty() {
        found(without);
    }
    let requests = Requests::send(client, topic, leaders.values(), deadline);
    let mut groups: Vec<Group> = leaders.values().map(|_| Group { open: REQUESTS.len(), ..Group::default() }).collect();
    while groups.iter().any(|group| group.open > 0) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some((number, offsets)) = requests.next(left) else { break };
        let Some(group) = groups.get_mut(number / REQUESTS.len()) else { continue };
        group.offsets[number % REQUESTS.len()].extend(offsets);
        group.open = group.open.saturating_sub(1);
        if group.open == 0 {
            let group = std::mem::take(group);
            found(group.ends());
        }
    }
    Ok(())
}

impl Group {
    fn ends(self) -> Answers<Ends> {
        let [starts, mut ends, mut stables] = self.offsets;
        let all = |(partition, start): (Partition, Result<i64, ClientError>)| {
            let (end, stable) = (ends.remove(&partition)?, stables.remove(&partition)?);
            Some((partition, combine(start, end, stable)))
        };
        starts.into_iter().filter_map(all).collect()
    }
}

fn combine(
    start: Result<i64, ClientError>,
    end: Result<i64, ClientError>,
    stable: Result<i64, ClientError>,
) -> Result<Ends, ClientError> {
    let (start, end, stable) = (start?, end?, stable?);
    // The leader may have appended records after it returned the end offset.
    Ok(Ends { start, stable: stable.min(end), end })
}

/// The result of each partition.
pub type Answers<T> = Vec<(Partition, Result<T, ClientError>)>;

type Leaders = BTreeMap<i32, Vec<Partition>>;

/// Returns the partitions by leader, and the partitions that have no leader.
fn by_leader<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partitions: &[Partition],
    timeout: Duration,
) -> Result<(Leaders, Answers<Ends>), ClientError> {
    let metadata = client.fetch_metadata(Some(topic), timeout)?;
    let known = metadata.topics().iter().find(|known| known.name() == topic);
    let known = known.ok_or_else(|| ClientError::MissingTopic(topic.to_owned()))?;
    let (mut leaders, mut without) = (Leaders::new(), Vec::new());
    for partition in partitions {
        let leader = known.partitions().iter().find(|known| known.id() == *partition).map(|known| known.leader());
        match leader {
            Some(leader) if leader >= 0 => leaders.entry(leader).or_default().push(*partition),
            _ => without.push((*partition, Err(ClientError::NoLeader))),
        }
    }
    Ok((leaders, without))
}

/// The outstanding requests. Those to the first leader have the numbers of `REQUESTS`, those to the next one the numbers
/// after these, and so on.
struct Requests {
    queue: *mut rd::rd_kafka_queue_t,
}

impl Requests {
    fn send<'a, C: ClientContext>(
        client: &Client<C>,
        topic: &str,
        leaders: impl Iterator<Item = &'a Vec<Partition>>,
        deadline: Instant,
    ) -> Requests {
        let rk = client.native_ptr();
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: the client is alive; the queue is destroyed once, in `drop`.
        let queue = unsafe { rd::rd_kafka_queue_new(rk) };
        let all = leaders.flat_map(|partitions| REQUESTS.map(|(which, isolation)| (partitions, which, isolation)));
        for (number, (partitions, which, isolation)) in all.enumerate() {
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for partition in partitions {
                list.add_partition_offset(topic, *partition, which).expect("both offsets are valid");
            }
            let mut reason = [0; 256];
            // SAFETY: all are alive; librdkafka copies the list and the options; the opaque is a number and never followed.
            unsafe {
                let options = rd::rd_kafka_AdminOptions_new(rk, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS);
                rd::rd_kafka_AdminOptions_set_request_timeout(options, millis, reason.as_mut_ptr(), reason.len());
                rd::rd_kafka_error_destroy(rd::rd_kafka_AdminOptions_set_isolation_level(options, isolation));
                rd::rd_kafka_AdminOptions_set_opaque(options, ptr::without_provenance_mut(number));
                rd::rd_kafka_ListOffsets(rk, list.ptr(), options, queue);
                rd::rd_kafka_AdminOptions_destroy(options);
            }
        }
        Requests { queue }
    }

    /// Returns the number of a request and its response, or `None` if no response arrives within `wait`.
    fn next(&self, wait: Duration) -> Option<(usize, Answers<i64>)> {
        let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive; the event is checked and destroyed once, after the last use of what it owns; indices
        // are below the count.
        unsafe {
            let event = rd::rd_kafka_queue_poll(self.queue, millis);
            if event.is_null() {
                return None;
            }
            let number = rd::rd_kafka_event_opaque(event).addr();
            let mut offsets = Vec::new();
            let result = rd::rd_kafka_event_ListOffsets_result(event);
            if rd::rd_kafka_event_error(event) == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
                && !result.is_null()
            {
                let mut count = 0;
                let infos = rd::rd_kafka_ListOffsets_result_infos(result, &mut count);
                for index in 0..count {
                    let element = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
                    let offset = match element.err {
                        rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR if element.offset >= 0 => {
                            Ok(element.offset)
                        }
                        rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                            Err(RDKafkaErrorCode::OffsetNotAvailable.into())
                        }
                        code => Err(RDKafkaErrorCode::from(code).into()),
                    };
                    offsets.push((element.partition, offset));
                }
            }
            rd::rd_kafka_event_destroy(event);
            Some((number, offsets))
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // SAFETY: `send` created the queue, and it is destroyed only here.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) };
    }
}
