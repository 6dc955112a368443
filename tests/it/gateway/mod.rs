//! msg-gateway, and the whole pipe through it: what a caller sees, and what becomes of its messages.

mod batch;
pub(crate) mod calls;
mod clients;
mod config;
mod drain;
mod duplicates;
mod freeze;
mod full;
mod hostile;
mod metrics;
mod order;
mod outage;
mod proxies;
mod pull;
mod raw;
mod readme;
mod refusals;
mod rejections;
mod send_and_read;
mod starts;
mod status;
mod stored;
mod stream;
mod topics;
mod unknown;
mod waiters;
mod watch;
