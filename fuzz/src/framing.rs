//! The bodies of requests, as HTTP/2 hands them over: cut anywhere. What comes out is what came in, what is unfinished is counted
//! and given back, and a call of one message has no second.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use msg_gateway::arriving::{Arriving, ArrivingBody, Whole};
use tonic::Status;
use tonic::body::Body;

/// Small, so that the fuzzer comes to both sides of it.
const MAX_BYTES: usize = 64;

/// One body: a byte that says of which kind of call and how long its pieces are, and its bytes.
pub fn run(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let whole = if kind & 1 == 0 { Whole::Body } else { Whole::Message };
    let piece = usize::from(kind >> 1).max(1);
    let pieces = Pieces(data.chunks(piece).map(Bytes::copy_from_slice).rev().collect());
    let arriving = Arriving::new(MAX_BYTES);
    let mut body = ArrivingBody::new(Body::new(pieces), &arriving, whole, Duration::MAX);
    let mut out = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    let end = loop {
        match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => out.extend(frame.into_data().expect("there are no trailers")),
            Poll::Ready(Some(Err(status))) => break Err(status),
            Poll::Ready(None) => break Ok(()),
            Poll::Pending => unreachable!("it has all its pieces"),
        }
        assert!(arriving.bytes() <= MAX_BYTES);
    };
    let (messages, rest) = messages(data);
    match (whole, end) {
        (Whole::Body, Ok(())) => {
            assert!(messages == 0 || (messages == 1 && rest == 0), "{messages} messages and {rest} bytes");
            assert_eq!(out, data);
        }
        (Whole::Message, Ok(())) => {
            assert_eq!(arriving.bytes(), rest);
            assert_eq!(out, data);
        }
        (_, Err(status)) => {
            let more = whole == Whole::Body && (messages > 1 || (messages == 1 && rest > 0));
            assert!(more || data.len() > MAX_BYTES, "{status:?}");
            assert!(data.starts_with(&out));
        }
    }
    drop(body);
    assert_eq!(arriving.bytes(), 0);
}

/// How many whole messages these are, and how many bytes are left.
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

/// The last one first.
struct Pieces(Vec<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}
