//! Surrounds every call: limits the open calls, authenticates the caller, notes when a call arrived, bounds its request
//! body, and adds the reason to an error of the transport.

use std::convert::Infallible;
use std::future::Ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, Either};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use metrics::counter;
use msg_common::proto::ErrorReason;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use crate::auth::rules::Caller;
use crate::auth::{Authentication, Authenticator};
use crate::budget::{Budgets, LimitReached};
use crate::incoming::Lifetime;
use crate::metrics::TRANSPORT_ERRORS;
use crate::request_body::{BoundedBody, RequestKind};
use crate::response::{OpenCall, hold_permits};
use crate::send::deadline::Arrival;
use crate::status::{Failure, reason_name, with_reason};

/// Opens a call, which is open until the last byte of its response is written. At a limit it returns the limit, and an open
/// call for the response that rejects the request. If there is no permit for that either, the connection is closed.
fn admit<B>(budgets: &Budgets, request: &Request<B>) -> Result<Arc<OpenCall>, (Option<Arc<OpenCall>>, LimitReached)> {
    let path = request.uri().path();
    let lifetime = request.extensions().get::<Lifetime>();
    let open = |permits| OpenCall::new(permits, lifetime.and_then(Lifetime::unread), path.ends_with("/WatchMsgs"));
    let call = budgets.calls.try_acquire(1).map_err(|reached| {
        let rejection = budgets.rejections.try_acquire(1).ok();
        if let (None, Some(lifetime)) = (&rejection, lifetime) {
            lifetime.disconnect_slow_reader();
        }
        (rejection.map(|rejection| open(vec![rejection])), reached)
    })?;
    if !path.starts_with("/grpc.reflection.") {
        return Ok(open(vec![call]));
    }
    match budgets.reflections.try_acquire(1) {
        Ok(reflection) => Ok(open(vec![call, reflection])),
        Err(reached) => Err((Some(open(vec![call])), reached)),
    }
}

/// Routes calls to the gateway's service, and all others to axum's router.
///
/// Calls of the gateway do not go through axum's router, because it allocates for every call. tonic's own timeout is
/// outside of this, so its error gets no reason here, and must not: the outcome of that call is unknown.
#[derive(Clone)]
pub(crate) struct RpcRouter<G, O> {
    gateway: G,
    others: O,
    authenticator: Authenticator,
    budgets: Arc<Budgets>,
    receive_timeout: Duration,
}

impl<G: NamedService, O> RpcRouter<G, O> {
    /// Routes to the gateway and to the other services. Request bodies have `receive_timeout`.
    pub(crate) fn new(
        gateway: G,
        others: O,
        authenticator: Authenticator,
        budgets: Arc<Budgets>,
        receive_timeout: Duration,
    ) -> Self {
        RpcRouter { gateway, others, authenticator, budgets, receive_timeout }
    }

    fn is_gateways(path: &str) -> bool {
        path.strip_prefix('/').and_then(|path| path.strip_prefix(G::NAME)).is_some_and(|rest| rest.starts_with('/'))
    }
}

type RpcResult = Result<Response<Body>, Infallible>;

/// A response that is ready, one of the gateway, or one of another service. A call that waits for the keys of the
/// token issuer, which is rare, is as large as those.
type RouterFuture<G> = Either<Ready<RpcResult>, Either<ResponseFuture<G>, BoxFuture<'static, RpcResult>>>;

fn ready_response<G>(response: Response<Body>, call: Option<Arc<OpenCall>>) -> RouterFuture<G> {
    let response = call.map_or_else(Response::default, |call| hold_permits(response, call));
    Either::Left(std::future::ready(Ok(response)))
}

/// The response of a call. It adds the reason that a transport error lacks, and makes the response hold the call's
/// permits.
pub(crate) struct ResponseFuture<F> {
    future: F,
    adds_reason: bool,
    call: Arc<OpenCall>,
}

impl<F: Future<Output = RpcResult> + Unpin> Future for ResponseFuture<F> {
    type Output = RpcResult;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RpcResult> {
        let response = ready!(Pin::new(&mut self.future).poll(cx))?;
        let response =
            if self.adds_reason && lacks_reason(response.headers()) { with_added_reason(response) } else { response };
        Poll::Ready(Ok(hold_permits(response, self.call.clone())))
    }
}

impl<G, O> RpcRouter<G, O>
where
    G: Service<Request<BoundedBody>, Response = Response<Body>, Error = Infallible> + NamedService,
    G::Future: Unpin,
    O: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    O::Future: Send + 'static,
{
    /// Serves a call whose caller is authenticated.
    fn serve(&mut self, mut request: Request<Body>, call: Arc<OpenCall>, caller: Caller) -> RouterFuture<G::Future> {
        // The requests of all other methods have one message.
        let streamed =
            ["/StreamSendMsg", "/ServerReflectionInfo"].iter().any(|name| request.uri().path().ends_with(name));
        let kind = if streamed { RequestKind::Streaming } else { RequestKind::Unary };
        let bounded = |body| BoundedBody::new(body, &self.budgets.partial_requests, kind, self.receive_timeout);
        if Self::is_gateways(request.uri().path()) {
            request.extensions_mut().insert(caller);
            let request = request.map(bounded);
            let future = self.gateway.call(request);
            return Either::Right(Either::Left(ResponseFuture { future, adds_reason: true, call }));
        }
        // Health and reflection have contracts of their own, in which errors carry no details.
        let adds_reason = !request.uri().path().starts_with("/grpc.");
        let request = request.map(|body| Body::new(bounded(body)));
        let future = Box::pin(self.others.call(request));
        Either::Right(Either::Right(Box::pin(ResponseFuture { future, adds_reason, call })))
    }
}

impl<G, O> Service<Request<Body>> for RpcRouter<G, O>
where
    G: Service<Request<BoundedBody>, Response = Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + 'static,
    G::Future: Unpin + Send,
    O: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    O::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RouterFuture<G::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.gateway.poll_ready(cx))?;
        self.others.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let call = match admit(&self.budgets, &request) {
            Ok(call) => call,
            Err((call, reached)) => return ready_response(Status::from(Failure::from(reached)).into_http(), call),
        };
        if let Some(status) = not_grpc_status(&request) {
            return ready_response(rejected(status), Some(call));
        }
        request.extensions_mut().insert(Arrival(Instant::now()));
        match self.authenticator.authenticate(&request) {
            Authentication::Done(Ok(caller)) => self.serve(request, call, caller),
            Authentication::Done(Err(failure)) => ready_response(Status::from(failure).into_http(), Some(call)),
            Authentication::Waiting(authenticated) => {
                let mut router = self.clone();
                Either::Right(Either::Right(Box::pin(async move {
                    match authenticated.await {
                        Ok(caller) => router.serve(request, call, caller).await,
                        Err(failure) => Ok(hold_permits(Status::from(failure).into_http(), call)),
                    }
                })))
            }
        }
    }
}

/// Returns the HTTP status for a request that is not gRPC. tonic would accept it.
fn not_grpc_status<B>(request: &Request<B>) -> Option<StatusCode> {
    if request.method() != Method::POST {
        return Some(StatusCode::METHOD_NOT_ALLOWED);
    }
    let content_type = request.headers().get(CONTENT_TYPE).map_or(b"".as_slice(), HeaderValue::as_bytes);
    match content_type.strip_prefix(b"application/grpc") {
        Some([] | [b'+' | b';', ..]) => None,
        _ => Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

fn rejected(status: StatusCode) -> Response<Body> {
    counter!(TRANSPORT_ERRORS, "reason" => reason_name(ErrorReason::BadRequest)).increment(1);
    let with_added_reason = with_reason(Code::Internal, "this is no gRPC request", ErrorReason::BadRequest);
    let mut response = with_added_reason.into_http();
    *response.status_mut() = status;
    response
}

fn lacks_reason(headers: &HeaderMap) -> bool {
    // A call that succeeds, or that fails after its first message, has its status in the trailers.
    headers.get(Status::GRPC_STATUS).is_some_and(|code| code != "0")
        && !headers.contains_key(Status::GRPC_STATUS_DETAILS)
}

fn with_added_reason(response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    with_reason_of_transport(&status).into_http()
}

/// Adds the reason to an error of the transport.
pub(crate) fn with_reason_of_transport(status: &Status) -> Status {
    let (code, reason) = match status.code() {
        // Every other gRPC implementation responds RESOURCE_EXHAUSTED to a message above its limit.
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tonic_types::StatusExt;
    use tower::ServiceExt;

    use super::*;

    /// A service that always responds with this status.
    #[derive(Clone)]
    struct Always(Status);

    impl NamedService for Always {
        const NAME: &'static str = "msg.v1.MsgGateway";
    }

    impl<B> Service<Request<B>> for Always {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<RpcResult>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<B>) -> Self::Future {
            std::future::ready(Ok(self.0.clone().into_http()))
        }
    }

    fn router_to(service: Always, budgets: Arc<Budgets>) -> RpcRouter<Always, Always> {
        RpcRouter::new(service.clone(), service, Authenticator::open(), budgets, Duration::MAX)
    }

    fn status_through_router(status: Status, path: &str) -> Status {
        let router = router_to(Always(status), Budgets::of(&[]));
        let request =
            Request::post(path).header(CONTENT_TYPE, "application/grpc").body(Body::empty()).expect("it is valid");
        let response = router.oneshot(request).now_or_never().expect("it does not wait").expect("it cannot fail");
        Status::from_header_map(response.headers()).expect("it has a status")
    }

    #[test]
    fn transport_error_gets_a_reason() {
        for (code, then, reason) in [
            (Code::OutOfRange, Code::ResourceExhausted, "TOO_LARGE"),
            (Code::ResourceExhausted, Code::ResourceExhausted, "TOO_LARGE"),
            (Code::Unimplemented, Code::Unimplemented, "BAD_REQUEST"),
            (Code::Internal, Code::Internal, "BAD_REQUEST"),
        ] {
            for path in ["/msg.v1.MsgGateway/SendMsg", "/msg.v1.MsgGatewayX/SendMsg", "/"] {
                let status = status_through_router(Status::new(code, "why"), path);
                assert_eq!((status.code(), status.message()), (then, "why"));
                let details = status.get_error_details();
                let info = details.error_info().expect("it was added");
                assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "msg.v1"));
            }
        }
    }

    #[test]
    fn other_protocols_are_rejected_as_not_grpc() {
        let request = |method, content_type| {
            Request::builder().method(method).header(CONTENT_TYPE, content_type).body(()).expect("it is valid")
        };
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=1"] {
            assert_eq!(not_grpc_status(&request("POST", content_type)), None, "{content_type}");
        }
        for content_type in ["", "text/plain", "application/json", "application/grpc-web", "application/grp"] {
            assert_eq!(
                not_grpc_status(&request("POST", content_type)),
                Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
                "{content_type}"
            );
        }
        assert_eq!(not_grpc_status(&request("GET", "application/grpc")), Some(StatusCode::METHOD_NOT_ALLOWED));
        assert_eq!(
            not_grpc_status(&Request::post("/").body(()).expect("it is valid")),
            Some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
        );
    }

    #[test]
    fn own_errors_and_those_of_other_services_are_not_changed() {
        let ours = Status::from(Failure::Overloaded("full".into()));
        let seen = status_through_router(ours.clone(), "/msg.v1.MsgGateway/SendMsg");
        assert_eq!((seen.code(), seen.details()), (ours.code(), ours.details()));
        let other = status_through_router(Status::not_found("no such service"), "/grpc.health.v1.Health/Check");
        assert_eq!((other.code(), other.details().len()), (Code::NotFound, 0));
    }

    #[test]
    fn call_above_the_limit_is_rejected_before_it_is_served() {
        let budgets = Budgets::of(&["--max-open-calls", "1"]);
        let request = || {
            let request = Request::post("/msg.v1.MsgGateway/SendMsg").header(CONTENT_TYPE, "application/grpc");
            request.body(Body::empty()).expect("it is valid")
        };
        let open = admit(&budgets, &request()).expect("there is capacity");
        assert_eq!(budgets.calls.used().items, 1);
        let served = Always(Status::ok("served"));
        let router = router_to(served, budgets);
        let call =
            || router.clone().oneshot(request()).now_or_never().expect("it does not wait").expect("it cannot fail");
        let rejected = Status::from_header_map(call().headers()).expect("it has a status");
        let details = rejected.get_error_details();
        assert_eq!(rejected.code(), Code::ResourceExhausted);
        assert_eq!(details.error_info().expect("it is ours").reason, "NOT_SENT");
        assert!(details.retry_info().is_some());
        drop(open);
        let served = call();
        assert_eq!(Status::from_header_map(served.headers()).expect("it has a status").code(), Code::Ok);
    }

    #[test]
    fn reflection_streams_have_a_limit_of_their_own() {
        let budgets = Budgets::of(&[]);
        let request = |path| Request::post(path).body(()).expect("it is valid");
        let reflect = || admit(&budgets, &request("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"));
        let open: Vec<_> = std::iter::from_fn(|| reflect().ok()).collect();
        assert_eq!(open.len(), budgets.reflections.used().items);
        assert!(matches!(reflect(), Err((Some(_), _))));
        assert!(admit(&budgets, &request("/msg.v1.MsgGateway/SendMsg")).is_ok());
        drop(open);
        assert!(reflect().is_ok());
    }
}
