//! Integration tests of the real services with one real Kafka and one real PostgreSQL, which are started once per
//! run. Each test has its own topic, consumer group and database.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failing test shows its cause by a panic")]

mod gateway;
mod process;
mod security;
mod support;
mod transfer;
