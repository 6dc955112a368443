//! The gateway: takes messages in over gRPC and answers once Kafka has them for good, and gives stored ones out.

pub mod app;
pub mod buffer_budget;
pub mod config;
pub mod health;
pub mod incoming;
pub mod metrics;
pub mod producer;
pub mod read;
pub mod request_body;
pub mod response;
pub mod response_permit;
pub mod router;
pub mod send;
pub mod service;
pub mod status;
pub mod unread;
pub mod watch;
