//! A request in the background, whose result is read at a later check.

use tokio_util::task::AbortOnDropHandle;

/// At most one request at a time. It is abandoned when this is dropped.
#[derive(Debug)]
pub(super) struct Background<T>(Option<AbortOnDropHandle<T>>);

impl<T> Default for Background<T> {
    fn default() -> Self {
        Background(None)
    }
}

impl<T: Send + 'static> Background<T> {
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Starts a request. An earlier one is abandoned.
    pub(super) fn start(&mut self, request: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(AbortOnDropHandle::new(tokio::spawn(request)));
    }

    /// Returns the result if the request has ended. Does not wait.
    pub(super) async fn finished(&mut self) -> Option<T> {
        let ended = self.0.take_if(|request| request.is_finished())?;
        // A panic ends the process, so an error means that the process stops.
        ended.await.ok()
    }
}
