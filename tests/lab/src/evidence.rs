//! Owns the words for what the lab itself has seen: rows, offsets, what it broke and when, and how large the processes were. With
//! the history it is all that the checker and the report know.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::history::Nanos;

/// What was seen besides the history; times and offsets by partition are indexed from 0.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// One moment on both clocks.
    pub(crate) clock: Clock,
    /// When the load began, and when its last sender had ended.
    pub(crate) began: Nanos,
    pub(crate) ended: Nanos,
    /// The table `messages` when all was at rest, by inbox and seq.
    #[serde(skip)]
    pub(crate) rows: Vec<Row>,
    /// The table `dead_letters`.
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// What nobody of the load can have written, in words.
    pub(crate) foreign: Vec<String>,
    /// At rest: the end of each partition, what the group has committed and the progress rows.
    pub(crate) ends: Vec<i64>,
    pub(crate) committed: Vec<i64>,
    pub(crate) progress: Vec<i64>,
    /// What the group had committed along the way.
    pub(crate) commits: Vec<Commits>,
    /// Records that the lab wrote itself and that hold no message: partition and offset.
    pub(crate) poison: Vec<(i32, i64)>,
    /// When the topic was deleted and made anew, in order.
    pub(crate) topics: Vec<NewTopic>,
    /// Where the end of a log was lost, in order.
    pub(crate) truncations: Vec<Truncation>,
    /// What each transfer's process counted as lost at the last look, a partition.
    pub(crate) lost_offsets: Vec<LostOffsets>,
    /// When partitions were added, and the number that the gateways use from then on.
    pub(crate) growths: Vec<(Nanos, i32)>,
    /// What was broken, in order.
    pub(crate) faults: Vec<Fault>,
    /// How large each process was, about once a second.
    pub(crate) samples: Vec<Sample>,
    /// Records in Kafka that were not looked at yet, about once a second; none while nobody answers.
    pub(crate) lag: Vec<(Nanos, Option<i64>)>,
    /// The limits that samples are held against.
    pub(crate) limits: Vec<Limit>,
    /// What each service said of its health, about once a second.
    pub(crate) health: Vec<Health>,
    /// Which partitions had records that were not committed, about once a second while Kafka responded.
    pub(crate) waiting: Vec<Waiting>,
}

/// What `/readyz` said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) at: Nanos,
    /// `transfer-3`.
    pub(crate) process: String,
    pub(crate) ready: bool,
    /// Its text where it is not ready.
    pub(crate) reason: String,
}

/// How far each partition had come, by partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) at: Nanos,
    /// The end offsets.
    pub(crate) ends: Vec<i64>,
    /// The group's committed offsets; 0 where it has none.
    pub(crate) committed: Vec<i64>,
}

impl Waiting {
    /// Records of all partitions that are not committed.
    pub(crate) fn records(&self) -> i64 {
        self.ends.iter().zip(&self.committed).map(|(end, next)| (end - next).max(0)).sum()
    }
}

/// The same moment on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    pub(crate) at: Nanos,
    /// Microseconds since 1970, as PostgreSQL counts them.
    pub(crate) micros: i64,
}

impl Clock {
    pub(crate) fn read() -> Clock {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        Clock { at: super::history::now(), micros: i64::try_from(since.as_micros()).expect("for 290,000 years") }
    }

    /// The moment of a time of the database's.
    pub(crate) fn nanos(&self, micros: i64) -> Nanos {
        self.at.saturating_add_signed((micros - self.micros) * 1000)
    }
}

/// A row of `messages`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) inbox: u32,
    pub(crate) seq: i64,
    pub(crate) sender: u32,
    pub(crate) n: u32,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// `send_time`, when a gateway accepted the request: microseconds since 1970. It tells which attempt the row is of.
    pub(crate) sent: i64,
    /// `stored_time`, the begin of the transaction: microseconds since 1970.
    pub(crate) stored: i64,
    /// Whether the message in it is as it was sent, byte for byte.
    pub(crate) same: bool,
}

/// A row of `dead_letters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeadLetter {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Sender and `n`, where the record holds a message of the load.
    pub(crate) message: Option<(u32, u32)>,
    /// Whether the record is the message with the other content that the load sends under a known ID.
    pub(crate) altered: bool,
    pub(crate) reason: String,
    /// `first_seen`: microseconds since 1970.
    pub(crate) seen: i64,
}

/// What the group had committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commits {
    /// When the answer was there: microseconds since 1970.
    pub(crate) at: i64,
    /// Next to read, by partition; 0 where nothing is.
    pub(crate) next: Vec<i64>,
}

/// A topic that was deleted by mistake and made anew under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewTopic {
    /// Just before it was deleted.
    pub(crate) deleted: Nanos,
    /// The progress rows then: what is above went with the topic and cannot be a row.
    pub(crate) progress: Vec<i64>,
    /// When the new one was there.
    pub(crate) made: Nanos,
}

/// The end of a partition's log that was lost in all replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Truncation {
    pub(crate) partition: i32,
    /// All brokers were stopped from then on,
    pub(crate) at: Nanos,
    /// and not started again before then.
    pub(crate) over: Nanos,
    /// The first offset that was lost, and the one behind the last.
    pub(crate) end: i64,
    pub(crate) was: i64,
    /// The progress row while no transfer ran: what is above was lost before anybody read it.
    pub(crate) stored: i64,
}

/// `msg_transfer_lost_offsets_total`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LostOffsets {
    pub(crate) partition: i32,
    pub(crate) count: f64,
}

/// Something that was broken on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// The name that `FAULT=` takes.
    pub(crate) name: String,
    /// To whom, in words.
    pub(crate) target: String,
    pub(crate) began: Nanos,
    /// When it was in force.
    pub(crate) broken: Nanos,
    /// When the lab began to undo it, or to do nothing more.
    pub(crate) over: Nanos,
    /// When that was done, and all processes were there again.
    pub(crate) healed: Nanos,
    /// While it lasts (from `broken` to `over`) nothing that was sent after `broken` can be OK.
    pub(crate) no_ok: bool,
    /// Processes that were killed with SIGKILL.
    pub(crate) kills: u32,
    /// What has to be said of it while it is in force.
    pub(crate) says: Vec<Says>,
}

/// A cause that health has to name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Says {
    /// One of those whose names begin so.
    pub(crate) process: String,
    /// All of these are in the text of `/readyz`, which does not answer "ready".
    pub(crate) words: Vec<String>,
}

/// How large one process was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) at: Nanos,
    /// `gateway-1`, `transfer-3`, `broker-2`, `postgresql`.
    pub(crate) process: String,
    pub(crate) pid: u32,
    /// Resident memory, bytes.
    pub(crate) rss: u64,
    pub(crate) fds: u32,
    pub(crate) sockets: u32,
    pub(crate) threads: u32,
    /// Messages (gateway) or records (transfer) that are in flight, and their bytes; none where it did not answer.
    pub(crate) inflight: Option<(f64, f64)>,
}

/// What must not be passed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// The begin of the processes' names: `gateway`.
    pub(crate) process: String,
    pub(crate) what: Measure,
    pub(crate) most: f64,
}

/// What a limit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    Rss,
    Fds,
    Sockets,
    Threads,
    Inflight,
    InflightBytes,
}
