//! The one integration binary: the real services on one real Kafka and one real PostgreSQL, started once a run. Each test
//! has a topic, a group and a database of its own.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test says what went wrong by failing")]

mod gateway;
mod process;
mod support;
mod transfer;
