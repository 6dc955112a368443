//! The second half of a send with `wait_for: STORED`: the message is accepted, and its row is awaited.

use std::sync::Arc;
use std::time::Instant;

use msg_common::proto::{Msg, Placement};
use msg_common::table::Digest;

use crate::status::Failure;
use crate::watch::waiters::{WaiterPermit, Waiters};

/// A permit to await the row of a message. It is acquired before the message is sent, so that the send can still be
/// rejected.
pub(crate) struct Awaited {
    permit: WaiterPermit,
    digest: Digest,
}

impl Awaited {
    pub(crate) fn new(waiters: &Arc<Waiters>, msg: &Msg) -> Result<Self, Failure> {
        let permit = waiters.acquire()?;
        Ok(Awaited { permit, digest: Digest::of(msg) })
    }

    /// Waits until `by` for the row. Returns the placement with the row's `seq`.
    pub(crate) async fn stored(self, recv_id: String, placement: Placement, by: Instant) -> Result<Placement, Failure> {
        let stored = self.permit.stored(recv_id, self.digest, placement.clone());
        match tokio::time::timeout_at(by.into(), stored).await {
            Ok(Ok(stored)) => Ok(Placement { stored: Some(stored), ..placement }),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::NotStoredYet(Box::new(placement))),
        }
    }
}
