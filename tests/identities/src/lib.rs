//! Certificates, keys and tokens that tests and benchmarks make for themselves. The services never make any.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failing test shows its cause by a panic")]

pub mod certificates;
pub mod issuer;
