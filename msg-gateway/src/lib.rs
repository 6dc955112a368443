//! The gateway: takes messages in over gRPC and answers once Kafka has them for good, and gives stored ones out.

pub mod app;
pub mod arriving;
pub mod config;
pub mod health;
pub mod incoming;
pub mod layer;
pub mod live;
pub mod metrics;
pub mod place;
pub mod producer;
pub mod read;
pub mod response;
pub mod send;
pub mod service;
pub mod status;
pub mod unread;
