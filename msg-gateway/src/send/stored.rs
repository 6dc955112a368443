//! The second half of a send with `wait_for: STORED`: Kafka has the message, and its row is awaited.

use std::sync::Arc;
use std::time::Instant;

use msg_common::proto::{Msg, Placement};

use crate::status::Failure;
use crate::watch::digest::Digest;
use crate::watch::waiters::{WaiterPermit, Waiters};

/// A message whose row will be awaited. Made before it is sent: what cannot be awaited is not sent.
pub(crate) struct Awaited {
    permit: WaiterPermit,
    digest: Digest,
}

impl Awaited {
    /// Takes a place for it.
    pub(crate) fn new(waiters: &Arc<Waiters>, msg: &Msg) -> Result<Self, Failure> {
        let permit = waiters.acquire()?;
        Ok(Awaited { permit, digest: Digest::of(msg) })
    }

    /// Its placement with where it is stored, if that is known in time.
    pub(crate) async fn stored(self, recv_id: String, placement: Placement, by: Instant) -> Result<Placement, Failure> {
        let stored = self.permit.stored(recv_id, self.digest, placement.clone());
        match tokio::time::timeout_at(by.into(), stored).await {
            Ok(Ok(stored)) => Ok(Placement { stored: Some(stored), ..placement }),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::NotStoredYet(Box::new(placement))),
        }
    }
}
