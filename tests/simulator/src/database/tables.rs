//! The committed contents of the three tables, and the journal of changes that led to them, so that an earlier state
//! can be restored.

use std::collections::{BTreeMap, BTreeSet};

use machine::consumer::start::Lost;
use machine::{Partition, Progress, Reason};

use crate::assignment_id::AssignmentId;
use crate::kafka::log::{INBOXES, Position, Record};

/// A row of `messages`. The canary's inbox is `Row::CANARY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) seq: i64,
    pub(crate) record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub(crate) record: Record,
    pub(crate) reason: Reason,
    /// The assignment under which the record was received: for the oracle.
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

#[derive(Debug)]
pub(crate) struct Tables {
    /// The visible rows of each inbox, in the order of `seq`.
    pub(crate) inboxes: Vec<Vec<Row>>,
    by_id: Vec<Option<Row>>,
    pub(crate) dead: BTreeMap<Position, Dead>,
    pub(crate) progress: BTreeMap<(u32, Partition), Progress>,
    resumed: BTreeMap<(u32, Partition), usize>,
    journal: Vec<(u32, Change)>,
    /// The length of the journal after each commit.
    commits: Vec<usize>,
    canary: bool,
    /// The records that Kafka lost: for the oracle.
    pub(crate) lost: BTreeSet<Position>,
    /// The progress rows that a start task lowered, and those that a process which had read the lost records raised
    /// again: for the oracle. The next start finds the second kind.
    lowered: BTreeMap<(u32, Partition), Progress>,
    raised_again: BTreeMap<(u32, Partition), Progress>,
    /// The progress rows that were above the start offset of an assignment, because the committed offset was lower: for
    /// the oracle. If Kafka then loses records between the two, only the next start finds the loss.
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
        // In an inbox without gaps, the index of a row is its `seq` - 1.
        usize::try_from(seq - 1).ok().and_then(|index| rows.get(index)).filter(|row| row.seq == seq).or_else(|| {
            let index = rows.partition_point(|row| row.seq < seq);
            rows.get(index).filter(|row| row.seq == seq)
        })
    }

    pub(crate) fn last_seq(&self, inbox: u8) -> i64 {
        self.inboxes[inbox as usize].last().map_or(0, |row| row.seq)
    }

    /// Returns the offsets of the dead letters that count towards the limit: those since the operator last resumed the
    /// partition.
    pub(crate) fn counted_dead_letters(&self, topic: u32, partition: Partition) -> Vec<i64> {
        let since = self.resumed.get(&(topic, partition)).copied().unwrap_or_default();
        let range = (topic, partition, 0, 0)..(topic, partition, i64::MAX, 0);
        let dead = self.dead.range(range).map(|(_, dead)| dead);
        dead.filter(|dead| dead.reason.counts() && dead.journal_index >= since).map(|dead| dead.record.offset).collect()
    }

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

    /// Lowers a progress row, if the row is still the one that was read.
    pub(crate) fn lower(&mut self, topic: u32, partition: Partition, lost: &Lost) -> bool {
        if self.progress.get(&(topic, partition)) != Some(&lost.row) {
            return false;
        }
        let start = self.journal.len();
        self.journal.push((0, Change::Lowered(topic, partition, lost.lowered)));
        self.end_commit(start, true);
        true
    }

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

    pub(crate) fn make_visible(&mut self, transaction: u32) {
        for index in 0..self.journal.len() {
            if self.journal[index].0 == transaction {
                self.apply(index);
            }
        }
    }

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

    /// Notes that this row was written for an assignment that has ended, perhaps after the next one had read its
    /// start.
    pub(crate) fn saved_by_previous_owner(&mut self, topic: u32, partition: Partition, row: Progress) {
        self.raised_again.insert((topic, partition), row);
    }

    /// Returns whether the present row was raised again by a process that had read records which Kafka then lost.
    pub(crate) fn is_raised_again(&self, topic: u32, partition: Partition) -> bool {
        self.has_row_of(&self.raised_again, topic, partition)
    }

    pub(crate) fn starts_below(&mut self, topic: u32, partition: Partition, row: Progress) {
        self.started_below.insert((topic, partition), row);
    }

    /// Returns whether an assignment started below the present row.
    pub(crate) fn is_started_below(&self, topic: u32, partition: Partition) -> bool {
        self.has_row_of(&self.started_below, topic, partition)
    }

    fn has_row_of(&self, rows: &BTreeMap<(u32, Partition), Progress>, topic: u32, partition: Partition) -> bool {
        let row = self.progress.get(&(topic, partition));
        row.is_some() && row == rows.get(&(topic, partition))
    }

    pub(crate) fn commits(&self) -> usize {
        self.commits.len()
    }

    /// Returns whether the canary row was ever committed.
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
                // A row of a later leader replaces a row that was raised again.
                if self
                    .raised_again
                    .get(&(topic, partition))
                    .is_some_and(|raised| raised.leader_epoch < new.leader_epoch)
                {
                    self.raised_again.remove(&(topic, partition));
                }
                // A member that was expelled and has not been notified must not lower the row.
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
    /// The inbox of the canary row; no record has it.
    pub(crate) const CANARY: u8 = u8::MAX;
}
