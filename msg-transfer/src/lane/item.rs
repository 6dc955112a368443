//! A consumed record that is passed to a lane. It owns its bytes in one allocation, so that no fetch buffer is kept alive.

use std::sync::Arc;

use bytes::Bytes;
use machine::consumer::RecordRef;
use machine::{Assignment, LeaderEpoch, Partition, RecordOffset};

use super::headers::Headers;

/// A record that is passed to a lane.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: RecordOffset,
    /// The leader epoch of the leader that appended it.
    pub leader_epoch: LeaderEpoch,
    /// The assignment that it was received under.
    pub assignment: Arc<Assignment>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, packed.
    pub headers: Headers,
}

/// The bytes that a record needs in the lane and in the ledger in addition to its own: the measured number, rounded up.
const OVERHEAD: usize = 256;

impl Item {
    /// Returns its share of the limit on bytes in flight.
    pub fn cost(key: usize, value: usize, headers: usize) -> usize {
        key + value + headers + OVERHEAD
    }

    /// Returns the reference by which the lane reports the record to the consumer.
    pub fn record_ref(&self) -> RecordRef {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let bytes = Item::cost(length(&self.key), length(&self.value), self.headers.0.len());
        RecordRef { partition: self.partition, epoch: self.assignment.epoch, offset: self.offset, bytes }
    }
}
