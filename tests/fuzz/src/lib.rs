//! What is fuzzed: each module has a `run` that panics when a rule is broken. The same files are part of the test `corpus`,
//! which runs the committed corpus through them.

pub mod framing;
pub mod record;
pub mod request;
