//! Tests the decisions of msg-transfer: the machines run against models of Kafka and PostgreSQL with all their faults,
//! chosen by a seed, and an oracle that knows only the produced records checks the stored rows.
//!
//! `docs/simulator.md` lists the parts that are modelled and those that are not.
#![expect(missing_docs, reason = "public only for our own programs: a comment has to add to the name")]

mod assignment_id;
mod choices;
mod config;
mod database;
mod env;
mod facts;
mod faults;
mod healing;
mod kafka;
pub mod mutants;
mod oracle;
mod process;
pub mod run;
pub mod shrink;
mod world;

pub use self::facts::Facts;
