//! Owns the history: the load's requests and their responses, as one JSON object a line. A request is in the file
//! before it is sent, so the outcome of a request that a killed load process had in flight is known to be unknown.

pub(crate) mod book;
mod read;
mod write;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use book::{Attempt, Book};
pub(crate) use read::HistoryFollower;
pub(crate) use write::Writer;

/// Nanoseconds of CLOCK_MONOTONIC: the same clock for every process of the machine, which never jumps.
pub(crate) type Nanos = u64;

/// The time within which a watch sends a stored message.
pub(crate) const WATCH_WITHIN: Duration = Duration::from_secs(45);

pub(crate) fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which this function owns.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A request with messages, written before it is sent. The requests of one sender are in the order in which they
    /// are sent.
    Send {
        /// The number of the request, counted in one file.
        call: u64,
        at: Nanos,
        /// The sender's number, unique over all files.
        sender: u32,
        way: Way,
        /// The number of the stream, counted in one file. The entries of one stream are in order over all its requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream: Option<u64>,
        /// Whether the request has `wait_for: STORED`.
        #[serde(default, skip_serializing_if = "is_false")]
        stored: bool,
        /// Whether the content differs from the messages' own: a caller's bug, which must not replace the stored
        /// message.
        #[serde(default, skip_serializing_if = "is_false")]
        altered: bool,
        gateway: u8,
        /// The messages, in order: `n` of the sender, and the inbox.
        msgs: Vec<(u32, u32)>,
    },
    /// The outcomes of a call's messages. A call may have several of these lines; a message in none of them has an
    /// unknown outcome.
    Outcomes {
        call: u64,
        at: Nanos,
        /// The index in `msgs`, and the outcome.
        results: Vec<(u32, Outcome)>,
    },
    /// A page of PullMsgs, or an event of WatchMsgs, with messages of one inbox.
    Read {
        /// The reader's number, unique over all files.
        reader: u32,
        way: ReadWay,
        /// When the read was requested. For a watch: when the event arrived; for the `end` of
        /// a watch: [`WATCH_WITHIN`] before the watch ended.
        requested: Nanos,
        at: Nanos,
        inbox: u32,
        /// The lowest possible seq: the request's `from_seq`, or for a watch the last received seq plus 1.
        from: i64,
        /// `seq`, sender and `n`, in the order in which they arrived.
        msgs: Vec<(i64, u32, u32)>,
        /// For a pull: whether this page is the last one. For a watch: this line says how far the watch has come.
        #[serde(default, skip_serializing_if = "is_false")]
        end: bool,
    },
    /// The last seqs of some inboxes, as GetMaxSeqs returned them.
    MaxSeqs { reader: u32, requested: Nanos, at: Nanos, seqs: Vec<(u32, i64)> },
    /// The state of a message, as GetMsgStatus returned it.
    Status { reader: u32, requested: Nanos, at: Nanos, sender: u32, n: u32, state: State },
    /// A read that failed or timed out, with the reason.
    ReadFailed { reader: u32, way: ReadWay, requested: Nanos, at: Nanos, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    Unary,
    Batch,
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReadWay {
    Pull,
    Watch,
    MaxSeqs,
    Status,
}

/// The state of a message in a response of GetMsgStatus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The message is stored with this seq.
    Stored(i64),
    DeadLettered,
    Pending,
    NotFound,
}

/// The outcome of one message that its caller received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The message was accepted at this partition and offset.
    Ok(i32, i64),
    Stored {
        partition: i32,
        offset: i64,
        seq: i64,
        duplicate: bool,
    },
    /// Accepted, and not stored before the deadline (NOT_STORED_YET).
    NotStoredYet(i32, i64),
    /// Accepted, and dead-lettered: partition, offset, reason.
    DeadLettered(i32, i64, String),
    /// The message was not sent, for this reason.
    NotSent(String),
    /// Unknown: the reason, or the transport's code.
    Unknown(String),
}

impl Outcome {
    /// Returns the position of the record, if it was accepted.
    pub(crate) fn position(&self) -> Option<(i32, i64)> {
        match self {
            Outcome::Ok(partition, offset)
            | Outcome::Stored { partition, offset, .. }
            | Outcome::NotStoredYet(partition, offset)
            | Outcome::DeadLettered(partition, offset, _) => Some((*partition, *offset)),
            Outcome::NotSent(_) | Outcome::Unknown(_) => None,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}
