//! A record as it came from Kafka: one allocation that owns its bytes, so that no fetch buffer is kept alive.

use std::sync::Arc;

use bytes::Bytes;
use machine::consumer::RecordRef;
use machine::{Assignment, LeaderEpoch, Partition, RecordOffset};

use super::headers::Headers;

/// A record on its way to a lane.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it lies.
    pub partition: Partition,
    /// Where in it.
    pub offset: RecordOffset,
    /// That of the leader which appended it.
    pub leader_epoch: LeaderEpoch,
    /// The assignment it was received under.
    pub assignment: Arc<Assignment>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, packed.
    pub headers: Headers,
}

/// What a record costs beyond its bytes, in the lane and in the ledger: a round number above what was counted.
const OVERHEAD: usize = 256;

impl Item {
    /// What it counts for the limit on bytes in flight.
    pub fn cost(key: usize, value: usize, headers: usize) -> usize {
        key + value + headers + OVERHEAD
    }

    /// What is given back for it.
    pub fn record_ref(&self) -> RecordRef {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let bytes = Item::cost(length(&self.key), length(&self.value), self.headers.0.len());
        RecordRef { partition: self.partition, epoch: self.assignment.epoch, offset: self.offset, bytes }
    }
}
