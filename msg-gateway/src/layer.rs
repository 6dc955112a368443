//! What surrounds every call: when it arrived, how many bytes of unfinished requests there may be, and the reason
//! that an error lacks when the transport made it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Either, Map};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use metrics::counter;
use msg_common::proto::ErrorReason;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use crate::metrics::TRANSPORT_ERRORS;
use crate::read::Place;
use crate::send::deadline::Arrival;
use crate::status::{Failure, reason_name, with_reason};

/// How many bytes of requests that have not arrived in full there may be, over all connections, and how many there are.
#[derive(Debug)]
pub struct Arriving {
    max: usize,
    bytes: AtomicUsize,
}

impl Arriving {
    /// Room for `max` bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Arriving { max, bytes: AtomicUsize::new(0) })
    }

    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.max {
            return true;
        }
        self.give_back(bytes);
        false
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// All services behind one door.
///
/// Calls of the gateway's own go straight to it and not through axum's router, which finds the others: it allocates for
/// every call. tonic's own time-out is further out, so its answer gets no reason from here; and it must not: it means
/// unknown.
#[derive(Clone)]
pub struct Door<G, O> {
    gateway: G,
    others: O,
    arriving: Arc<Arriving>,
}

impl<G: NamedService, O> Door<G, O> {
    /// The gateway, and whatever else is served.
    pub fn new(gateway: G, others: O, arriving: Arc<Arriving>) -> Self {
        Door { gateway, others, arriving }
    }

    fn is_gateways(path: &str) -> bool {
        path.strip_prefix('/').and_then(|path| path.strip_prefix(G::NAME)).is_some_and(|rest| rest.starts_with('/'))
    }
}

type Answer = Result<Response<Body>, Infallible>;
type Explained<F> = Map<F, fn(Answer) -> Answer>;

impl<G, O> Service<Request<Body>> for Door<G, O>
where
    G: Service<Request<ArrivingBody>, Response = Response<Body>, Error = Infallible> + NamedService,
    O: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Explained<G::Future>, Explained<O::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.gateway.poll_ready(cx))?;
        self.others.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let arriving = self.arriving.clone();
        if Self::is_gateways(request.uri().path()) {
            request.extensions_mut().insert(Arrival(Instant::now()));
            let request = request.map(|body| ArrivingBody { body, arriving, held: 0 });
            return Either::Left(self.gateway.call(request).map(explain as _));
        }
        // Health and reflection have contracts of their own, in which errors carry no details.
        let explain: fn(Answer) -> Answer =
            if request.uri().path().starts_with("/grpc.") { std::convert::identity } else { explain };
        let request = request.map(|body| Body::new(ArrivingBody { body, arriving, held: 0 }));
        Either::Right(self.others.call(request).map(explain))
    }
}

/// Gives an error that has no details the reason that it lacks, and keeps a read's place until its answer is sent.
fn explain(answer: Answer) -> Answer {
    answer.map(|mut response| {
        if lacks_reason(response.headers()) {
            return explained(response);
        }
        match response.extensions_mut().remove::<Place>() {
            Some(place) => response.map(|body| Body::new(PlacedBody { body, _place: place })),
            None => response,
        }
    })
}

fn lacks_reason(headers: &HeaderMap) -> bool {
    // A call that succeeds, or fails after its first message, has its status in the trailers.
    headers.get(Status::GRPC_STATUS).is_some_and(|code| code != "0")
        && !headers.contains_key(Status::GRPC_STATUS_DETAILS)
}

fn explained(response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    let (code, reason) = match status.code() {
        // Every other gRPC implementation says RESOURCE_EXHAUSTED when a message is longer than it takes.
        Code::OutOfRange | Code::ResourceExhausted => (Code::ResourceExhausted, ErrorReason::TooLarge),
        code => (code, ErrorReason::BadRequest),
    };
    counter!(TRANSPORT_ERRORS, "reason" => reason_name(reason)).increment(1);
    let message = match status.message() {
        "" if code == Code::Unimplemented => "there is no such method",
        message => message,
    };
    with_reason(code, message, reason).into_http()
}

/// A request's body that counts what has arrived of it, until it is there in full or given up.
pub struct ArrivingBody {
    body: Body,
    arriving: Arc<Arriving>,
    held: usize,
}

impl http_body::Body for ArrivingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            if !self.arriving.take(data.len()) {
                let failure = Failure::Overloaded("too many bytes of requests are arriving".into());
                return Poll::Ready(Some(Err(failure.into())));
            }
            self.held += data.len();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ArrivingBody {
    fn drop(&mut self) {
        self.arriving.give_back(self.held);
    }
}

/// A read's answer, with its place among the reads until it is sent.
struct PlacedBody {
    body: Body,
    _place: Place,
}

impl http_body::Body for PlacedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;
    use tower::ServiceExt;

    use super::*;

    /// Answers everything with a status.
    #[derive(Clone)]
    struct Always(Status);

    impl NamedService for Always {
        const NAME: &'static str = "msg.v1.MsgGateway";
    }

    impl<B> Service<Request<B>> for Always {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<B>) -> Self::Future {
            std::future::ready(Ok(self.0.clone().into_http()))
        }
    }

    fn answered_through_the_door(status: Status, path: &str) -> Status {
        let door = Door::new(Always(status.clone()), Always(status), Arriving::new(10));
        let request = Request::builder().uri(path).body(Body::empty()).expect("it is valid");
        let response = door.oneshot(request).now_or_never().expect("it does not wait").expect("it cannot fail");
        Status::from_header_map(response.headers()).expect("it has a status")
    }

    #[test]
    fn an_error_of_the_transport_gets_a_reason() {
        for (code, then, reason) in [
            (Code::OutOfRange, Code::ResourceExhausted, "TOO_LARGE"),
            (Code::ResourceExhausted, Code::ResourceExhausted, "TOO_LARGE"),
            (Code::Unimplemented, Code::Unimplemented, "BAD_REQUEST"),
            (Code::Internal, Code::Internal, "BAD_REQUEST"),
        ] {
            for path in ["/msg.v1.MsgGateway/SendMsg", "/msg.v1.MsgGatewayX/SendMsg", "/"] {
                let status = answered_through_the_door(Status::new(code, "why"), path);
                assert_eq!((status.code(), status.message()), (then, "why"));
                let details = status.get_error_details();
                let info = details.error_info().expect("it was added");
                assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "msg.v1"));
            }
        }
    }

    #[test]
    fn an_error_of_ours_and_of_other_services_is_left_as_it_is() {
        let ours = Status::from(Failure::Overloaded("full".into()));
        let seen = answered_through_the_door(ours.clone(), "/msg.v1.MsgGateway/SendMsg");
        assert_eq!((seen.code(), seen.details()), (ours.code(), ours.details()));
        let other = answered_through_the_door(Status::not_found("no such service"), "/grpc.health.v1.Health/Check");
        assert_eq!((other.code(), other.details().len()), (Code::NotFound, 0));
    }

    #[test]
    fn unfinished_requests_have_a_limit() {
        let arriving = Arriving::new(10);
        assert!(arriving.take(6));
        assert!(!arriving.take(5));
        assert!(arriving.take(4));
        arriving.give_back(10);
        assert_eq!(arriving.bytes(), 0);
    }
}
