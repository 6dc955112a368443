//! Owns the bodies of all responses: splits them into chunks, with the permits that they hold until HTTP/2 has written them.
//!
//! hyper gives a whole chunk to h2 as soon as the peer's window has one byte, and polls for the next one before there is any window.
//! So a body's end says nothing about what was written. The permits are therefore owned by the bytes themselves, and by the
//! value of a header: they are released when h2 drops these, which is after it has written them or reset the stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

use crate::budget::Permit;
use crate::response_permit::ResponsePermit;
use crate::unread::{Unread, UnreadGuard};

/// Bytes of a chunk. For each stream that is not read, h2 holds one chunk, hyper another, and the body the rest.
const CHUNK: usize = 16 << 10;
/// Messages up to this size are copied: tonic encodes them into a buffer of 8 KiB, all of which they would keep.
const COPIED: usize = 2 << 10;

/// A call, from the arrival of its head until the last of its response is written.
#[derive(Debug)]
pub(crate) struct OpenCall {
    _permits: Vec<Permit>,
    unread: Option<Arc<Unread>>,
    is_watch: bool,
}

impl OpenCall {
    /// Creates a call that holds these permits. Its connection is closed if its caller does not read the response.
    pub(crate) fn new(permits: Vec<Permit>, unread: Option<Arc<Unread>>, is_watch: bool) -> Arc<Self> {
        Arc::new(OpenCall { _permits: permits, unread, is_watch })
    }

    fn hold(self: &Arc<Self>, data: Bytes, permit: Option<Arc<ResponsePermit>>, permits: Vec<Permit>) -> Bytes {
        let unread = self.unread.as_ref().map(|unread| unread.enter(self.is_watch));
        Bytes::from_owner(Unwritten { data, _permits: permits, _permit: permit, _call: self.clone(), _unread: unread })
    }
}

/// Bytes that h2 has not written yet.
struct Unwritten {
    data: Bytes,
    _permits: Vec<Permit>,
    _permit: Option<Arc<ResponsePermit>>,
    _call: Arc<OpenCall>,
    _unread: Option<UnreadGuard>,
}

impl AsRef<[u8]> for Unwritten {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// A response that holds the permits of its call, and those among its extensions.
pub(crate) fn hold_permits(mut response: Response<Body>, call: Arc<OpenCall>) -> Response<Body> {
    let permit = response.extensions_mut().remove::<Arc<ResponsePermit>>();
    hold_details(response.headers_mut(), &call);
    if http_body::Body::is_end_stream(response.body()) {
        return response;
    }
    response.map(|body| Body::new(ResponseBody { body, rest: Bytes::new(), permit, call }))
}

/// An error has no body, or follows the body: its details are the largest header.
fn hold_details(headers: &mut HeaderMap, call: &Arc<OpenCall>) {
    let Some(details) = headers.get_mut(Status::GRPC_STATUS_DETAILS) else { return };
    let data = Bytes::copy_from_slice(details.as_bytes());
    if let Ok(mut value) = HeaderValue::from_maybe_shared(call.hold(data, None, Vec::new())) {
        // Or HPACK's table would keep it for as long as the connection lives.
        value.set_sensitive(true);
        *details = value;
    }
}

struct ResponseBody {
    body: Body,
    rest: Bytes,
    permit: Option<Arc<ResponsePermit>>,
    call: Arc<OpenCall>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    let data = if data.len() <= COPIED { Bytes::copy_from_slice(&data) } else { data };
                    let permits = self.permit.as_deref().map(ResponsePermit::take).unwrap_or_default();
                    self.rest = self.call.hold(data, self.permit.clone(), permits);
                }
                Some(Ok(Err(mut other))) => {
                    if let Some(trailers) = other.trailers_mut() {
                        hold_details(trailers, &self.call);
                    }
                    return Poll::Ready(Some(Ok(other)));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let chunk = self.rest.len().min(CHUNK);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(chunk)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt;
    use http_body::Body as _;

    use super::*;
    use crate::budget::Budget;

    struct One(Option<Frame<Bytes>>);

    impl http_body::Body for One {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(Ok))
        }
    }

    fn permit(budget: &Arc<Budget>, count: usize) -> Permit {
        budget.try_acquire(count).expect("there is capacity")
    }

    fn next(body: &mut Body) -> Option<Frame<Bytes>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).now_or_never();
        frame.expect("it does not wait").map(|frame| frame.expect("it does not fail"))
    }

    #[test]
    fn permits_are_released_when_the_last_chunk_is_dropped() {
        let (calls, bytes) = (Budget::of_items(1), Budget::of_items(100));
        let call = OpenCall::new(vec![permit(&calls, 1)], None, false);
        let permit = ResponsePermit::new([permit(&bytes, 100)]);
        let mut response = Response::new(Body::new(One(Some(Frame::data(vec![7; 2 * CHUNK + 1].into())))));
        response.extensions_mut().insert(permit);
        let mut body = hold_permits(response, call).into_body();
        let chunks: Vec<Bytes> =
            std::iter::from_fn(|| next(&mut body)).map(|frame| frame.into_data().expect("it is data")).collect();
        assert_eq!(chunks.iter().map(Bytes::len).collect::<Vec<_>>(), [CHUNK, CHUNK, 1]);
        drop(body);
        for chunk in chunks {
            assert_eq!((calls.used().items, bytes.used().items), (1, 100), "a chunk is not written");
            drop(chunk);
        }
        assert_eq!((calls.used().items, bytes.used().items), (0, 0));
    }

    #[test]
    fn error_details_hold_their_call_until_they_are_written() {
        let calls = Budget::of_items(1);
        let details = || {
            HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status-details-bin"),
                HeaderValue::from_static("x"),
            )])
        };
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = details();
        let response = hold_permits(response, OpenCall::new(vec![permit(&calls, 1)], None, false));
        let headers = response.into_parts().0.headers;
        assert_eq!(headers["grpc-status-details-bin"], "x");
        assert_eq!(calls.used().items, 1);
        drop(headers);
        assert_eq!(calls.used().items, 0);

        let response = Response::new(Body::new(One(Some(Frame::trailers(details())))));
        let mut body = hold_permits(response, OpenCall::new(vec![permit(&calls, 1)], None, false)).into_body();
        let trailers = next(&mut body);
        drop(body);
        assert_eq!(calls.used().items, 1);
        drop(trailers);
        assert_eq!(calls.used().items, 0);
    }
}
