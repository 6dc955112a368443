//! Topics, partitions and records.

use machine::consumer::start::Kept;
use machine::{LeaderEpoch, NextOffset, Partition, Progress, Reason};

/// Topic, partition, offset and leader epoch.
pub(crate) type Position = (u32, Partition, i64, i32);

/// The names of the inboxes. The partition of an inbox follows from its index.
pub(crate) const INBOXES: [&str; 10] = ["ann", "bob", "cem", "dan", "eve", "fay", "gus", "han", "ida", "jim"];

/// The property of a record that decides on its outcome. The kind belongs to the ID and the version: a repeat has the
/// same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Good,
    /// A message that is large enough to count as huge, and can be stored.
    Huge,
    Undecodable,
    Invalid,
    /// Written by a newer version.
    Newer,
    /// A message whose row the database rejects at the INSERT.
    Rejected,
    RejectedAtCommit,
    /// Rejected by the database for its size.
    TooLarge,
    /// The database needs too long to insert it.
    Slow,
}

impl RecordKind {
    /// A record of at least this number of bytes counts as huge.
    pub(crate) const HUGE: usize = 60;

    pub(crate) fn bytes(self) -> usize {
        if matches!(self, RecordKind::Huge | RecordKind::Slow) { RecordKind::HUGE } else { 10 }
    }

    /// Returns whether the database accepts the record when no fault is active.
    pub(crate) fn is_storable(self) -> bool {
        matches!(self, RecordKind::Good | RecordKind::Huge | RecordKind::Newer)
    }

    /// Returns whether the record may be dead-lettered for `reason`, apart from a conflict.
    pub(crate) fn may_be_dead_as(self, reason: Reason, slow: bool) -> bool {
        match self {
            RecordKind::Undecodable => reason == Reason::Undecodable,
            RecordKind::Invalid => reason == Reason::Invalid,
            RecordKind::Rejected | RecordKind::RejectedAtCommit => reason == Reason::RejectedByDatabase,
            RecordKind::TooLarge | RecordKind::Slow => reason == Reason::TooLarge,
            // While the server is slow, a huge record cannot be distinguished from a record that needs too long.
            RecordKind::Huge => slow && reason == Reason::TooLarge,
            RecordKind::Good | RecordKind::Newer => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) topic: u32,
    pub(crate) partition: Partition,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) inbox: u8,
    /// The message's ID, which belongs to one inbox.
    pub(crate) id: u16,
    /// Stands for the content: another version under the same ID is a conflict.
    pub(crate) version: u8,
    pub(crate) kind: RecordKind,
}

impl Record {
    pub(crate) fn position(&self) -> Position {
        (self.topic, self.partition, self.offset, self.leader_epoch)
    }

    pub(crate) fn show(&self) -> String {
        let special = if self.kind == RecordKind::Good { String::new() } else { format!(" {:?}", self.kind) };
        let version = if self.version > 0 { format!("'{}", self.version) } else { String::new() };
        let topic = if self.topic > 0 { format!("t{}/", self.topic) } else { String::new() };
        let (partition, offset) = (self.partition, self.offset);
        let leader_epoch = if self.leader_epoch > 0 { format!("/e{}", self.leader_epoch) } else { String::new() };
        format!(
            "{topic}{partition}@{offset}{leader_epoch}({} m{}{version}{special})",
            INBOXES[self.inbox as usize], self.id
        )
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// In the order of their offsets, which may have holes.
    pub(crate) records: Vec<Record>,
    /// The lowest offset that is not deleted.
    pub(crate) low: i64,
    pub(crate) high: i64,
    pub(crate) without_leader: bool,
    /// Each leader epoch, with its start offset.
    epochs: Vec<(i32, i64)>,
    /// The offset of each loss of the tail, and the leader epoch after it: for the oracle.
    cuts: Vec<(i64, i32)>,
}

impl Default for Log {
    fn default() -> Self {
        let (records, epochs, cuts) = (Vec::new(), vec![(0, 0)], Vec::new());
        Log { records, low: 0, high: 0, without_leader: false, epochs, cuts }
    }
}

impl Log {
    pub(crate) fn leader_epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    /// Starts another leader epoch. An epoch without records leaves no trace.
    pub(crate) fn elect(&mut self) {
        let next = self.leader_epoch() + 1;
        self.epochs.retain(|(_, start)| *start < self.high);
        self.epochs.push((next, self.high));
    }

    /// Loses the records from `cut` on, and returns them. Under the next leader epoch other records get their offsets.
    pub(crate) fn lose_tail(&mut self, cut: i64) -> Vec<Record> {
        let next = self.leader_epoch() + 1;
        let lost = self.records.split_off(self.records.partition_point(|record| record.offset < cut));
        self.high = cut;
        self.epochs.retain(|(_, start)| *start < cut);
        self.epochs.push((next, cut));
        self.cuts.push((cut, next));
        lost
    }

    /// Returns a leader's response to OffsetForLeaderEpoch for this leader epoch.
    pub(crate) fn kept(&self, epoch: LeaderEpoch) -> Kept {
        if !epoch.is_known() {
            return Kept::Unknown;
        }
        let upto = |next, leader_epoch| Kept::UpTo(Progress { next: NextOffset(next), leader_epoch });
        if epoch.0 == self.leader_epoch() {
            return upto(self.high, epoch);
        }
        let Some((_, end)) = self.epochs.iter().find(|(other, _)| *other > epoch.0) else { return Kept::Nothing };
        let floor = self.epochs.iter().rev().find(|(other, _)| *other <= epoch.0);
        upto(*end, floor.map_or(epoch, |(floor, _)| LeaderEpoch(*floor)))
    }

    /// Returns the lowest offset at which the log differs from the records that a reader read up to this leader epoch,
    /// if it differs: for the oracle.
    pub(crate) fn differs_at(&self, epoch: i32) -> Option<i64> {
        self.cuts.iter().filter(|(_, after)| *after > epoch).map(|(cut, _)| *cut).min()
    }

    /// Returns whether the log differed from `from` on, now or after an earlier loss: a counted loss may have been
    /// found before the last one.
    pub(crate) fn has_differed_at(&self, epoch: i32, from: i64) -> bool {
        let mut least = i64::MAX;
        self.cuts.iter().filter(|(_, after)| *after > epoch).any(|(cut, _)| {
            least = least.min(*cut);
            least == from
        })
    }

    pub(crate) fn has_lost(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// Returns the records from this offset on that are not deleted.
    pub(crate) fn from(&self, offset: i64) -> &[Record] {
        let first = self.records.partition_point(|record| record.offset < offset.max(self.low));
        &self.records[first..]
    }

    /// Returns the records below this offset, also the deleted ones.
    pub(crate) fn below(&self, offset: i64) -> &[Record] {
        &self.records[..self.records.partition_point(|record| record.offset < offset)]
    }

    /// Returns the offset after the last record.
    pub(crate) fn end(&self) -> i64 {
        self.records.last().map_or(0, |record| record.offset + 1)
    }
}

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
