//! The replies of one stream, until its caller reads them. A caller that does not read them is disconnected: see
//! `unread.rs`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream::Stream;
use msg_common::proto::StreamSendMsgResponse;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::budget::Permit;
use crate::response_permit::ResponsePermit;

/// A reply, and the permits of its results.
pub(super) struct Reply {
    pub(super) response: StreamSendMsgResponse,
    pub(super) permits: Permit,
}

/// The replies of one stream, as its caller reads them.
pub(crate) struct ReplyStream {
    replies: mpsc::Receiver<Result<Reply, Status>>,
    /// The permits of the replies that the connection has not written yet. It releases them as it writes.
    unwritten: Arc<ResponsePermit>,
    _reading: oneshot::Sender<()>,
}

pub(super) struct ReplySender {
    pub(super) replies: mpsc::Sender<Result<Reply, Status>>,
    /// Completes when the caller has disconnected, or has read every reply.
    pub(super) done: oneshot::Receiver<()>,
}

/// Creates the channel of one reply. While a reply waits in it, the next one grows: a slow reader gets fewer and
/// larger replies.
pub(super) fn channel(unwritten: Arc<ResponsePermit>) -> (ReplySender, ReplyStream) {
    let (replies, receiver) = mpsc::channel(1);
    let (reading, done) = oneshot::channel();
    (ReplySender { replies, done }, ReplyStream { replies: receiver, unwritten, _reading: reading })
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
