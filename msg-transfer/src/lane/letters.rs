//! Inserts dead letters. If the table rejects a dead letter, it is inserted with less and less content, so that it
//! never blocks a lane.

use machine::error::ErrorClass;
use machine::lane::{DeadLetter, Entry};
use msg_common::postgres::Object;
use tokio_postgres::Error;
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

const SAVEPOINT: &str = "SAVEPOINT letters";
const RELEASE: &str = "RELEASE SAVEPOINT letters";
const ROLLBACK: &str = "ROLLBACK TO SAVEPOINT letters";

/// Inserts records as dead letters, within the batch's transaction.
pub(super) async fn insert_dead_letters(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    dead: &[DeadLetter],
) -> Result<(), Error> {
    client.batch_execute(SAVEPOINT).await?;
    match insert(client, topic, entries, dead, ALL).await {
        Err(error) if is_rejected(&error) => client.batch_execute(ROLLBACK).await?,
        done => {
            done?;
            return client.batch_execute(RELEASE).await;
        }
    }
    // The table rejects at least one of them. Each is inserted by itself, so that the others are inserted completely.
    for letter in dead {
        insert_reduced(client, topic, entries, letter).await?;
    }
    client.batch_execute(RELEASE).await
}

async fn insert_reduced(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    letter: &DeadLetter,
) -> Result<(), Error> {
    let mut rejected = None;
    for parts in steps() {
        match insert(client, topic, entries, std::slice::from_ref(letter), parts).await {
            Err(error) if is_rejected(&error) => {
                client.batch_execute(ROLLBACK).await?;
                rejected = Some(error);
            }
            done => {
                done?;
                if let Some(error) = rejected {
                    let record = &entries[letter.entry].body.item.record;
                    let (partition, offset, error) = (record.partition, record.offset.0, db_error::describe(&error));
                    tracing::warn!(partition, offset, error, ?parts, "stored dead letter without parts of its record");
                    metrics::dead_letter_reduced();
                }
                // A rollback for the next dead letter must not remove this one.
                return client.batch_execute(&format!("{RELEASE}; {SAVEPOINT}")).await;
            }
        }
    }
    Err(rejected.expect("there are steps"))
}

/// Returns whether the table rejects the content of the dead letter, and may accept it with less content.
fn is_rejected(error: &Error) -> bool {
    matches!(db_error::of(error).class, ErrorClass::Permanent | ErrorClass::TooLarge | ErrorClass::Conflict)
}

async fn insert(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    dead: &[DeadLetter],
    parts: Parts,
) -> Result<(), Error> {
    let statement = client.prepare_cached(sql::INSERT_DEAD_LETTERS).await?;
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
    client.execute(&statement, &parameters).await?;
    Ok(())
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
