//! Owns the history: what the load asked and what it was told, one JSON object a line. A request is in the file before it is
//! sent, so that what a killed client had under way is known to be unknown.

pub(crate) mod book;
mod read;
mod write;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use book::{Attempt, Book};
pub(crate) use read::Tail;
pub(crate) use write::Writer;

/// Nanoseconds of CLOCK_MONOTONIC: the same clock for every process of the machine, and one that never jumps.
pub(crate) type Nanos = u64;

/// A watch brings what is stored within this time.
pub(crate) const WATCH_WITHIN: Duration = Duration::from_secs(45);

/// Now.
pub(crate) fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec, which is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A request with messages; written before it is sent. Requests of one sender are written in the order in which they go out.
    Send {
        /// Counts in one file.
        call: u64,
        at: Nanos,
        /// Unique over all files.
        sender: u32,
        /// Over what it went.
        way: Way,
        /// Of a stream: which one, counted in one file. The entries of one stream are in order over all its requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream: Option<u64>,
        /// With `wait_for: STORED`.
        #[serde(default, skip_serializing_if = "is_false")]
        stored: bool,
        /// With other content than the messages have: a caller's bug, which must not replace the stored message.
        #[serde(default, skip_serializing_if = "is_false")]
        altered: bool,
        /// The gateway it went to, from 0.
        gateway: u8,
        /// The messages, in order: `n` of the sender, and the inbox.
        msgs: Vec<(u32, u32)>,
    },
    /// What a call's messages came to. A call may have several of these; a message that none of them names is unknown.
    Told {
        call: u64,
        at: Nanos,
        /// The index in `msgs`, and the outcome.
        results: Vec<(u32, Outcome)>,
    },
    /// A page of PullMsgs, or an event of WatchMsgs, with messages of one inbox.
    Read {
        /// Unique over all files.
        reader: u32,
        way: ReadWay,
        /// When it was asked for (of a watch: when it came; of its `end`: [`WATCH_WITHIN`] before).
        asked: Nanos,
        at: Nanos,
        inbox: u32,
        /// The lowest seq that may come: the request's `from_seq`, or of a watch one more than the last that was seen.
        from: i64,
        /// `seq`, sender, `n`; in the order in which they came.
        msgs: Vec<(i64, u32, u32)>,
        /// Of a pull: there is nothing more behind these. Of a watch: this is how far it has come.
        #[serde(default, skip_serializing_if = "is_false")]
        end: bool,
    },
    /// GetMaxSeqs.
    MaxSeqs { reader: u32, asked: Nanos, at: Nanos, seqs: Vec<(u32, i64)> },
    /// GetMsgStatus.
    Status { reader: u32, asked: Nanos, at: Nanos, sender: u32, n: u32, state: State },
    /// A read that failed.
    ReadFailed { reader: u32, way: ReadWay, asked: Nanos, at: Nanos, reason: String },
}

/// How messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    Unary,
    Batch,
    Stream,
}

/// How messages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReadWay {
    Pull,
    Watch,
    MaxSeqs,
    Status,
}

/// What GetMsgStatus told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// With this seq.
    Stored(i64),
    DeadLettered,
    Pending,
    NotFound,
}

/// What a caller was told about one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Accepted: partition and offset.
    Ok(i32, i64),
    /// Accepted and stored.
    Stored { partition: i32, offset: i64, seq: i64, duplicate: bool },
    /// Accepted, and not stored before the deadline (NOT_STORED_YET).
    NotStoredYet(i32, i64),
    /// Accepted, and kept as a dead letter: partition, offset, reason.
    DeadLettered(i32, i64, String),
    /// Certainly not sent: the reason that was given.
    NotSent(String),
    /// It may be there or not: the reason, or the transport's code.
    Unknown(String),
}

impl Outcome {
    /// Where the record is, when it was accepted.
    pub(crate) fn place(&self) -> Option<(i32, i64)> {
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
