//! The local stack as a library, for the demo and the integration tests. Never deployed.

pub mod stack;
