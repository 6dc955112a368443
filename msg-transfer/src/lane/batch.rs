//! A batch as the store sees it: rows to write, repeats within it, and dead letters.

use std::collections::HashSet;

use msg_common::proto::DeadLetterReason;
use msg_common::record::{self, DecodeError, Record};
use uuid::Uuid;

use super::item::{Headers, Item};

/// What is in a batch of items.
#[derive(Debug, Default)]
pub struct Batch {
    /// Messages, in the order received.
    pub rows: Vec<Row>,
    /// Items that hold no message.
    pub broken: Vec<DeadLetter>,
}

/// A message on its way into the table.
#[derive(Debug)]
pub struct Row {
    /// Its place among the batch's rows.
    pub place: usize,
    /// Its place among the batch's items.
    pub item: usize,
    /// The message.
    pub record: Record,
    /// Its attributes as JSON, if it has any.
    pub attributes: Option<String>,
    /// What is known of it.
    pub state: RowState,
}

/// What is known of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// Not in the table, as far as we know.
    New,
    /// Comes after a row of this batch with the same id.
    Repeat,
    /// The same message is in the table.
    Duplicate,
    /// Another message with its id is in the table.
    Conflict,
}

/// A record to be kept aside.
#[derive(Debug)]
pub struct DeadLetter {
    /// Its place among the batch's items.
    pub item: usize,
    /// Why.
    pub reason: DeadLetterReason,
    /// A sentence about it, without NUL.
    pub detail: String,
    /// Its inbox, if it is known and the table can hold it.
    pub recv_id: Option<String>,
    /// Its id, if it is known.
    pub msg_id: Option<Uuid>,
}

/// A record that this build is too old for, and its place among the items.
#[derive(Debug)]
pub struct TooNew {
    /// The place.
    pub item: usize,
    /// What to tell.
    pub reason: String,
}

impl Batch {
    /// Decodes the items. What a newer version wrote is not a batch's to handle: its partition has to stop.
    pub fn decode(items: &[Item]) -> Result<Batch, TooNew> {
        let mut batch = Batch::default();
        let mut seen: HashSet<(String, Uuid)> = HashSet::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let version = item.headers.last(record::VERSION_HEADER);
            match record::decode(item.key.as_deref(), version, item.value.clone()) {
                Ok(record) => {
                    let first = seen.insert((record.msg.recv_id.clone(), record.msg_id));
                    let state = if first { RowState::New } else { RowState::Repeat };
                    let attributes = (!record.msg.attributes.is_empty())
                        .then(|| serde_json::to_string(&record.msg.attributes).expect("strings are JSON"));
                    batch.rows.push(Row { place: batch.rows.len(), item: index, record, attributes, state });
                }
                Err(error @ DecodeError::Newer(_)) => {
                    return Err(TooNew { item: index, reason: error.to_string() });
                }
                Err(DecodeError::Undecodable(detail)) => {
                    batch.broken.push(DeadLetter::new(index, DeadLetterReason::Undecodable, &detail, None, None));
                }
                Err(DecodeError::Invalid { detail, recv_id, msg_id }) => {
                    let reason = DeadLetterReason::Invalid;
                    batch.broken.push(DeadLetter::new(index, reason, &detail, Some(recv_id), msg_id));
                }
            }
        }
        Ok(batch)
    }

    /// Everything that is to be kept aside: what is broken, and the conflicts found so far.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let conflicts = self.rows.iter().filter(|row| row.state == RowState::Conflict).map(|row| {
            let (recv_id, msg_id) = (row.record.msg.recv_id.clone(), row.record.msg_id);
            let detail = "another message with this id is stored, and its fields differ";
            let reason = DeadLetterReason::IdempotencyConflict;
            DeadLetter::new(row.item, reason, detail, Some(recv_id), Some(msg_id))
        });
        let broken = self.broken.iter().map(|dead| DeadLetter {
            item: dead.item,
            reason: dead.reason,
            detail: dead.detail.clone(),
            recv_id: dead.recv_id.clone(),
            msg_id: dead.msg_id,
        });
        broken.chain(conflicts).collect()
    }
}

impl DeadLetter {
    fn new(item: usize, reason: DeadLetterReason, detail: &str, recv_id: Option<String>, msg_id: Option<Uuid>) -> Self {
        // Only what the table, and its index, can hold.
        let recv_id = recv_id.filter(|id| !id.contains('\0') && id.len() <= msg_common::limits::MAX_ID_BYTES);
        DeadLetter { item, reason, detail: detail.replace('\0', "\u{fffd}"), recv_id, msg_id }
    }

    /// The reason as it is stored: the contract's name without its prefix.
    pub fn reason_name(&self) -> &'static str {
        self.reason.as_str_name().trim_start_matches("DEAD_LETTER_REASON_")
    }
}

impl Headers {
    /// The packed bytes.
    pub fn packed(&self) -> &[u8] {
        &self.0
    }
}
