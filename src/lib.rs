//! The code that `msg-gateway` and `msg-transfer` share: the contract's generated code, the record codec, IDs and
//! limits, the setup of their Kafka and PostgreSQL clients, configuration, logs, metrics and shutdown.

pub mod accept;
pub mod admin;
pub mod audit;
pub mod backoff;
pub mod codec;
pub mod config;
mod database_url;
pub mod error;
pub mod hint;
pub mod http_client;
pub mod id;
pub mod kafka;
pub mod limits;
pub mod partition;
pub mod postgres;
pub mod proto;
pub mod record;
pub mod reload;
pub mod repeat;
pub mod shutdown;
pub mod table;
pub mod telemetry;
pub mod tls;
