//! An answer's place among the others, which it keeps until it is sent: callers that ask and do not read must not fill the
//! memory.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use crate::incoming::Lifetime;
use crate::metrics::ANSWERS_NOT_TAKEN;

/// A place among those that may be taken at a time. It goes among a response's extensions, and from there with its body.
pub type Place = Arc<Held>;

/// A place, and what ends the connection of a caller that keeps it for too long.
#[derive(Debug)]
pub struct Held {
    _permit: OwnedSemaphorePermit,
    _watchdog: Option<AbortOnDropHandle<()>>,
}

impl Held {
    /// A place of which somebody else sees to it that it is given back.
    pub fn place(permit: OwnedSemaphorePermit) -> Place {
        Arc::new(Held { _permit: permit, _watchdog: None })
    }

    /// The place of an answer that is made: its connection is ended unless it is sent in time.
    pub fn watched(permit: OwnedSemaphorePermit, connection: Option<Lifetime>, patience: Duration) -> Place {
        let watchdog = connection.map(|connection| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(patience).await;
                end_for_silence(&connection);
            }))
        });
        Arc::new(Held { _permit: permit, _watchdog: watchdog })
    }
}

/// Ends the connection of a caller that does not take what it asked for.
pub fn end_for_silence(connection: &Lifetime) {
    counter!(ANSWERS_NOT_TAKEN).increment(1);
    tracing::info!("a caller does not take its answer: its connection is ended");
    connection.cut();
}
