//! Dead letters into their table. Whatever the table refuses of one is left out, bit by bit: a lane never stops for it.

use machine::failure::Class;
use machine::lane::{DeadLetter, Entry};
use msg_common::postgres::Object;
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::decoded::DecodedRecord;
use super::sql;
use crate::{failure, metrics};

/// What of a letter is stored. The record's bytes are the last that is left out: what can be kept of them is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    detail: Detail,
    recv_id: bool,
    msg_id: bool,
    headers: bool,
    value: bool,
    key: bool,
}

/// How much of the sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Whole,
    /// Its first 200 characters, in ASCII.
    Plain,
    None,
}

const ALL: Kept = Kept { detail: Detail::Whole, recv_id: true, msg_id: true, headers: true, value: true, key: true };

/// Texts and ids, one after the other until one is taken. By both ids a sender is told what became of its message.
const TEXTS: [Kept; 6] = [
    ALL,
    Kept { detail: Detail::Plain, ..ALL },
    Kept { detail: Detail::None, ..ALL },
    Kept { detail: Detail::Plain, recv_id: false, ..ALL },
    Kept { detail: Detail::None, recv_id: false, ..ALL },
    Kept { detail: Detail::None, recv_id: false, msg_id: false, ..ALL },
];

/// Headers, value and key: each form is tried with all texts before the next one.
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

fn steps() -> impl Iterator<Item = Kept> {
    let with = |[headers, value, key]: [bool; 3]| TEXTS.map(|kept| Kept { headers, value, key, ..kept });
    BYTES.into_iter().flat_map(with)
}

const SAVEPOINT: &str = "SAVEPOINT letters";
const RELEASE: &str = "RELEASE SAVEPOINT letters";
const ROLLBACK: &str = "ROLLBACK TO SAVEPOINT letters";

/// Keeps records as dead letters, within the batch's transaction.
pub(super) async fn insert_dead_letters(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    dead: &[DeadLetter],
) -> Result<(), Error> {
    client.batch_execute(SAVEPOINT).await?;
    match insert(client, topic, entries, dead, ALL).await {
        Err(error) if is_refused(&error) => client.batch_execute(ROLLBACK).await?,
        done => {
            done?;
            return client.batch_execute(RELEASE).await;
        }
    }
    // One of them at least. Each by itself: no other one loses anything for it.
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
    let mut refused = None;
    for kept in steps() {
        match insert(client, topic, entries, std::slice::from_ref(letter), kept).await {
            Err(error) if is_refused(&error) => {
                client.batch_execute(ROLLBACK).await?;
                refused = Some(error);
            }
            done => {
                done?;
                if let Some(error) = refused {
                    let record = &entries[letter.entry].body.item.record;
                    let (partition, offset, error) = (record.partition, record.offset.0, failure::describe(&error));
                    tracing::warn!(partition, offset, error, ?kept, "stored a dead letter with less than its record");
                    metrics::dead_letter_reduced();
                }
                // What comes next must not take this one back.
                return client.batch_execute(&format!("{RELEASE}; {SAVEPOINT}")).await;
            }
        }
    }
    Err(refused.expect("there are steps"))
}

/// Whether the table refuses what is in the letter: with less in it, it may be taken.
fn is_refused(error: &Error) -> bool {
    matches!(failure::of(error).class, Class::Permanent | Class::TooLarge | Class::Conflict)
}

async fn insert(
    client: &Object,
    topic: &str,
    entries: &[Entry<DecodedRecord>],
    dead: &[DeadLetter],
    kept: Kept,
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
        dead.iter().map(|dead| body(dead).known_recv_id().filter(|_| kept.recv_id)).collect();
    let msg_id: Vec<Option<Uuid>> = dead.iter().map(|dead| body(dead).known_msg_id().filter(|_| kept.msg_id)).collect();
    let key: Vec<Option<&[u8]>> = dead.iter().map(|dead| record(dead).key.as_deref().filter(|_| kept.key)).collect();
    let value: Vec<Option<&[u8]>> =
        dead.iter().map(|dead| record(dead).value.as_deref().filter(|_| kept.value && dead.content)).collect();
    let packed = |dead: &'_ DeadLetter| if kept.headers && dead.content { record(dead).headers.packed() } else { &[] };
    let headers: Vec<&[u8]> = dead.iter().map(packed).collect();
    let reason: Vec<&str> = dead.iter().map(|dead| dead.reason.name()).collect();
    let detail: Vec<String> = dead.iter().map(|dead| detail(&dead.detail, kept.detail)).collect();
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

fn detail(text: &str, kept: Detail) -> String {
    match kept {
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
    fn bytes_go_only_after_every_text_was_left_out() {
        let steps: Vec<Kept> = steps().collect();
        assert_eq!(steps[0], ALL);
        assert!(steps[..TEXTS.len()].iter().all(|kept| kept.headers && kept.value && kept.key));
        let last =
            Kept { detail: Detail::None, recv_id: false, msg_id: false, headers: false, value: false, key: false };
        assert_eq!(steps.last(), Some(&last), "in the end its position and its reason");
    }

    #[test]
    fn plain_detail_is_short_and_ascii() {
        assert_eq!(detail("张三\u{1}: no", Detail::Plain), "???: no");
        assert_eq!(detail(&"x".repeat(1000), Detail::Plain).len(), 200);
        assert_eq!(detail("a\0b", Detail::Whole), "a\u{fffd}b");
        assert_eq!(detail("a", Detail::None), "");
    }
}
