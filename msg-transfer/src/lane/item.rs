//! A record as it came from Kafka: one allocation that owns its bytes, so that no fetch buffer is kept alive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use msg_common::partition::Partition;
use uuid::Uuid;

use crate::consumer::progress::Generation;
use crate::machine::offset::RecordOffset;
use crate::machine::{Epoch, Receipt};

/// One assignment of a partition, as the lanes see it.
#[derive(Debug)]
pub struct Assignment {
    /// Which one.
    pub epoch: Epoch,
    read: OnceLock<(Uuid, Generation)>,
    fenced: AtomicBool,
}

impl Assignment {
    /// Not fenced; its start, and so its topic's id, is not known yet.
    pub fn new(epoch: Epoch) -> Self {
        Assignment { epoch, read: OnceLock::new(), fenced: AtomicBool::new(false) }
    }

    /// The id that tells a topic from its successor under the same name; nil where the broker gives none. `None`
    /// before the start is known.
    pub fn topic_id(&self) -> Option<Uuid> {
        self.read.get().map(|(topic_id, _)| *topic_id)
    }

    /// Over which connection the start was read. `None` before it is known.
    pub fn generation(&self) -> Option<Generation> {
        self.read.get().map(|(_, generation)| *generation)
    }

    /// The start was read. Only the first call counts.
    pub fn start_read(&self, topic_id: Uuid, generation: Generation) {
        let _ = self.read.set((topic_id, generation));
    }

    /// From now on, nothing that was received under it may be written.
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether it is over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }
}

/// A record on its way to a lane.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it lies.
    pub partition: Partition,
    /// Where in it.
    pub offset: RecordOffset,
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
    pub fn receipt(&self) -> Receipt {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let bytes = Item::cost(length(&self.key), length(&self.value), self.headers.0.len());
        Receipt { partition: self.partition, epoch: self.assignment.epoch, offset: self.offset, bytes }
    }
}

/// A record's headers, packed as they are kept in a dead letter: for each, the length of its key in 4 bytes, the key,
/// the length of its value in 4 bytes (all ones: no value), the value. Lengths are in network order. Keys and values
/// are bytes: Kafka does not ask for UTF-8.
#[derive(Clone, Debug, Default)]
pub struct Headers(pub Bytes);

const NO_VALUE: u32 = u32::MAX;

impl Headers {
    /// Appends one header to `packed`.
    pub fn pack(packed: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a record is far smaller than 4 GiB");
        packed.extend_from_slice(&length(key).to_be_bytes());
        packed.extend_from_slice(key);
        packed.extend_from_slice(&value.map_or(NO_VALUE, length).to_be_bytes());
        packed.extend_from_slice(value.unwrap_or_default());
    }

    /// The value of the last header with this key, as Kafka's own clients look one up.
    pub fn last(&self, key: &str) -> Option<&[u8]> {
        let mut rest: &[u8] = &self.0;
        let mut found = None;
        while let Some((name, value, after)) = unpack(rest) {
            if name == key.as_bytes() {
                found = value;
            }
            rest = after;
        }
        found
    }
}

type Unpacked<'a> = (&'a [u8], Option<&'a [u8]>, &'a [u8]);

fn unpack(packed: &[u8]) -> Option<Unpacked<'_>> {
    let (key, rest) = take(packed)?;
    let (value, rest) = take(rest)?;
    Some((key?, value, rest))
}

fn take(packed: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = packed.split_first_chunk::<4>()?;
    match u32::from_be_bytes(*length) {
        NO_VALUE => Some((None, rest)),
        length => rest.split_at_checked(length as usize).map(|(bytes, rest)| (Some(bytes), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_by_their_last_occurrence() {
        let mut packed = Vec::new();
        Headers::pack(&mut packed, b"a", Some(b"1"));
        Headers::pack(&mut packed, b"\xff", Some(b""));
        Headers::pack(&mut packed, b"b", None);
        Headers::pack(&mut packed, b"a", Some(b"22"));
        let headers = Headers(packed.into());
        assert_eq!(headers.last("a"), Some(b"22".as_slice()));
        assert_eq!(headers.last("b"), None);
        assert_eq!(headers.last("c"), None);
    }
}
