//! The decisions of msg-transfer: events in, actions out, without I/O, without a clock, without async. The service
//! drives this crate with Kafka and PostgreSQL, the simulator with models of them.
//!
//! - [`consumer`]: which partitions are assigned, where each starts, which records are in flight and which are
//!   completed, when progress is saved and committed, when a partition is released or halted.
//! - [`driver`]: carries out the actions of [`consumer`] on the consumer's thread, through two traits.
//! - [`lane`]: how a batch becomes rows: its statements one by one, each `seq`, repeats, poison records.
//! - [`reference_connection`]: whether the database is still the server that the start offsets were read from.
//! - [`error`]: an error of the database, and its class.
#![expect(missing_docs, reason = "public only for our own programs: a comment has to add to the name")]

pub mod assignment;
pub mod consumer;
pub mod driver;
pub mod error;
pub mod lane;
pub mod offset;
pub mod reason;
pub mod reference_connection;

pub use self::assignment::{Assignment, ConnectionNumber, Epoch};
pub use self::offset::{LeaderEpoch, NextOffset, Progress, RecordOffset};
pub use self::reason::Reason;

pub type Partition = i32;

/// Milliseconds on a clock that never goes back.
pub type Millis = u64;
