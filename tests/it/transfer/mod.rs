//! msg-transfer alone: records are written straight to the topic, and what becomes of them is looked up.

mod bad_records;
mod blocked;
mod bounds;
mod breaker;
pub(crate) mod commands;
mod controller;
mod database;
mod database_hosts;
mod duplicates;
mod faults;
mod fetch_errors;
mod flow;
mod hints;
mod letters;
mod lifecycle;
mod logs;
mod lost_tail;
mod order;
mod pooler;
mod rebalance;
mod rejected;
mod schema;
mod stalled;
mod starts;
mod too_large;
mod topics;
mod zombie;
