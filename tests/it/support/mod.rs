//! What tests share: the stack, a world of each test's own on it, and waiting for a condition.

pub(crate) mod admin;
pub(crate) mod fields;
pub(crate) mod forwarder;
pub(crate) mod hints;
pub(crate) mod hosts;
pub(crate) mod kafka;
pub(crate) mod leaks;
pub(crate) mod load;
pub(crate) mod stack;
pub(crate) mod tls_postgres;
pub(crate) mod token_server;
pub(crate) mod transfer;
pub(crate) mod world;

use std::fmt::Display;
use std::time::{Duration, Instant};

pub(crate) use msg_identities::{certificates, issuer};

/// The deadline for everything that a test waits for: far longer than any step needs.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls `condition` every 20 ms until it succeeds; returns its value. At the deadline, panics with `expected` and
/// the last error.
pub(crate) async fn eventually<T>(expected: &str, condition: impl AsyncFnMut() -> Result<T, NotYet>) -> T {
    within(WAIT_TIMEOUT, expected, condition).await
}

/// As `eventually`, with another deadline.
pub(crate) async fn within<T>(
    timeout: Duration,
    expected: &str,
    mut condition: impl AsyncFnMut() -> Result<T, NotYet>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => panic!("{expected}: not within {timeout:?}: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Why a condition does not hold yet.
pub(crate) type NotYet = Box<dyn std::error::Error + Send + Sync>;

/// `Ok` if the condition holds, and otherwise an error with the value that was found.
pub(crate) fn ensure(holds: bool, found: impl Display) -> Result<(), NotYet> {
    if holds { Ok(()) } else { Err(found.to_string().into()) }
}
