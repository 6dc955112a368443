//! The gateway: accepts messages over gRPC, responds when they are in Kafka, and reads stored messages.

pub mod app;
mod auth;
pub mod budget;
pub mod config;
mod gather;
mod health;
mod incoming;
pub mod metrics;
mod producer;
mod quota;
pub mod read;
pub mod request_body;
mod response;
mod response_permit;
mod router;
pub mod send;
mod service;
pub mod status;
mod unread;
pub mod watch;
