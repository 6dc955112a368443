//! The oracle: the checks of all that must hold. The oracle knows the produced records and the contents of the database
//! and the group, but not how the machines work.

use std::collections::BTreeMap;

use machine::consumer::start::Lost;
use machine::{Epoch, Partition, Progress, Reason};

use crate::assignment_id::AssignmentId;
use crate::database::{Client, Database, Dead, Row, Tables};
use crate::kafka::Kafka;
use crate::kafka::log::{INBOXES, Log, Record, RecordKind};

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// For each assignment: the number of dead letters that counted when it read its start, and the offsets of these
    /// and of all since.
    dead: BTreeMap<(AssignmentId, u32, Partition), (usize, Vec<i64>)>,
    /// The end offset of each partition when the operator last resumed it: dead letters below it do not count.
    resumed: BTreeMap<Partition, i64>,
    /// Whether the server was ever slow.
    pub(crate) was_slow: bool,
    /// Whether the operator has accepted that records were deleted before they were completed.
    pub(crate) loss_accepted: bool,
}

/// Returns whether a record is completed: stored, or dead-lettered.
pub(crate) fn is_completed(database: &Database, record: &Record) -> bool {
    let tables = &database.tables;
    let at = record.position();
    if tables.dead.get(&at).is_some_and(|dead| dead.record == *record) {
        return true;
    }
    // A broken record is never a row, even if a row has the same ID and version.
    let storable = !matches!(record.kind, RecordKind::Undecodable | RecordKind::Invalid);
    let same = |row: &Row| row.record.id == record.id && row.record.version == record.version;
    if storable && tables.by_id(record.id).is_some_and(same) {
        return true;
    }
    let invisible = &database.invisible;
    invisible
        .iter()
        .any(|open| open.dead.iter().any(|dead| dead.position() == at) || (storable && open.rows.iter().any(same)))
}

impl Oracle {
    /// Notes that an assignment read its start, and with it the dead letters so far.
    pub(crate) fn loaded(&mut self, tables: &Tables, client: Client, topic: u32, partitions: &[(Partition, Epoch)]) {
        for (partition, epoch) in partitions {
            let counted = tables.counted_dead_letters(topic, *partition);
            let is_lost = |offset: &i64| {
                tables
                    .lost
                    .range((topic, *partition, *offset, 0)..=(topic, *partition, *offset, i32::MAX))
                    .next()
                    .is_some()
            };
            let counted: Vec<i64> = counted.into_iter().filter(|offset| !is_lost(offset)).collect();
            let id = AssignmentId { process: client.process, restarts: client.restarts, epoch: *epoch };
            self.dead.insert((id, topic, *partition), (counted.len(), counted));
        }
    }

    /// Notes that the operator resumed a halted partition when its end offset was `high`.
    pub(crate) fn resumed(&mut self, partition: Partition, high: i64) {
        self.resumed.insert(partition, high);
    }

    /// Checks a commit: P2, P3, P4, and which records may be dead letters.
    pub(crate) fn committed(
        &mut self,
        database: &Database,
        rows: &[Row],
        dead: &[Dead],
        limit: Option<usize>,
    ) -> Result<(), String> {
        let tables = &database.tables;
        if tables.has_canary() || rows.iter().any(|row| row.record.inbox == Row::CANARY) {
            return Err("P2: the canary was committed".into());
        }
        for (index, row) in rows.iter().enumerate() {
            let before = rows[..index].iter().any(|other| other.record.inbox == row.record.inbox);
            if !before {
                check_inbox(tables, row.record.inbox)?;
            }
            if !row.record.kind.is_storable() {
                return Err(format!("{} was stored", row.record.show()));
            }
        }
        for letter in dead {
            self.check_dead(database, letter)?;
            if let Some(limit) = limit.filter(|_| letter.reason.counts()) {
                self.check_breaker(letter, limit)?;
            }
        }
        Ok(())
    }

    fn check_dead(&self, database: &Database, dead: &Dead) -> Result<(), String> {
        let record = &dead.record;
        let row = database.tables.by_id(record.id).copied().or_else(|| {
            let invisible = database.invisible.iter().flat_map(|open| &open.rows);
            invisible.copied().find(|row| row.record.id == record.id)
        });
        let is_conflict = dead.reason == Reason::IdempotencyConflict
            && !matches!(record.kind, RecordKind::Undecodable | RecordKind::Invalid)
            && row.is_some_and(|row| row.record.version != record.version);
        if is_conflict || record.kind.may_be_dead_as(dead.reason, self.was_slow) {
            return Ok(());
        }
        Err(format!("P1: {} was dead-lettered as {}", record.show(), dead.reason.name()))
    }

    fn check_breaker(&mut self, dead: &Dead, limit: usize) -> Result<(), String> {
        let record = &dead.record;
        if self.resumed.get(&record.partition).is_some_and(|resumed_at| record.offset < *resumed_at) {
            return Ok(());
        }
        let Some((known, all)) = self.dead.get_mut(&(dead.by, record.topic, record.partition)) else {
            return Err(format!("{} was dead-lettered by an assignment that has not read its start", record.show()));
        };
        if !all.contains(&record.offset) {
            all.push(record.offset);
        }
        if all.len() > limit.max(*known) {
            return Err(format!(
                "dead-letter limit: {} dead letters of partition {}, the limit is {limit}",
                all.len(),
                record.partition
            ));
        }
        Ok(())
    }

    pub(crate) fn check_lost(log: &Log, lost: &Lost) -> Result<(), String> {
        let (epoch, row) = (lost.row.leader_epoch, lost.row.next.0);
        let exact = !epoch.is_known() || log.has_differed_at(epoch.0, lost.from.0);
        if log.has_lost() && exact && row == lost.to.0 {
            return Ok(());
        }
        Err(format!("{lost:?} is counted as lost, and the log differs from {:?} on", log.differs_at(epoch.0)))
    }

    /// Checks P5: every record below an offset is completed. If the log lost its tail, only the records that the row's
    /// leaders wrote.
    pub(crate) fn completed_below(
        &self,
        kafka: &Kafka,
        database: &Database,
        name: &str,
        (topic, partition, progress): (u32, Partition, Progress),
    ) -> Result<(), String> {
        let log = kafka.topics[topic as usize].log(partition);
        let (next, epoch) = (progress.next.0, progress.leader_epoch);
        if next > log.high && !log.has_lost() {
            return Err(format!("P5: {name} of partition {partition} is {next}, past its end {}", log.high));
        }
        let is_covered = |record: &Record| !log.has_lost() || epoch.is_known() && record.leader_epoch <= epoch.0;
        let is_excused = |record: &Record| self.loss_accepted && record.offset < log.low || !is_covered(record);
        match log.below(next).iter().rev().find(|record| !is_completed(database, record) && !is_excused(record)) {
            Some(record) => Err(format!("P5: {name} is {next}, and {} is not completed", record.show())),
            None => Ok(()),
        }
    }

    /// Checks everything again at the end of the run.
    pub(crate) fn check_end(&self, kafka: &Kafka, database: &Database) -> Result<(), String> {
        let tables = &database.tables;
        check_inboxes(tables, INBOXES.len())?;
        let topic = kafka.topic_number();
        for record in kafka.topic().records() {
            let log = kafka.topic().log(record.partition);
            let excused = self.loss_accepted && record.offset < log.low;
            if !is_completed(database, record) && !excused {
                return Err(format!("P1: {} is lost", record.show()));
            }
        }
        for (partition, log) in (0..).zip(&kafka.topic().partitions) {
            let row = tables.progress.get(&(topic, partition));
            let above = row.filter(|row| log.differs_at(row.leader_epoch.0).is_some_and(|at| at < row.next.0));
            let is_excused = tables.is_raised_again(topic, partition) || tables.is_started_below(topic, partition);
            if let Some(row) = above.filter(|row| row.leader_epoch.is_known() && !is_excused) {
                return Err(format!("the row of partition {partition}, {row:?}, refers to records that are lost"));
            }
        }
        // The first record of an ID that can be stored must be the row.
        for row in tables.inboxes.iter().flatten().filter(|row| !tables.lost.contains(&row.record.position())) {
            let log = kafka.topics[row.record.topic as usize].log(row.record.partition);
            let before = log.below(row.record.offset);
            let skipped = before.iter().find(|other| {
                other.id == row.record.id && !tables.dead.contains_key(&other.position()) && other.offset >= log.low
            });
            if let Some(other) = skipped.filter(|_| row.record.topic == topic) {
                return Err(format!("P3: {} is the row, and the earlier {} is not", row.record.show(), other.show()));
            }
        }
        for dead in tables.dead.values() {
            self.check_dead(database, dead)?;
        }
        Ok(())
    }
}

/// Checks P2, P3 and P4 of one inbox.
fn check_inbox(tables: &Tables, inbox: u8) -> Result<(), String> {
    let name = INBOXES[inbox as usize];
    let rows = &tables.inboxes[inbox as usize];
    let mut before: Option<Record> = None;
    for (index, row) in rows.iter().enumerate() {
        let expected = i64::try_from(index + 1).expect("few");
        if row.seq != expected {
            return Err(format!("P4: {name} has seq {} where {expected} is expected", row.seq));
        }
        if row.record.inbox != inbox || tables.by_id(row.record.id) != Some(row) {
            return Err(format!("P2: {} is stored twice", row.record.show()));
        }
        let record = row.record;
        // Two kinds of rows may be out of order. The record of a row may be a dead letter too: after a restart it was
        // read again and stored then, as after a replay. And a process may store a record from its memory that Kafka
        // has lost.
        if tables.dead.contains_key(&record.position()) || tables.lost.contains(&record.position()) {
            continue;
        }
        if let Some(before) = before.filter(|b| b.topic == record.topic && b.offset >= record.offset) {
            return Err(format!("P3: {} is before {}", before.show(), record.show()));
        }
        before = Some(record);
    }
    Ok(())
}

/// Checks P2, P3 and P4 of all inboxes.
pub(crate) fn check_inboxes(tables: &Tables, inboxes: usize) -> Result<(), String> {
    (0..inboxes).try_for_each(|inbox| check_inbox(tables, u8::try_from(inbox).expect("few")))
}
