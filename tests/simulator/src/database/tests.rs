//! The database's model behaves like PostgreSQL in all that the machines rely on.

use machine::error::ErrorClass;
use machine::lane::Response;

use super::*;
use crate::assignment_id::AssignmentId;
use crate::kafka::log::{Record, RecordKind};

fn row(id: u16, seq: i64) -> Row {
    let record = Record {
        topic: 0,
        partition: 0,
        offset: i64::from(id),
        leader_epoch: 0,
        inbox: 0,
        id,
        version: 0,
        kind: RecordKind::Good,
    };
    Row { seq, record }
}

fn session(database: &mut Database) -> SessionId {
    database.connect(Client { process: 0, restarts: 0, lane: Some(0) }).expect("the server accepts connections")
}

fn on(database: &mut Database, session: SessionId, statement: Statement) -> Polled {
    database.send(session, statement);
    database.execute(session, StatementEffect::Fine);
    database.poll(session)
}

fn count(polled: &Polled) -> Option<usize> {
    match polled {
        Polled::Result(StatementResult::Lane(Response::Count(count))) => Some(*count),
        _ => None,
    }
}

fn open_transaction(database: &mut Database) -> SessionId {
    let id = session(database);
    on(database, id, Statement::Begin);
    id
}

fn last_seq(database: &mut Database) -> i64 {
    let id = session(database);
    match on(database, id, Statement::LastSeqs(vec![(0, 0)])) {
        Polled::Result(StatementResult::Lane(Response::Seqs(seqs))) => seqs[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn uncommitted_rows_are_invisible_and_lost_with_the_session() {
    let mut database = Database::default();
    let a = open_transaction(&mut database);
    assert_eq!(count(&on(&mut database, a, Statement::Insert(vec![row(1, 1)]))), Some(1));
    assert_eq!(last_seq(&mut database), 0);
    on(&mut database, a, Statement::Commit);
    assert_eq!(last_seq(&mut database), 1);
    let b = open_transaction(&mut database);
    on(&mut database, b, Statement::Insert(vec![row(2, 2)]));
    database.end(b);
    assert!(matches!(database.poll(b), Polled::Broken));
    assert_eq!(last_seq(&mut database), 1);
}

#[test]
fn insert_skips_a_known_id_and_fails_on_a_known_seq() {
    let mut database = Database::default();
    let a = open_transaction(&mut database);
    assert_eq!(
        count(&on(&mut database, a, Statement::Insert(vec![row(1, 1), row(1, 2)]))),
        Some(1),
        "a repeat within the statement is skipped too"
    );
    on(&mut database, a, Statement::Commit);
    let b = open_transaction(&mut database);
    assert_eq!(count(&on(&mut database, b, Statement::Insert(vec![row(1, 1), row(2, 2)]))), Some(1));
    let rejected = on(&mut database, b, Statement::Insert(vec![row(3, 1)]));
    assert!(matches!(rejected, Polled::Result(StatementResult::Failed(ErrorClass::Conflict))), "{rejected:?}");
    let after = on(&mut database, b, Statement::Insert(vec![row(4, 3)]));
    assert!(
        matches!(after, Polled::Result(StatementResult::Failed(ErrorClass::Transient))),
        "the transaction is aborted: {after:?}"
    );
    on(&mut database, b, Statement::Commit);
    assert_eq!(last_seq(&mut database), 1, "COMMIT rolls an aborted transaction back");
}

#[test]
fn insert_of_new_rows_fails_on_a_known_id_or_seq() {
    for known in [row(1, 2), row(2, 1)] {
        let mut database = Database::default();
        let a = open_transaction(&mut database);
        assert_eq!(count(&on(&mut database, a, Statement::InsertNew(vec![row(1, 1)]))), Some(1));
        on(&mut database, a, Statement::Commit);
        let b = open_transaction(&mut database);
        let rejected = on(&mut database, b, Statement::InsertNew(vec![row(3, 3), known]));
        assert!(matches!(rejected, Polled::Result(StatementResult::Failed(ErrorClass::Conflict))), "{rejected:?}");
    }
}

#[test]
fn insert_waits_for_the_transaction_with_the_same_key() {
    for (commits, expected) in [(true, 0), (false, 1)] {
        let mut database = Database::default();
        let [a, b] = [open_transaction(&mut database), open_transaction(&mut database)];
        on(&mut database, a, Statement::Insert(vec![row(1, 1)]));
        assert!(matches!(on(&mut database, b, Statement::Insert(vec![row(1, 1)])), Polled::Pending));
        on(&mut database, a, if commits { Statement::Commit } else { Statement::Rollback });
        database.execute(b, StatementEffect::Fine);
        assert_eq!(count(&database.poll(b)), Some(expected));
    }
}

#[test]
fn insert_fails_after_waiting_for_a_seq_that_is_committed() {
    let mut database = Database::default();
    let [a, b] = [open_transaction(&mut database), open_transaction(&mut database)];
    on(&mut database, a, Statement::Insert(vec![row(1, 1)]));
    assert!(matches!(on(&mut database, b, Statement::Insert(vec![row(2, 1)])), Polled::Pending));
    on(&mut database, a, Statement::Commit);
    database.execute(b, StatementEffect::Fine);
    assert!(matches!(database.poll(b), Polled::Result(StatementResult::Failed(ErrorClass::Conflict))));
}

#[test]
fn deadlock_fails_the_last_statement() {
    let mut database = Database::default();
    let [a, b] = [open_transaction(&mut database), open_transaction(&mut database)];
    on(&mut database, a, Statement::Insert(vec![row(1, 1)]));
    on(&mut database, b, Statement::Insert(vec![row(2, 2)]));
    assert!(matches!(on(&mut database, a, Statement::Insert(vec![row(2, 2)])), Polled::Pending));
    let failed = on(&mut database, b, Statement::Insert(vec![row(1, 1)]));
    assert!(matches!(failed, Polled::Result(StatementResult::Failed(ErrorClass::Transient))), "{failed:?}");
}

#[test]
fn rollback_to_savepoint_removes_only_later_rows() {
    let mut database = Database::default();
    let a = session(&mut database);
    on(&mut database, a, Statement::BeginBisection);
    on(&mut database, a, Statement::Canary(None));
    on(&mut database, a, Statement::RollbackToSavepoint);
    on(&mut database, a, Statement::Insert(vec![row(1, 1)]));
    on(&mut database, a, Statement::MoveSavepoint);
    on(&mut database, a, Statement::Insert(vec![row(2, 1)]));
    on(&mut database, a, Statement::RollbackToSavepoint);
    on(&mut database, a, Statement::Commit);
    assert_eq!(database.tables.inboxes[0], [row(1, 1)]);
    assert!(!database.tables.has_canary());
}

#[test]
fn restored_server_lacks_the_last_commits_and_all_sessions() {
    let mut database = Database::default();
    for id in 1..4 {
        let a = open_transaction(&mut database);
        on(&mut database, a, Statement::Insert(vec![row(id, i64::from(id))]));
        on(&mut database, a, Statement::Commit);
        let reference = session(&mut database);
        on(&mut database, reference, Statement::Save(vec![(0, 0, progress(i64::from(id)))]));
    }
    database.restore(3, false);
    assert!(database.sessions.iter().all(|session| !session.alive));
    assert_eq!((last_seq(&mut database), database.tables.progress[&(0, 0)].next.0), (2, 1));
}

#[test]
fn invisible_commit_keeps_its_keys_locked() {
    let mut database = Database::default();
    let [a, b] = [open_transaction(&mut database), open_transaction(&mut database)];
    on(&mut database, a, Statement::Insert(vec![row(1, 1)]));
    database.send(a, Statement::Commit);
    database.execute(a, StatementEffect::VisibleLater);
    assert!(matches!(database.poll(a), Polled::Result(StatementResult::Lane(Response::Ok))));
    assert_eq!(last_seq(&mut database), 0);
    assert!(matches!(on(&mut database, b, Statement::Insert(vec![row(2, 1)])), Polled::Pending));
    database.make_visible(0);
    assert_eq!(last_seq(&mut database), 1);
}

fn progress(next: i64) -> machine::Progress {
    machine::Progress { next: machine::NextOffset(next), leader_epoch: machine::LeaderEpoch(0) }
}

#[test]
fn blocked_inbox_fails_where_its_cause_is() {
    let letter = |row: Row| {
        let by = AssignmentId { process: 0, restarts: 0, epoch: 1 };
        Dead { record: row.record, reason: machine::Reason::Undecodable, by, journal_index: 0 }
    };
    for block in [Block::Discarded, Block::Commit(ErrorClass::Fatal), Block::DeadLetter(ErrorClass::Locked)] {
        let mut database = Database::default();
        database.blocked.insert(0, block);
        let a = open_transaction(&mut database);
        let inserted = count(&on(&mut database, a, Statement::Insert(vec![row(1, 1)])));
        assert_eq!(inserted, Some(usize::from(block != Block::Discarded)), "{block:?}");
        let dead = on(&mut database, a, Statement::InsertDead(vec![(7, letter(row(2, 2)))]));
        let failed =
            matches!(dead, Polled::Result(StatementResult::Lane(Response::FailedFor(failed))) if failed[0].0 == 7);
        assert_eq!(failed, matches!(block, Block::DeadLetter(_)), "{block:?}");
        let committed = on(&mut database, a, Statement::Commit);
        let failed = matches!(committed, Polled::Result(StatementResult::Failed(ErrorClass::Fatal)));
        assert_eq!(failed, matches!(block, Block::Commit(_)), "{block:?}");
    }
    let mut database = Database::default();
    database.blocked.insert(0, Block::LastSeq);
    let a = session(&mut database);
    let seqs = on(&mut database, a, Statement::LastSeqs(vec![(3, 0), (4, 1)]));
    let Polled::Result(StatementResult::Lane(Response::FailedFor(failed))) = seqs else { panic!("{seqs:?}") };
    assert_eq!(failed.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), [3]);
}
