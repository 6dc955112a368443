//! Owns the permits that a response holds until HTTP/2 has written its last chunk. Callers that send requests and do not read
//! the responses must not fill the memory.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::budget::Permit;
use crate::metrics::SLOW_READER_DISCONNECTS;

/// Bytes of a response that its call's own permit covers. A result of a send and nearly every error are smaller.
pub(crate) const SMALL_RESPONSE: usize = 8 << 10;

/// The permits that a response holds until it is written.
#[derive(Debug)]
pub(crate) struct ResponsePermit {
    /// Permits that are held until the whole response is written.
    _whole: Vec<Permit>,
    /// Permits of stream messages that were polled and are not encoded yet.
    polled: Mutex<Vec<Permit>>,
}

impl ResponsePermit {
    pub(crate) fn new(permits: impl IntoIterator<Item = Permit>) -> Arc<Self> {
        Arc::new(ResponsePermit { _whole: permits.into_iter().collect(), polled: Mutex::default() })
    }

    /// Adds the permit of a message of a stream. The next bytes of the body hold it: tonic encodes a message when it is polled.
    pub(crate) fn add(&self, permit: Permit) {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
    }

    /// Returns the permits of the messages that were polled since the last bytes.
    pub(crate) fn take(&self) -> Vec<Permit> {
        std::mem::take(&mut *self.polled.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Closes the connection of a caller that does not read its responses.
pub(crate) fn disconnect_slow_reader(connection: &CancellationToken) {
    if connection.is_cancelled() {
        return;
    }
    counter!(SLOW_READER_DISCONNECTS).increment(1);
    tracing::info!("closed connection of slow reader");
    connection.cancel();
}
