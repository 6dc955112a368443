//! Request bodies: limits the bytes of partially received requests, and the time until a request is received in full.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use msg_common::proto::ErrorReason;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::budget::{Budget, Permit};
use crate::status::{Failure, with_reason};

/// How many messages a request has. The timeout applies to the whole body of one message, or to each of many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// One message: the whole body.
    Unary,
    /// Many messages: each of them, from its first byte on. Between two messages the caller may wait.
    Streaming,
}

/// A request body that counts the bytes of a partially received message, and fails if the rest does not arrive in time.
pub struct BoundedBody {
    body: Body,
    permit: Permit,
    message: Message,
    /// Complete messages of the body so far.
    messages: usize,
    bytes: usize,
    kind: RequestKind,
    timeout: Duration,
    /// The frame that completes a unary message, and then the trailers, if there are any.
    last: Option<Frame<Bytes>>,
    ended: bool,
    /// Created when the body has to be waited for, which is rare: most requests arrive in one chunk.
    timer: Option<Pin<Box<Sleep>>>,
}

impl BoundedBody {
    /// Counts partially received bytes in `budget`, and fails if they are not completed within `timeout`.
    pub fn new(body: Body, budget: &Arc<Budget>, kind: RequestKind, timeout: Duration) -> Self {
        let permit = budget.empty();
        BoundedBody {
            body,
            permit,
            message: Message::default(),
            messages: 0,
            bytes: 0,
            kind,
            timeout,
            last: None,
            ended: false,
            timer: None,
        }
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        if self.kind == RequestKind::Streaming && self.message.received() == 0 {
            return Poll::Pending;
        }
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Failure::NotSent(format!("the request did not arrive in full within {} s", timeout.as_secs_f64())))
    }

    fn receive(&mut self, data: &[u8]) -> Result<(), Status> {
        let complete = self.message.receive(data);
        self.messages += complete;
        self.bytes += data.len();
        let buffered = match self.kind {
            // A unary message counts until the body ends.
            RequestKind::Unary if self.messages > 1 || (self.messages == 1 && self.message.received() > 0) => {
                return Err(with_reason(Code::Internal, "there is more than one message", ErrorReason::BadRequest));
            }
            // The body ends with this frame, so the message is passed on immediately.
            RequestKind::Unary if self.messages == 1 && http_body::Body::is_end_stream(&self.body) => 0,
            RequestKind::Unary => self.bytes,
            RequestKind::Streaming => {
                if complete > 0 {
                    self.timer = None;
                }
                self.message.received()
            }
        };
        Ok(self.permit.try_resize(buffered).map_err(Failure::from)?)
    }
}

impl http_body::Body for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.ended {
                return Poll::Ready(self.last.take().map(Ok));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.wait(cx).map(|failure| Some(Err(failure.into()))),
            };
            let Some(frame) = frame.transpose()? else {
                self.ended = true;
                continue;
            };
            let Some(data) = frame.data_ref() else {
                self.ended = true;
                let before = self.last.replace(frame);
                return Poll::Ready(before.or_else(|| self.last.take()).map(Ok));
            };
            self.receive(data)?;
            let is_last = self.kind == RequestKind::Unary && self.messages == 1 && !self.body.is_end_stream();
            if !is_last {
                return Poll::Ready(Some(Ok(frame)));
            }
            // A decoded message needs many times the memory of its bytes, so wait for the body's end before it is
            // decoded.
            if self.last.is_none() {
                self.last = Some(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How much of the current message was received. In gRPC a message starts with one byte of flags and four bytes of
/// length.
#[derive(Debug, Default)]
struct Message {
    head: [u8; 5],
    head_bytes: usize,
    body_bytes: usize,
    /// Bytes of the message that were not received yet.
    left: usize,
}

impl Message {
    /// Adds received bytes. Returns how many messages are complete with them.
    fn receive(&mut self, mut data: &[u8]) -> usize {
        let mut complete = 0;
        while !data.is_empty() {
            if self.head_bytes < self.head.len() {
                self.head[self.head_bytes] = data[0];
                self.head_bytes += 1;
                data = &data[1..];
                let [_, a, b, c, d] = self.head;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            if self.head_bytes == self.head.len() {
                let here = self.left.min(data.len());
                self.left -= here;
                self.body_bytes += here;
                data = &data[here..];
                if self.left == 0 {
                    *self = Message::default();
                    complete += 1;
                }
            }
        }
        complete
    }

    fn received(&self) -> usize {
        self.head_bytes + self.body_bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;
    use tokio::sync::mpsc;

    use super::*;
    use crate::budget::partial_requests;

    #[test]
    fn only_the_unfinished_message_is_counted_however_it_is_split() {
        // Three messages, of 3, 0 and 2 bytes.
        let bytes = [0, 0, 0, 0, 3, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 9, 9];
        let expected = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0];
        for step in 1..=bytes.len() {
            let mut message = Message::default();
            let mut seen = 0;
            for chunk in bytes.chunks(step) {
                message.receive(chunk);
                seen += chunk.len();
                assert_eq!(message.received(), expected[seen - 1], "after {seen} in steps of {step}");
            }
        }
    }

    #[tokio::test]
    async fn unary_body_has_one_message_and_counts_until_its_end() {
        let whole = Bytes::from_static(&[0, 0, 0, 0, 1, 7]);
        for (second, accepted) in [(Bytes::new(), true), (whole.clone(), false), (Bytes::from_static(&[0]), false)] {
            for together in [true, false] {
                let budget = partial_requests(100);
                let (send, chunks) = mpsc::unbounded_channel();
                let mut body = BoundedBody::new(Body::new(Chunks(chunks)), &budget, RequestKind::Unary, Duration::MAX);
                if together {
                    send.send([&whole[..], &second[..]].concat().into()).expect("it listens");
                } else {
                    send.send(whole.clone()).expect("it listens");
                    assert_eq!(next(&mut body).now_or_never(), None, "its end is waited for");
                    assert_eq!(budget.used().items, whole.len());
                    send.send(second.clone()).expect("it listens");
                }
                drop(send);
                let expected = if accepted { Ok(()) } else { Err(Code::Internal) };
                assert_eq!(next(&mut body).await, Some(expected), "{second:?} {together}");
                if accepted {
                    assert_eq!(next(&mut body).await, None);
                }
                drop(body);
                assert_eq!(budget.used().items, 0);
            }
        }
    }

    /// A body whose chunks arrive when the test sends them.
    struct Chunks(mpsc::UnboundedReceiver<Bytes>);

    impl http_body::Body for Chunks {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    async fn next(body: &mut BoundedBody) -> Option<Result<(), Code>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.map(|frame| frame.map(|_| ()).map_err(|status| status.code()))
    }

    #[tokio::test]
    async fn started_message_must_be_complete_within_the_timeout() {
        const WITHIN: Duration = Duration::from_millis(200);
        for kind in [RequestKind::Unary, RequestKind::Streaming] {
            let (send, chunks) = mpsc::unbounded_channel();
            let budget = partial_requests(100);
            let mut body = BoundedBody::new(Body::new(Chunks(chunks)), &budget, kind, WITHIN);
            let long = 2 * WITHIN;
            // Before the first byte a stream may wait; a unary request may not.
            let before = tokio::time::timeout(long, next(&mut body)).await;
            if kind == RequestKind::Unary {
                assert_eq!(before, Ok(Some(Err(Code::Unavailable))));
                continue;
            }
            assert!(before.is_err());
            for round in 0..3 {
                send.send(Bytes::from_static(&[0, 0, 0, 0, 2, 7])).expect("it listens");
                assert_eq!(next(&mut body).await, Some(Ok(())));
                assert_eq!(budget.used().items, 6);
                if round == 2 {
                    break;
                }
                assert!(tokio::time::timeout(WITHIN / 2, next(&mut body)).await.is_err());
                send.send(Bytes::from_static(&[7])).expect("it listens");
                assert_eq!(next(&mut body).await, Some(Ok(())));
                assert_eq!(budget.used().items, 0);
                assert!(tokio::time::timeout(long, next(&mut body)).await.is_err());
            }
            assert_eq!(next(&mut body).now_or_never(), None);
            assert_eq!(next(&mut body).await, Some(Err(Code::Unavailable)));
            drop(body);
            assert_eq!(budget.used().items, 0);
        }
    }
}
