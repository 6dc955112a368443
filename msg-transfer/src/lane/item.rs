//! A consumed record, and how it is passed to a lane.

use std::sync::Arc;

use bytes::Bytes;
use machine::consumer::RecordRef;
use machine::driver::Record;
use machine::{Assignment, LeaderEpoch, Partition, RecordOffset};

use super::headers::Headers;

/// A consumed record. It owns its bytes in one allocation, so that no fetch buffer is kept alive.
#[derive(Clone, Debug)]
pub(crate) struct RawRecord {
    pub partition: Partition,
    pub offset: RecordOffset,
    pub leader_epoch: LeaderEpoch,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Headers,
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub record: RawRecord,
    /// The assignment that it was received under.
    pub assignment: Arc<Assignment>,
}

/// The bytes that a record needs in the lane and in the ledger in addition to its own: the measured number, rounded up.
const OVERHEAD: usize = 256;

impl Record for RawRecord {
    fn partition(&self) -> Partition {
        self.partition
    }

    fn offset(&self) -> RecordOffset {
        self.offset
    }

    fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    fn cost(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        length(&self.key) + length(&self.value) + self.headers.packed().len() + OVERHEAD
    }

    fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }
}

impl Item {
    /// Returns the reference by which the lane reports the record to the consumer.
    pub(crate) fn record_ref(&self) -> RecordRef {
        let RawRecord { partition, offset, .. } = self.record;
        RecordRef { partition, epoch: self.assignment.epoch, offset, bytes: self.record.cost() }
    }
}
