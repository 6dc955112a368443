//! Proves what msg-transfer decides, by trying: the machines run against models of Kafka and PostgreSQL in which
//! everything goes wrong, chosen by a seed, and an oracle that knows only what was sent looks at what is stored.
//!
//! `docs/simulator.md` tells what is modelled and what is not.

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
