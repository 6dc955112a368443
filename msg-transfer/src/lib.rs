//! msg-transfer: stores the messages of a Kafka topic in PostgreSQL, each once, in order, none missing.

pub mod app;
mod backoff;
mod citus;
pub mod cli;
pub mod commands;
pub mod config;
mod consumer;
mod db_error;
mod hints;
pub mod lag;
pub mod lane;
pub mod metrics;
mod schema;
mod session;
