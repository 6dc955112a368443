//! What tests stand on: the stack, a world of one's own on it, and waiting for a condition.

pub(crate) mod admin;
pub(crate) mod forwarder;
pub(crate) mod hosts;
pub(crate) mod kafka;
pub(crate) mod load;
pub(crate) mod stack;
pub(crate) mod transfer;
pub(crate) mod world;

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Longer than anything takes that is going to happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is there. `what` is told when it does not come.
pub(crate) async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Result<T, NotYet>) -> T {
    within(PATIENCE, what, ask).await
}

/// The same, with a deadline of the caller's.
pub(crate) async fn within<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Result<T, NotYet>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if Instant::now() >= deadline => panic!("{what}: not within {patience:?}: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Why an answer is not there yet.
pub(crate) type NotYet = Box<dyn std::error::Error + Send + Sync>;

/// `Ok` if it holds; otherwise what was found instead.
pub(crate) fn ensure(holds: bool, found: impl Display) -> Result<(), NotYet> {
    if holds { Ok(()) } else { Err(found.to_string().into()) }
}
