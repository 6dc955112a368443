//! msg-transfer: stores the messages of a Kafka topic in PostgreSQL, each once, in order, none missing.

pub mod app;
pub mod backoff;
pub mod citus;
pub mod cli;
pub mod commands;
pub mod config;
pub mod consumer;
pub mod failure;
pub mod hints;
pub mod lag;
pub mod lane;
pub mod metrics;
pub mod schema;
pub mod session;
