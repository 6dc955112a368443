//! Topics, partitions and records.

use machine::{Partition, Reason};

/// Names of inboxes. The numbers of partitions follow from an inbox's place here.
pub(crate) const INBOXES: [&str; 10] = ["ann", "bob", "cem", "dan", "eve", "fay", "gus", "han", "ida", "jim"];

/// What is special about a record. It goes with the id and the version: a repeat has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    /// Of many bytes, and good.
    Huge,
    Undecodable,
    Invalid,
    /// Written by a newer version.
    Newer,
    /// The database refuses it …
    Refused,
    /// … only when the transaction commits …
    RefusedAtCommit,
    /// … for its size …
    TooLarge,
    /// … for the time that it takes.
    Toxic,
}

impl Nature {
    /// From so many bytes on a record counts as huge.
    pub(crate) const HUGE: usize = 60;

    pub(crate) fn bytes(self) -> usize {
        if matches!(self, Nature::Huge | Nature::Toxic) { Nature::HUGE } else { 10 }
    }

    /// Whether the database would ever take it.
    pub(crate) fn is_storable(self) -> bool {
        matches!(self, Nature::Good | Nature::Huge | Nature::Newer)
    }

    /// As what it may be kept aside, apart from a conflict.
    pub(crate) fn may_be_dead_as(self, reason: Reason, slow: bool) -> bool {
        match self {
            Nature::Undecodable => reason == Reason::Undecodable,
            Nature::Invalid => reason == Reason::Invalid,
            Nature::Refused | Nature::RefusedAtCommit => reason == Reason::RejectedByDatabase,
            Nature::TooLarge | Nature::Toxic => reason == Reason::TooLarge,
            // What it takes too long for cannot be told while the server is slow.
            Nature::Huge => slow && reason == Reason::TooLarge,
            Nature::Good | Nature::Newer => false,
        }
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) topic: u32,
    pub(crate) partition: Partition,
    pub(crate) offset: i64,
    pub(crate) inbox: u8,
    /// The message's id; an id belongs to one inbox.
    pub(crate) id: u16,
    /// What the sender wrote: another one under the same id is a conflict.
    pub(crate) version: u8,
    pub(crate) nature: Nature,
}

impl Record {
    pub(crate) fn show(&self) -> String {
        let special = if self.nature == Nature::Good { String::new() } else { format!(" {:?}", self.nature) };
        let version = if self.version > 0 { format!("'{}", self.version) } else { String::new() };
        let topic = if self.topic > 0 { format!("t{}/", self.topic) } else { String::new() };
        let (partition, offset) = (self.partition, self.offset);
        format!("{topic}{partition}@{offset}({} m{}{version}{special})", INBOXES[self.inbox as usize], self.id)
    }
}

/// A partition's log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// By offset; there may be holes.
    pub(crate) records: Vec<Record>,
    /// What is below is deleted.
    pub(crate) low: i64,
    pub(crate) high: i64,
    pub(crate) without_leader: bool,
}

impl Log {
    /// From this offset on, those that are kept.
    pub(crate) fn from(&self, offset: i64) -> &[Record] {
        let first = self.records.partition_point(|record| record.offset < offset.max(self.low));
        &self.records[first..]
    }

    /// Those below this offset, also the deleted ones.
    pub(crate) fn below(&self, offset: i64) -> &[Record] {
        &self.records[..self.records.partition_point(|record| record.offset < offset)]
    }

    /// Just past the last record.
    pub(crate) fn end(&self) -> i64 {
        self.records.last().map_or(0, |record| record.offset + 1)
    }
}

/// A topic.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) partitions: Vec<Log>,
}

impl Topic {
    pub(crate) fn new(partitions: Partition) -> Self {
        Topic { partitions: (0..partitions).map(|_| Log::default()).collect() }
    }

    pub(crate) fn count(&self) -> Partition {
        Partition::try_from(self.partitions.len()).expect("few")
    }

    pub(crate) fn log(&self, partition: Partition) -> &Log {
        &self.partitions[usize::try_from(partition).expect("not negative")]
    }

    pub(crate) fn log_mut(&mut self, partition: Partition) -> &mut Log {
        &mut self.partitions[usize::try_from(partition).expect("not negative")]
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.partitions.iter().flat_map(|log| &log.records)
    }
}
