//! Request bodies, cut into chunks anywhere, as HTTP/2 delivers them. The output is the input, partially received messages
//! hold a permit that is released, and a unary call has no second message.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use msg_gateway::budget::partial_requests;
use msg_gateway::request_body::{BoundedBody, RequestKind};
use tonic::Status;
use tonic::body::Body;

/// Small, so that the fuzzer reaches both sides of it.
const MAX_BYTES: usize = 64;

/// One body: a byte for the kind of call and the length of the chunks, and its bytes.
pub fn run(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let kind = if first & 1 == 0 { RequestKind::Unary } else { RequestKind::Streaming };
    let chunk = usize::from(first >> 1).max(1);
    let chunks = Chunks(data.chunks(chunk).map(Bytes::copy_from_slice).rev().collect());
    let budget = partial_requests(MAX_BYTES);
    let mut body = BoundedBody::new(Body::new(chunks), &budget, kind, Duration::MAX);
    let mut out = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    let end = loop {
        match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => out.extend(frame.into_data().expect("there are no trailers")),
            Poll::Ready(Some(Err(status))) => break Err(status),
            Poll::Ready(None) => break Ok(()),
            Poll::Pending => unreachable!("it has all its chunks"),
        }
        assert!(budget.used().items <= MAX_BYTES);
    };
    let (messages, rest) = messages(data);
    match (kind, end) {
        (RequestKind::Unary, Ok(())) => {
            assert!(messages == 0 || (messages == 1 && rest == 0), "{messages} messages and {rest} bytes");
            assert_eq!(out, data);
        }
        (RequestKind::Streaming, Ok(())) => {
            assert_eq!(budget.used().items, rest);
            assert_eq!(out, data);
        }
        (_, Err(status)) => {
            let more = kind == RequestKind::Unary && (messages > 1 || (messages == 1 && rest > 0));
            assert!(more || data.len() > MAX_BYTES, "{status:?}");
            assert!(data.starts_with(&out));
        }
    }
    drop(body);
    assert_eq!(budget.used().items, 0);
}

/// Returns the number of complete messages, and the bytes that are left.
fn messages(mut data: &[u8]) -> (usize, usize) {
    let mut count = 0;
    while let Some((head, rest)) = data.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some((_, rest)) = rest.split_at_checked(length) else { break };
        data = rest;
        count += 1;
    }
    (count, data.len())
}

/// The chunks of a body, in reverse order.
struct Chunks(Vec<Bytes>);

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}
