//! Owns the types for what the lab itself has observed: rows, offsets, injected faults, and the size of the processes.
//! The checker and the report know only this evidence and the history.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::history::Nanos;

/// What the lab observed, in addition to the history. Times and offsets by partition are indexed from 0.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// One moment on both clocks.
    pub(crate) clock: Clock,
    /// When the load started, and when its last sender ended.
    pub(crate) began: Nanos,
    pub(crate) ended: Nanos,
    /// The table `messages` after everything was stored, by inbox and seq.
    #[serde(skip)]
    pub(crate) rows: Vec<Row>,
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// Rows and dead letters that the load cannot have written, in words.
    pub(crate) foreign: Vec<String>,
    /// After everything was stored: the end offset of each partition, the group's committed offsets, and the progress
    /// rows.
    pub(crate) ends: Vec<i64>,
    pub(crate) committed: Vec<i64>,
    pub(crate) progress: Vec<i64>,
    /// The group's committed offsets during the run.
    pub(crate) commits: Vec<Commits>,
    /// Poison records that the lab wrote itself: partition and offset.
    pub(crate) poison: Vec<(i32, i64)>,
    /// When the topic was recreated, in order.
    pub(crate) topics: Vec<NewTopic>,
    /// The log ends that were lost, in order.
    pub(crate) truncations: Vec<Truncation>,
    /// The lost offsets that each transfer's process last reported, by partition.
    pub(crate) lost_offsets: Vec<LostOffsets>,
    /// When partitions were added, and the number of partitions that the gateways use from then on.
    pub(crate) growths: Vec<(Nanos, i32)>,
    pub(crate) faults: Vec<Fault>,
    /// The size of each process, about once a second.
    pub(crate) samples: Vec<Sample>,
    /// Records in Kafka that are not completed, about once a second; none while Kafka does not respond.
    pub(crate) lag: Vec<(Nanos, Option<i64>)>,
    /// The limits that the checker compares the samples with.
    pub(crate) limits: Vec<Limit>,
    /// The readiness that each service reported, about once a second.
    pub(crate) health: Vec<Health>,
    /// Which partitions had records that were not committed, about once a second while Kafka responded.
    pub(crate) waiting: Vec<Waiting>,
}

/// The readiness that a service reported at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) at: Nanos,
    /// The name of the process: `transfer-3`.
    pub(crate) process: String,
    pub(crate) ready: bool,
    /// The text of the response, if the process is not ready.
    pub(crate) reason: String,
}

/// The end offset and the committed offset of each partition at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) at: Nanos,
    pub(crate) ends: Vec<i64>,
    /// The group's committed offsets; 0 if the group has committed none.
    pub(crate) committed: Vec<i64>,
}

impl Waiting {
    /// The records of all partitions that are not committed.
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

    /// Converts a time of the database.
    pub(crate) fn nanos(&self, micros: i64) -> Nanos {
        self.at.saturating_add_signed((micros - self.micros) * 1000)
    }
}

/// A row of `messages`, and whether it equals the message that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) inbox: u32,
    pub(crate) seq: i64,
    pub(crate) sender: u32,
    pub(crate) n: u32,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// `send_time`, when a gateway accepted the request: microseconds since 1970. It shows which attempt wrote the row.
    pub(crate) sent: i64,
    /// `stored_time`, the start of the transaction: microseconds since 1970.
    pub(crate) stored: i64,
    /// Whether the message in it is as it was sent, byte for byte.
    pub(crate) same: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeadLetter {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Sender and `n`, if the record contains a message of the load.
    pub(crate) message: Option<(u32, u32)>,
    /// Whether the record is the message with the other content that the load sends under a known ID.
    pub(crate) altered: bool,
    pub(crate) reason: String,
    /// The `first_seen` of the row, in microseconds since 1970.
    pub(crate) seen: i64,
}

/// The group's committed offsets at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commits {
    /// When the response arrived: microseconds since 1970.
    pub(crate) at: i64,
    /// The next offset by partition; 0 if the group has committed none.
    pub(crate) next: Vec<i64>,
}

/// A topic that was recreated by mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewTopic {
    pub(crate) deleted: Nanos,
    /// The progress rows at that moment: records from these offsets on were deleted with the topic and cannot be rows.
    pub(crate) progress: Vec<i64>,
    pub(crate) made: Nanos,
}

/// The end of a partition's log that was lost in all replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Truncation {
    pub(crate) partition: i32,
    /// When the last broker had stopped.
    pub(crate) at: Nanos,
    /// When the first broker was started again.
    pub(crate) over: Nanos,
    /// The first lost offset, and the end offset before the loss.
    pub(crate) end: i64,
    pub(crate) was: i64,
    /// The progress row while no transfer ran: records from this offset on were lost before any transfer read them.
    pub(crate) stored: i64,
}

/// The value of `msg_transfer_lost_offsets_total` for one partition and process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LostOffsets {
    pub(crate) partition: i32,
    pub(crate) count: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) began: Nanos,
    pub(crate) broken: Nanos,
    /// When the lab started to undo the fault, or had nothing more to do.
    pub(crate) over: Nanos,
    /// When the fault was undone and all processes ran again.
    pub(crate) healed: Nanos,
    /// From `broken` to `over` no message that was sent after `broken` can be accepted.
    pub(crate) no_ok: bool,
    /// Number of processes that were killed with SIGKILL.
    pub(crate) kills: u32,
    /// The causes that services have to report while the fault lasts.
    pub(crate) says: Vec<Says>,
}

/// A cause that `/readyz` has to name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Says {
    /// The prefix of a process name; at least one process with the prefix has to name the cause.
    pub(crate) process: String,
    /// Words that the text of `/readyz` contains while the service is not ready.
    pub(crate) words: Vec<String>,
}

/// The size of one process at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) at: Nanos,
    /// The process: `gateway-1`, `transfer-3`, `broker-2`, `postgresql`.
    pub(crate) process: String,
    pub(crate) pid: u32,
    pub(crate) rss: u64,
    pub(crate) fds: u32,
    pub(crate) sockets: u32,
    pub(crate) threads: u32,
    /// Messages (gateway) or records (transfer) in flight, and their bytes; none if the service did not respond.
    pub(crate) inflight: Option<(f64, f64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// The prefix of the processes' names: `gateway`.
    pub(crate) process: String,
    pub(crate) what: Measure,
    pub(crate) most: f64,
}

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
