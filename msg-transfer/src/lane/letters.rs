//! Inserts dead letters. If the table rejects a dead letter, it is inserted with less and less content. One that cannot
//! be inserted at all is reported by itself, so that it never blocks its lane.

use machine::error::{ClassifiedError, ErrorClass};
use machine::lane::{DeadLetter, Entry};
use msg_common::postgres::Object;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::decoded::DecodedRecord;
use super::sql;
use crate::{db_error, metrics};

/// The parts of a dead letter that are inserted. The record's bytes are left out last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    detail: Detail,
    recv_id: bool,
    msg_id: bool,
    headers: bool,
    value: bool,
    key: bool,
}

/// The form of the detail text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Whole,
    /// Its first 200 characters, in ASCII.
    Plain,
    None,
}

const ALL: Parts = Parts { detail: Detail::Whole, recv_id: true, msg_id: true, headers: true, value: true, key: true };

/// The forms of texts and IDs, attempted in this order. The IDs are left out last: with both, GetMsgStatus reports the
/// dead letter to the sender.
const TEXTS: [Parts; 6] = [
    ALL,
    Parts { detail: Detail::Plain, ..ALL },
    Parts { detail: Detail::None, ..ALL },
    Parts { detail: Detail::Plain, recv_id: false, ..ALL },
    Parts { detail: Detail::None, recv_id: false, ..ALL },
    Parts { detail: Detail::None, recv_id: false, msg_id: false, ..ALL },
];

/// The forms of headers, value and key, attempted in this order, each with all forms of the texts.
const BYTES: [[bool; 3]; 8] = [
    [true, true, true],
    [false, true, true],
    [true, true, false],
    [false, true, false],
    [true, false, true],
    [false, false, true],
    [true, false, false],
    [false, false, false],
];

fn steps() -> impl Iterator<Item = Parts> {
    let with = |[headers, value, key]: [bool; 3]| TEXTS.map(|parts| Parts { headers, value, key, ..parts });
    BYTES.into_iter().flat_map(with)
}

/// Nothing waits long for this table: a short wait blocks the inboxes of these dead letters, and they are retried. A long
/// one would stop all inboxes of the lane, again for each batch with a dead letter.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";

/// The number of dead letters that fail in every form until no further one of the batch is tried. With thousands of
/// them, the statement would exceed the timeout of the client, in each attempt of the batch.
const MAX_FAILED: usize = 3;

const SAVEPOINT: &str = "SAVEPOINT letters";
const RELEASE: &str = "RELEASE SAVEPOINT letters";
const ROLLBACK: &str = "ROLLBACK TO SAVEPOINT letters";

/// Inserts records as dead letters, within the batch's transaction. Returns those that cannot be inserted, by their
/// index in the batch. Fails if the connection is lost.
pub(super) async fn insert_dead_letters(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    dead: &[DeadLetter],
) -> Result<Vec<(usize, ClassifiedError)>, ClassifiedError> {
    // Before the savepoint, because a rollback to it would restore the timeout.
    execute(client, LOCK_TIMEOUT).await?;
    execute(client, SAVEPOINT).await?;
    let error = match insert(client, topic, entries, dead, ALL).await {
        Err(error) if error.class != ErrorClass::Lost => error,
        done => {
            done?;
            execute(client, RELEASE).await?;
            return Ok(Vec::new());
        }
    };
    execute(client, ROLLBACK).await?;
    if is_timeout(&error) {
        return Ok(all_failed(dead, &error).collect());
    }
    // At least one of them fails. Each is inserted by itself, so that the others are inserted completely.
    let mut failed = Vec::new();
    for (index, letter) in dead.iter().enumerate() {
        let Err(error) = insert_reduced(client, topic, entries, letter).await else { continue };
        if error.class == ErrorClass::Lost {
            return Err(error);
        }
        execute(client, ROLLBACK).await?;
        if is_timeout(&error) || failed.len() + 1 == MAX_FAILED {
            failed.extend(all_failed(&dead[index..], &error));
            break;
        }
        failed.push((letter.entry, error));
    }
    execute(client, RELEASE).await?;
    Ok(failed)
}

/// Returns these dead letters as failed, those that were not tried included: each could need as much time. Their inboxes
/// are retried one by one.
fn all_failed<'a>(
    dead: &'a [DeadLetter],
    error: &'a ClassifiedError,
) -> impl Iterator<Item = (usize, ClassifiedError)> + 'a {
    dead.iter().map(|letter| (letter.entry, error.clone()))
}

async fn insert_reduced(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    letter: &DeadLetter,
) -> Result<(), ClassifiedError> {
    let mut rejected: Option<ClassifiedError> = None;
    for parts in steps() {
        match insert(client, topic, entries, std::slice::from_ref(letter), parts).await {
            Err(error) if is_rejected(&error) => {
                execute(client, ROLLBACK).await?;
                rejected = Some(error);
            }
            done => {
                done?;
                if let Some(ClassifiedError { text: error, .. }) = rejected {
                    let record = &entries[letter.entry].body.item.record;
                    let (partition, offset) = (record.partition, record.offset.0);
                    tracing::warn!(partition, offset, error, ?parts, "stored dead letter without parts of its record");
                    metrics::dead_letter_reduced();
                }
                // A rollback for the next dead letter must not remove this one.
                return execute(client, &format!("{RELEASE}; {SAVEPOINT}")).await;
            }
        }
    }
    Err(rejected.expect("there are steps"))
}

/// Returns whether the table rejects the content of the dead letter, and may accept it with less content.
fn is_rejected(error: &ClassifiedError) -> bool {
    matches!(error.class, ErrorClass::Permanent | ErrorClass::TooLarge | ErrorClass::Conflict)
}

fn is_timeout(error: &ClassifiedError) -> bool {
    matches!(error.class, ErrorClass::Locked | ErrorClass::Heavy)
}

async fn execute(client: &Object, statement: &str) -> Result<(), ClassifiedError> {
    client.batch_execute(statement).await.map_err(|error| explain(&error))
}

/// Names the table in an error, because PostgreSQL's text may not, and only the right that dead letters need.
fn explain(error: &Error) -> ClassifiedError {
    let grant = match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            ": GRANT SELECT, INSERT ON dead_letters to this role; docs/rights.md lists all rights"
        }
        _ => "",
    };
    let text = format!("its dead letter cannot be inserted into dead_letters: {}{grant}", db_error::describe(error));
    ClassifiedError { class: db_error::of(error).class, text }
}

async fn insert(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    dead: &[DeadLetter],
    parts: Parts,
) -> Result<(), ClassifiedError> {
    let statement = client.prepare_cached(sql::INSERT_DEAD_LETTERS).await.map_err(|error| explain(&error))?;
    let body = |dead: &DeadLetter| &entries[dead.entry].body;
    let record = |dead: &DeadLetter| &body(dead).item.record;
    let known = "a record is received only after the start is known";
    let topic_id: Vec<Uuid> = dead.iter().map(|dead| body(dead).item.assignment.topic_id().expect(known)).collect();
    let partition: Vec<i32> = dead.iter().map(|dead| record(dead).partition).collect();
    let offset: Vec<i64> = dead.iter().map(|dead| record(dead).offset.0).collect();
    let leader_epoch: Vec<i32> = dead.iter().map(|dead| record(dead).leader_epoch.0).collect();
    let recv_id: Vec<Option<&str>> =
        dead.iter().map(|dead| body(dead).known_recv_id().filter(|_| parts.recv_id)).collect();
    let msg_id: Vec<Option<Uuid>> =
        dead.iter().map(|dead| body(dead).known_msg_id().filter(|_| parts.msg_id)).collect();
    let key: Vec<Option<&[u8]>> = dead.iter().map(|dead| record(dead).key.as_deref().filter(|_| parts.key)).collect();
    let value: Vec<Option<&[u8]>> =
        dead.iter().map(|dead| record(dead).value.as_deref().filter(|_| parts.value && dead.content)).collect();
    let packed = |dead: &'_ DeadLetter| if parts.headers && dead.content { record(dead).headers.packed() } else { &[] };
    let headers: Vec<&[u8]> = dead.iter().map(packed).collect();
    let reason: Vec<&str> = dead.iter().map(|dead| dead.reason.name()).collect();
    let detail: Vec<String> = dead.iter().map(|dead| detail(&dead.detail, parts.detail)).collect();
    let parameters: [&(dyn ToSql + Sync); 12] = [
        &topic,
        &topic_id,
        &partition,
        &offset,
        &leader_epoch,
        &recv_id,
        &msg_id,
        &key,
        &value,
        &headers,
        &reason,
        &detail,
    ];
    let inserted = client.execute(&statement, &parameters).await.map_err(|error| explain(&error))?;
    if inserted == dead.len() as u64 {
        return Ok(());
    }
    // The others exist already, because their records were consumed before; or the table discards them.
    let statement = client.prepare_cached(sql::COUNT_DEAD_LETTERS).await.map_err(|error| explain(&error))?;
    let positions: [&(dyn ToSql + Sync); 4] = [&topic_id, &partition, &offset, &leader_epoch];
    let row = client.query_one(&statement, &positions).await.map_err(|error| explain(&error))?;
    if usize::try_from(row.get::<_, i64>(0)).is_ok_and(|present| present == dead.len()) {
        return Ok(());
    }
    let text = "the INSERT of its dead letter has no effect, and the dead letter is not in the table: a trigger, a rule or \
                a row-level security policy of dead_letters discards or hides it";
    Err(ClassifiedError { class: ErrorClass::Fatal, text: text.to_owned() })
}

fn detail(text: &str, form: Detail) -> String {
    match form {
        Detail::Whole => text.replace('\0', "\u{fffd}"),
        Detail::Plain => {
            let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
            text.chars().take(200).map(plain).collect()
        }
        Detail::None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_left_out_after_all_texts() {
        let steps: Vec<Parts> = steps().collect();
        assert_eq!(steps[0], ALL);
        assert!(steps[..TEXTS.len()].iter().all(|parts| parts.headers && parts.value && parts.key));
        let last =
            Parts { detail: Detail::None, recv_id: false, msg_id: false, headers: false, value: false, key: false };
        assert_eq!(steps.last(), Some(&last), "at the end only position and reason are inserted");
    }

    #[test]
    fn plain_detail_is_short_and_ascii() {
        assert_eq!(detail("张三\u{1}: no", Detail::Plain), "???: no");
        assert_eq!(detail(&"x".repeat(1000), Detail::Plain).len(), 200);
        assert_eq!(detail("a\0b", Detail::Whole), "a\u{fffd}b");
        assert_eq!(detail("a", Detail::None), "");
    }
}
