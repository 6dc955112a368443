//! Opens WatchMsgs streams, and is what their callers read. Each stream has a task of its own, in `watcher`.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use msg_common::limits::{Violation, check_id};
use msg_common::proto::{WatchMsgsRequest, WatchMsgsResponse};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::budget::Amount;
use crate::incoming::Lifetime;
use crate::quota::Account;
use crate::response_permit::ResponsePermit;
use crate::status::Failure;
use crate::watch::pending_inboxes::PendingInboxes;
use crate::watch::watched::{BufferedEvent, Watched, Watches};
use crate::watch::watcher::Watcher;

const MAX_INBOXES: usize = 1000;

impl Watches {
    /// Opens a watch. From the response on, no message is missed.
    pub(crate) async fn open(
        self: &Arc<Self>,
        request: WatchMsgsRequest,
        account: Account,
        lifetime: Lifetime,
    ) -> Result<(WatchStream, Arc<ResponsePermit>), Failure> {
        check(&request, self.max_id_bytes)?;
        let permits = account.acquire_one(&self.by_caller, &self.by_tenant)?;
        let queries = self.queries.clone();
        let last_seqs = async move |recv_ids: Vec<Arc<str>>| queries.last_seqs(&recv_ids).await;
        let watcher = self.watcher(request, lifetime, last_seqs).await?;
        let (events, received) = mpsc::channel(1);
        let end = Arc::new(OnceLock::new());
        let disconnected = CancellationToken::new();
        let unwritten = ResponsePermit::new(permits);
        let (stream_permit, disconnect_guard) = (unwritten.clone(), disconnected.clone().drop_guard());
        let stream =
            WatchStream { received, unwritten: stream_permit, end: end.clone(), _disconnected: disconnect_guard };
        tokio::spawn(watcher.run(events, end, disconnected));
        Ok((stream, unwritten))
    }

    /// Creates a watcher that starts at the end of the table, as `last_seqs` finds it.
    async fn watcher<F: Future<Output = Result<Vec<i64>, Failure>>>(
        self: &Arc<Self>,
        request: WatchMsgsRequest,
        lifetime: Lifetime,
        last_seqs: impl FnOnce(Vec<Arc<str>>) -> F,
    ) -> Result<Watcher, Failure> {
        let recv_ids: Vec<Arc<str>> = request.inboxes.iter().map(|inbox| inbox.recv_id.as_str().into()).collect();
        let permit = self.budget.try_acquire(Amount { items: 1, size: recv_ids.len() })?;
        let pending = Arc::new(PendingInboxes::new(self.next.fetch_add(1, Ordering::Relaxed), recv_ids.len()));
        let interest = self.monitor.register_interest();
        // Subscribe before the table is read: a message that is stored in between is found twice at most, and its
        // `seq` shows that.
        self.feed.subscribe(&pending, &recv_ids);
        let watched = Watched { pending, recv_ids, watches: self.clone(), _permit: permit, _interest: interest };
        let last_seqs_found = last_seqs(watched.recv_ids.clone()).await?;
        let requested = request.inboxes.iter().map(|inbox| inbox.after_seq);
        let cursors = self.feed.start(&watched.pending, &watched.recv_ids, &last_seqs_found, requested);
        Ok(Watcher::new(watched, cursors, request.omit_content, lifetime))
    }
}

/// Checks the request. Returns `Invalid` with every violation.
pub fn check(request: &WatchMsgsRequest, max_id_bytes: usize) -> Result<(), Failure> {
    let count = request.inboxes.len();
    let mut violations = Vec::new();
    let mut violate = |field: String, description: String| violations.push(Violation { field, description });
    if !(1..=MAX_INBOXES).contains(&count) {
        violate("inboxes".into(), format!("has {count} entries; 1 to {MAX_INBOXES} are allowed"));
        return Err(Failure::Invalid(violations));
    }
    let mut seen = HashSet::with_capacity(count);
    for (i, inbox) in request.inboxes.iter().enumerate() {
        let field = format!("inboxes[{i}].recv_id");
        if let Some(violation) = check_id(&field, &inbox.recv_id, max_id_bytes) {
            violate(violation.field, violation.description);
        } else if !seen.insert(&inbox.recv_id) {
            violate(field, "occurs twice".into());
        }
        if inbox.after_seq.is_some_and(|seq| seq < 0) {
            violate(format!("inboxes[{i}].after_seq"), "must not be negative".into());
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(Failure::Invalid(violations)) }
}

/// The events of one watch, as its caller reads them.
pub struct WatchStream {
    received: mpsc::Receiver<Arc<BufferedEvent>>,
    /// The permits of the events that the connection has not written yet. It releases them as it writes.
    unwritten: Arc<ResponsePermit>,
    end: Arc<OnceLock<Failure>>,
    _disconnected: DropGuard,
}

impl Stream for WatchStream {
    type Item = Result<WatchMsgsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(buffered) = ready!(self.received.poll_recv(cx)) else {
                let end = std::mem::take(&mut self.end);
                return Poll::Ready(end.get().map(|failure| Err(failure.clone().into())));
            };
            let (event, permit) = buffered.take();
            permit.into_iter().for_each(|permit| self.unwritten.add(permit));
            if let Some(event) = event {
                return Poll::Ready(Some(Ok(event)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
