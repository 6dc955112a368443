//! The replies of one stream on their way to its caller, and whether the caller takes them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::stream::Stream;
use msg_common::proto::StreamSendMsgResponse;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::Status;

/// A reply, and the places of its results among all that are not taken yet.
pub(super) struct Reply {
    pub(super) response: StreamSendMsgResponse,
    pub(super) places: OwnedSemaphorePermit,
}

/// What the caller reads.
pub struct Replies {
    replies: mpsc::Receiver<Result<Reply, Status>>,
    /// Of the reply that went last: it is taken when the next one is asked for.
    places: Option<OwnedSemaphorePermit>,
    taken: Arc<AtomicU64>,
    _here: oneshot::Sender<()>,
}

/// Where replies go.
pub(super) struct Outlet {
    pub(super) replies: mpsc::Sender<Result<Reply, Status>>,
    /// Ends when nobody reads any more, or all was read.
    pub(super) gone: oneshot::Receiver<()>,
    pub(super) patience: Patience,
}

/// A reply waits in the channel while the next one grows: who reads slowly gets fewer and larger ones.
pub(super) fn channel(patience: Duration) -> (Outlet, Replies) {
    let (replies, receiver) = mpsc::channel(1);
    let (here, gone) = oneshot::channel();
    let taken = Arc::new(AtomicU64::new(0));
    let patience = Patience::new(patience, taken.clone());
    (Outlet { replies, gone, patience }, Replies { replies: receiver, places: None, taken, _here: here })
}

impl Stream for Replies {
    type Item = Result<StreamSendMsgResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.places.take().is_some() {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(match ready!(self.replies.poll_recv(cx)) {
            Some(Ok(Reply { response, places })) => {
                self.places = Some(places);
                Some(Ok(response))
            }
            Some(Err(status)) => Some(Err(status)),
            None => None,
        })
    }
}

/// For how long a caller may take nothing while there is a reply for it. A stall is seen after once to twice that time.
pub(super) struct Patience {
    pub(super) time: Duration,
    taken: Arc<AtomicU64>,
    sent: u64,
    seen: u64,
    until: Instant,
}

impl Patience {
    fn new(time: Duration, taken: Arc<AtomicU64>) -> Self {
        Patience { time, taken, sent: 0, seen: 0, until: Instant::now() }
    }

    /// A reply went.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.waits_since_none() {
            self.until = now + self.time;
        }
        self.sent += 1;
    }

    /// When to look, if there is something that is not taken.
    pub(super) fn look_at(&self) -> Option<Instant> {
        (!self.waits_since_none()).then_some(self.until)
    }

    /// Whether nothing was taken for too long.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        if taken == self.sent || now < self.until {
            return false;
        }
        if taken == self.seen {
            return true;
        }
        self.seen = taken;
        self.until = now + self.time;
        false
    }

    fn waits_since_none(&self) -> bool {
        self.taken.load(Ordering::Relaxed) == self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_where_nothing_is_taken() {
        let (time, begin) = (Duration::from_secs(10), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let taken = Arc::new(AtomicU64::new(0));
        let mut patience = Patience::new(time, taken.clone());
        assert!(patience.look_at().is_none() && !patience.is_over(at(100)), "there is nothing to take");
        patience.sent(at(100));
        assert_eq!(patience.look_at(), Some(at(110)));
        assert!(!patience.is_over(at(109)));
        // One is taken and the next is not: its time begins where that is seen.
        taken.store(1, Ordering::Relaxed);
        patience.sent(at(105));
        patience.sent(at(106));
        taken.store(2, Ordering::Relaxed);
        assert!(!patience.is_over(at(115)));
        assert_eq!(patience.look_at(), Some(at(125)));
        assert!(patience.is_over(at(125)));
        taken.store(3, Ordering::Relaxed);
        assert!(patience.look_at().is_none() && !patience.is_over(at(200)));
    }
}
