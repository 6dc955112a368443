//! What surrounds every call: when it arrived, that its request arrives in time, and the reason that an error lacks when the
//! transport made it.

use std::convert::Infallible;
use std::future::Ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Either, Map};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use metrics::counter;
use msg_common::proto::ErrorReason;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use crate::arriving::{Arriving, ArrivingBody, Whole};
use crate::metrics::TRANSPORT_ERRORS;
use crate::place::Place;
use crate::send::deadline::Arrival;
use crate::status::{reason_name, with_reason};

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
    max_arrival: Duration,
}

impl<G: NamedService, O> Door<G, O> {
    /// The gateway, and whatever else is served. Requests count in `arriving` until they are there, for which they have so long.
    pub fn new(gateway: G, others: O, arriving: Arc<Arriving>, max_arrival: Duration) -> Self {
        Door { gateway, others, arriving, max_arrival }
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
    type Future = Either<Ready<Answer>, Either<Explained<G::Future>, Explained<O::Future>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.gateway.poll_ready(cx))?;
        self.others.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(status) = no_grpc(&request) {
            return Either::Left(std::future::ready(Ok(refused(status))));
        }
        // All that is served takes one message, but for these.
        let streamed =
            ["/StreamSendMsg", "/ServerReflectionInfo"].iter().any(|name| request.uri().path().ends_with(name));
        let whole = if streamed { Whole::Message } else { Whole::Body };
        let arriving = |body| ArrivingBody::new(body, &self.arriving, whole, self.max_arrival);
        if Self::is_gateways(request.uri().path()) {
            request.extensions_mut().insert(Arrival(Instant::now()));
            let request = request.map(arriving);
            return Either::Right(Either::Left(self.gateway.call(request).map(explain as _)));
        }
        // Health and reflection have contracts of their own, in which errors carry no details.
        let explain: fn(Answer) -> Answer =
            if request.uri().path().starts_with("/grpc.") { std::convert::identity } else { explain };
        let request = request.map(|body| Body::new(arriving(body)));
        Either::Right(Either::Right(self.others.call(request).map(explain)))
    }
}

/// The HTTP status for a request that is not gRPC's. tonic takes it as if it were.
fn no_grpc<B>(request: &Request<B>) -> Option<StatusCode> {
    if request.method() != Method::POST {
        return Some(StatusCode::METHOD_NOT_ALLOWED);
    }
    let content_type = request.headers().get(CONTENT_TYPE).map_or(b"".as_slice(), HeaderValue::as_bytes);
    match content_type.strip_prefix(b"application/grpc") {
        Some([] | [b'+' | b';', ..]) => None,
        _ => Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

fn refused(status: StatusCode) -> Response<Body> {
    counter!(TRANSPORT_ERRORS, "reason" => reason_name(ErrorReason::BadRequest)).increment(1);
    let explained = with_reason(Code::Internal, "this is no gRPC request", ErrorReason::BadRequest);
    let mut response = explained.into_http();
    *response.status_mut() = status;
    response
}

/// Gives an error that has no details the reason that it lacks, and keeps an answer's place until it is sent.
fn explain(answer: Answer) -> Answer {
    answer.map(|mut response| {
        if lacks_reason(response.headers()) {
            return explained(response);
        }
        match response.extensions_mut().remove::<Place>() {
            Some(place) => response.map(|body| Body::new(PlacedBody { body, rest: Bytes::new(), _place: place })),
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
    with_reason_of_transport(&status).into_http()
}

/// The transport's own error, with the reason that it lacks.
pub fn with_reason_of_transport(status: &Status) -> Status {
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
    with_reason(code, message, reason)
}

/// What an answer's body gives out at a time.
const PIECE: usize = 16 << 10;

/// An answer, with its place among the others until it is sent, but for the last pieces. In pieces, because HTTP/2 takes
/// as much as it is given into its own memory as soon as its peer has room for one byte.
struct PlacedBody {
    body: Body,
    rest: Bytes,
    _place: Place,
}

impl http_body::Body for PlacedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;
    use tower::ServiceExt;

    use super::*;
    use crate::status::Failure;

    /// Answers everything with a status.
    #[derive(Clone)]
    struct Always(Status);

    impl NamedService for Always {
        const NAME: &'static str = "msg.v1.MsgGateway";
    }

    impl<B> Service<Request<B>> for Always {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<B>) -> Self::Future {
            std::future::ready(Ok(self.0.clone().into_http()))
        }
    }

    fn answered_through_the_door(status: Status, path: &str) -> Status {
        let door = Door::new(Always(status.clone()), Always(status), Arriving::new(10), Duration::MAX);
        let request =
            Request::post(path).header(CONTENT_TYPE, "application/grpc").body(Body::empty()).expect("it is valid");
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
    fn what_is_no_grpc_is_not_taken_for_it() {
        let request = |method, content_type| {
            Request::builder().method(method).header(CONTENT_TYPE, content_type).body(()).expect("it is valid")
        };
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=1"] {
            assert_eq!(no_grpc(&request("POST", content_type)), None, "{content_type}");
        }
        for content_type in ["", "text/plain", "application/json", "application/grpc-web", "application/grp"] {
            assert_eq!(
                no_grpc(&request("POST", content_type)),
                Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
                "{content_type}"
            );
        }
        assert_eq!(no_grpc(&request("GET", "application/grpc")), Some(StatusCode::METHOD_NOT_ALLOWED));
        assert_eq!(
            no_grpc(&Request::post("/").body(()).expect("it is valid")),
            Some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
        );
    }

    #[test]
    fn an_error_of_ours_and_of_other_services_is_left_as_it_is() {
        let ours = Status::from(Failure::Overloaded("full".into()));
        let seen = answered_through_the_door(ours.clone(), "/msg.v1.MsgGateway/SendMsg");
        assert_eq!((seen.code(), seen.details()), (ours.code(), ours.details()));
        let other = answered_through_the_door(Status::not_found("no such service"), "/grpc.health.v1.Health/Check");
        assert_eq!((other.code(), other.details().len()), (Code::NotFound, 0));
    }
}
