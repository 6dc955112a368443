//! The replies of one stream on their way to its caller. A caller that does not read them loses its connection: see `unread.rs`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream::Stream;
use msg_common::proto::StreamSendMsgResponse;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::Status;

use crate::response_permit::ResponsePermit;

/// A reply, and the permits of its results among all that are not taken yet.
pub(super) struct Reply {
    pub(super) response: StreamSendMsgResponse,
    pub(super) permits: OwnedSemaphorePermit,
}

/// What the caller reads.
pub(crate) struct ReplyStream {
    replies: mpsc::Receiver<Result<Reply, Status>>,
    /// The permits of replies that are with the connection, which releases them as it writes.
    unwritten: Arc<ResponsePermit>,
    _here: oneshot::Sender<()>,
}

/// Where replies go.
pub(super) struct ReplySender {
    pub(super) replies: mpsc::Sender<Result<Reply, Status>>,
    /// Ends when nobody reads any more, or all was read.
    pub(super) gone: oneshot::Receiver<()>,
}

/// A reply waits in the channel while the next one grows: who reads slowly gets fewer and larger ones.
pub(super) fn channel(unwritten: Arc<ResponsePermit>) -> (ReplySender, ReplyStream) {
    let (replies, receiver) = mpsc::channel(1);
    let (here, gone) = oneshot::channel();
    (ReplySender { replies, gone }, ReplyStream { replies: receiver, unwritten, _here: here })
}

impl Stream for ReplyStream {
    type Item = Result<StreamSendMsgResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(self.replies.poll_recv(cx)) {
            Some(Ok(Reply { response, permits })) => {
                self.unwritten.add(permits);
                Some(Ok(response))
            }
            Some(Err(status)) => Some(Err(status)),
            None => None,
        })
    }
}
