//! msg-gateway, and the whole pipe through it: what a caller sees, and what becomes of its messages.

mod calls;
mod config;
mod drain;
mod duplicates;
mod full;
mod metrics;
mod order;
mod outage;
mod python;
mod readme;
mod refusals;
mod send_and_read;
mod starts;
mod topics;
mod unknown;
