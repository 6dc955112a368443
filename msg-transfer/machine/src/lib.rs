//! What msg-transfer decides, apart from what it does: events in, actions out, without I/O, without a clock, without
//! async. The service drives it with Kafka and PostgreSQL; the simulator drives it with models of them.
//!
//! - [`consumer`]: which partitions are ours, where each starts, what is in flight, what is completed, when progress is
//!   saved and committed, when a partition is let go or stands still.
//! - [`driver`]: carries out what [`consumer`] decides, on the consumer's thread, through two traits for what is outside.
//! - [`lane`]: how a batch becomes rows: its statements one by one, each `seq`, repeats, records that the database refuses.
//! - [`reference_connection`]: whether the database is still the one that the starts were read from.
//! - [`failure`]: what an error of the database means.

pub mod assignment;
pub mod consumer;
pub mod driver;
pub mod failure;
pub mod lane;
pub mod offset;
pub mod reason;
pub mod reference_connection;

pub use self::assignment::{Assignment, ConnectionNumber, Epoch};
pub use self::offset::{LeaderEpoch, NextOffset, Progress, RecordOffset};
pub use self::reason::Reason;

/// A partition of the topic.
pub type Partition = i32;

/// Milliseconds on a clock that never goes back.
pub type Millis = u64;
