//! The permits of a response: what it may hold until HTTP/2 has written its last chunk. Callers that send requests and do not read
//! the responses must not fill the memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use metrics::counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::metrics::SLOW_READER_DISCONNECTS;
use crate::status::Failure;

/// Bytes of a response that its call's own permit covers. A result of a send and nearly every error are smaller.
pub(crate) const SMALL_RESPONSE: usize = 8 << 10;

/// The permits that a response holds until it is written.
#[derive(Debug)]
pub(crate) struct ResponsePermit {
    /// Permits that are held until all of it is written.
    _whole: Vec<OwnedSemaphorePermit>,
    /// Permits of stream messages that were polled and are not among its bytes yet.
    polled: Mutex<Vec<OwnedSemaphorePermit>>,
}

impl ResponsePermit {
    pub(crate) fn new(permits: impl IntoIterator<Item = OwnedSemaphorePermit>) -> Arc<Self> {
        Arc::new(ResponsePermit { _whole: permits.into_iter().collect(), polled: Mutex::default() })
    }

    /// Adds the permit of a message of a stream. It goes with the bytes that come next: tonic encodes a message when it is polled.
    pub(crate) fn add(&self, permit: OwnedSemaphorePermit) {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
    }

    /// Returns the permits of the messages that were polled since the last bytes.
    pub(crate) fn take(&self) -> Vec<OwnedSemaphorePermit> {
        std::mem::take(&mut *self.polled.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The budget of response bytes that are not written yet, over all connections. Events of watches have a budget of
/// their own.
#[derive(Debug)]
pub(crate) struct ResponseBudget {
    free: Arc<Semaphore>,
    max: u32,
}

impl ResponseBudget {
    /// Creates a budget of `max` bytes.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let permits = usize::try_from(max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Arc::new(ResponseBudget { free: Arc::new(Semaphore::new(permits)), max })
    }

    /// Returns the bytes in use.
    pub(crate) fn used(&self) -> usize {
        (self.max as usize).saturating_sub(self.free.available_permits())
    }

    /// Acquires a permit for a response of up to `bytes`, or fails immediately. A response that is larger than the
    /// budget needs all of it.
    pub(crate) fn try_acquire(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        self.free.clone().try_acquire_many_owned(self.permits(bytes)).map_err(|_| self.full())
    }

    /// Acquires a permit as above, or fails at `by`.
    pub(crate) async fn acquire(&self, bytes: usize, by: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        let permit = self.free.clone().acquire_many_owned(self.permits(bytes));
        let permit = tokio::time::timeout_at(by.into(), permit).await.map_err(|_| self.full())?;
        Ok(permit.expect("the semaphore is never closed"))
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.max)
    }

    fn full(&self) -> Failure {
        Failure::Overloaded(format!(
            "responses that callers have not read hold {} of {} bytes; retry after the delay, or raise MAX_RESPONSE_BYTES",
            self.used(),
            self.max
        ))
    }
}

/// Releases what a permit has beyond `bytes`.
pub(crate) fn shrink(permit: &mut OwnedSemaphorePermit, bytes: usize) {
    drop(permit.split(permit.num_permits().saturating_sub(bytes)));
}

/// Closes the connection of a caller that does not read what it requested.
pub(crate) fn disconnect_slow_reader(connection: &CancellationToken) {
    if connection.is_cancelled() {
        return;
    }
    counter!(SLOW_READER_DISCONNECTS).increment(1);
    tracing::info!("closed connection of slow reader");
    connection.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn response_larger_than_the_budget_needs_all_of_it() {
        let budget = ResponseBudget::new(1000);
        let by = Instant::now() + std::time::Duration::from_secs(10);
        let mut large = budget.acquire(5000, by).await.expect("nothing else is held");
        assert_eq!(budget.used(), 1000);
        assert!(matches!(budget.try_acquire(1), Err(Failure::Overloaded(_))));
        shrink(&mut large, 400);
        assert_eq!(budget.used(), 400);
        shrink(&mut large, 400);
        let _small = budget.try_acquire(600).expect("there is capacity");
        assert!(budget.acquire(1, Instant::now()).await.is_err());
        drop(large);
        assert_eq!(budget.used(), 600);
    }
}
