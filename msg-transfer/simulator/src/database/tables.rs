//! What is committed: the three tables, and the way there, so that it can be gone back.

use std::collections::{BTreeMap, BTreeSet};

use machine::consumer::start::Lost;
use machine::{Partition, Progress, Reason};

use crate::assignment_id::AssignmentId;
use crate::kafka::log::{INBOXES, Position, Record};

/// A row of `messages`. One of nobody's is the canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) seq: i64,
    pub(crate) record: Record,
}

/// A row of `dead_letters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub(crate) record: Record,
    pub(crate) reason: Reason,
    /// The assignment that the record was received under: for the oracle.
    pub(crate) by: AssignmentId,
    pub(crate) journal_index: usize,
}

impl Dead {
    pub(crate) fn position(&self) -> Position {
        self.record.position()
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Row(Row),
    Dead(Dead),
    Progress(u32, Partition, Progress),
    Lowered(u32, Partition, Progress),
    Resumed(u32, Partition),
}

/// The tables.
#[derive(Debug)]
pub(crate) struct Tables {
    /// The present contents, by inbox in the order of `seq`; those that cannot be seen yet are not among them.
    pub(crate) inboxes: Vec<Vec<Row>>,
    by_id: Vec<Option<Row>>,
    pub(crate) dead: BTreeMap<Position, Dead>,
    pub(crate) progress: BTreeMap<(u32, Partition), Progress>,
    resumed: BTreeMap<(u32, Partition), usize>,
    journal: Vec<(u32, Change)>,
    /// Length of the journal after each commit.
    commits: Vec<usize>,
    canary: bool,
    /// For the oracle: records that Kafka lost.
    pub(crate) lost: BTreeSet<Position>,
    /// For the oracle: rows that were lowered, and those that somebody who had read of the lost records put back. The next start
    /// finds it.
    lowered: BTreeMap<(u32, Partition), Progress>,
    raised_again: BTreeMap<(u32, Partition), Progress>,
    /// For the oracle: rows that a start was below, as the committed offset was. What Kafka loses between the two after that
    /// is found by the next start only.
    started_below: BTreeMap<(u32, Partition), Progress>,
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            inboxes: vec![Vec::new(); INBOXES.len()],
            by_id: Vec::new(),
            dead: BTreeMap::new(),
            progress: BTreeMap::new(),
            resumed: BTreeMap::new(),
            journal: Vec::new(),
            commits: Vec::new(),
            canary: false,
            lost: BTreeSet::new(),
            lowered: BTreeMap::new(),
            raised_again: BTreeMap::new(),
            started_below: BTreeMap::new(),
        }
    }
}

impl Tables {
    pub(crate) fn by_id(&self, id: u16) -> Option<&Row> {
        self.by_id.get(id as usize)?.as_ref()
    }

    pub(crate) fn by_seq(&self, inbox: u8, seq: i64) -> Option<&Row> {
        let rows = &self.inboxes[inbox as usize];
        // Where there is no gap it is at its place.
        usize::try_from(seq - 1).ok().and_then(|index| rows.get(index)).filter(|row| row.seq == seq).or_else(|| {
            let index = rows.partition_point(|row| row.seq < seq);
            rows.get(index).filter(|row| row.seq == seq)
        })
    }

    pub(crate) fn last_seq(&self, inbox: u8) -> i64 {
        self.inboxes[inbox as usize].last().map_or(0, |row| row.seq)
    }

    /// Those that count and came after somebody looked last.
    pub(crate) fn counted_dead_letters(&self, topic: u32, partition: Partition) -> Vec<i64> {
        let since = self.resumed.get(&(topic, partition)).copied().unwrap_or_default();
        let range = (topic, partition, 0, 0)..(topic, partition, i64::MAX, 0);
        let dead = self.dead.range(range).map(|(_, dead)| dead);
        dead.filter(|dead| dead.reason.counts() && dead.journal_index >= since).map(|dead| dead.record.offset).collect()
    }

    /// A transaction's rows.
    pub(crate) fn commit(&mut self, transaction: u32, rows: &[Row], dead: &[Dead], visible: bool) {
        let start = self.journal.len();
        self.journal.extend(rows.iter().map(|row| (transaction, Change::Row(*row))));
        let letter = |(index, dead): (usize, &Dead)| Change::Dead(Dead { journal_index: start + index, ..*dead });
        self.journal.extend(dead.iter().enumerate().map(letter).map(|change| (transaction, change)));
        self.end_commit(start, visible);
    }

    pub(crate) fn save_progress(&mut self, rows: &[(u32, Partition, Progress)]) {
        let start = self.journal.len();
        let change = |(topic, partition, row): &(u32, Partition, Progress)| Change::Progress(*topic, *partition, *row);
        self.journal.extend(rows.iter().map(|row| (0, change(row))));
        self.end_commit(start, true);
    }

    /// The row is put down, if it is still the one that was read.
    pub(crate) fn lower(&mut self, topic: u32, partition: Partition, lost: &Lost) -> bool {
        if self.progress.get(&(topic, partition)) != Some(&lost.row) {
            return false;
        }
        let start = self.journal.len();
        self.journal.push((0, Change::Lowered(topic, partition, lost.lowered)));
        self.end_commit(start, true);
        true
    }

    /// Somebody looked.
    pub(crate) fn resume(&mut self, topic: u32, partition: Partition) {
        let start = self.journal.len();
        self.journal.push((0, Change::Resumed(topic, partition)));
        self.end_commit(start, true);
    }

    fn end_commit(&mut self, start: usize, visible: bool) {
        self.commits.push(self.journal.len());
        if visible {
            for index in start..self.journal.len() {
                self.apply(index);
            }
        }
    }

    /// What this transaction committed can be seen.
    pub(crate) fn make_visible(&mut self, transaction: u32) {
        for index in 0..self.journal.len() {
            if self.journal[index].0 == transaction {
                self.apply(index);
            }
        }
    }

    /// The last so many commits never happened.
    pub(crate) fn restore(&mut self, commits: usize) {
        self.commits.truncate(self.commits.len().saturating_sub(commits));
        let mut journal = std::mem::take(&mut self.journal);
        journal.truncate(self.commits.last().copied().unwrap_or_default());
        let (commits, lost) = (std::mem::take(&mut self.commits), std::mem::take(&mut self.lost));
        let raised_again = std::mem::take(&mut self.raised_again);
        let started_below = std::mem::take(&mut self.started_below);
        *self = Tables { journal, commits, lost, raised_again, started_below, ..Tables::default() };
        for index in 0..self.journal.len() {
            self.apply(index);
        }
    }

    pub(crate) fn progress_of(&self, topic: u32, partition: Partition) -> Option<Progress> {
        self.progress.get(&(topic, partition)).copied()
    }

    /// This row was written for an assignment that is over, maybe after the next one had read its start.
    pub(crate) fn saved_by_previous_owner(&mut self, topic: u32, partition: Partition, row: Progress) {
        self.raised_again.insert((topic, partition), row);
    }

    /// Whether the row is one that somebody put back who had read of records that Kafka lost.
    pub(crate) fn is_raised_again(&self, topic: u32, partition: Partition) -> bool {
        let row = self.progress.get(&(topic, partition));
        row.is_some() && row == self.raised_again.get(&(topic, partition))
    }

    /// An assignment starts below this row.
    pub(crate) fn starts_below(&mut self, topic: u32, partition: Partition, row: Progress) {
        self.started_below.insert((topic, partition), row);
    }

    /// Whether an assignment started below the row as it is now.
    pub(crate) fn is_started_below(&self, topic: u32, partition: Partition) -> bool {
        let row = self.progress.get(&(topic, partition));
        row.is_some() && row == self.started_below.get(&(topic, partition))
    }

    pub(crate) fn commits(&self) -> usize {
        self.commits.len()
    }

    /// Whether the row that is only tried was ever kept.
    pub(crate) fn has_canary(&self) -> bool {
        self.canary
    }

    fn apply(&mut self, index: usize) {
        match self.journal[index].1 {
            Change::Row(row) if row.record.inbox == Row::CANARY => self.canary = true,
            Change::Row(row) => {
                let rows = &mut self.inboxes[row.record.inbox as usize];
                rows.insert(rows.partition_point(|other| other.seq < row.seq), row);
                let id = row.record.id as usize;
                if self.by_id.len() <= id {
                    self.by_id.resize(id + 1, None);
                }
                self.by_id[id] = Some(row);
            }
            Change::Dead(dead) => {
                self.dead.insert(dead.position(), dead);
            }
            Change::Progress(topic, partition, new) => {
                // Whatever was put back, a row of a later leader takes its place.
                if self
                    .raised_again
                    .get(&(topic, partition))
                    .is_some_and(|raised| raised.leader_epoch < new.leader_epoch)
                {
                    self.raised_again.remove(&(topic, partition));
                }
                // One that was expelled and does not know it yet must not put the row back.
                let row = self.progress.entry((topic, partition)).or_insert(new);
                if new.may_follow(*row) {
                    *row = new;
                    let lowered = self.lowered.get(&(topic, partition));
                    if lowered.is_some_and(|row| new.leader_epoch <= row.leader_epoch && new.next > row.next) {
                        self.raised_again.insert((topic, partition), new);
                    }
                }
            }
            Change::Lowered(topic, partition, row) => {
                self.progress.insert((topic, partition), row);
                self.lowered.insert((topic, partition), row);
                self.raised_again.remove(&(topic, partition));
            }
            Change::Resumed(topic, partition) => {
                self.resumed.insert((topic, partition), index);
            }
        }
    }
}

impl Row {
    /// The inbox that is nobody's.
    pub(crate) const CANARY: u8 = u8::MAX;
}
