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
use crate::budget::{Budget, Budgets, Holder, LimitReached, Permit};
use crate::incoming::Lifetime;
use crate::metrics::TRANSPORT_ERRORS;
use crate::request_body::{BoundedBody, RequestKind};
use crate::response::{OpenCall, hold_permits};
use crate::send::deadline::Arrival;
use crate::status::{Failure, reason_name, with_reason};

/// Opens a call, which is open until the last byte of its response is written.
fn admit<B>(budgets: &Budgets, request: &Request<B>, is_exempt: bool) -> Result<Arc<OpenCall>, LimitReached> {
    if is_exempt {
        // Everyone may open it, so it holds no permit that the calls of known callers need.
        let connection = request.extensions().get::<Lifetime>().map_or(0, Lifetime::number);
        let check = budgets.health_checks.try_acquire_for(Holder::numbered(connection), 1)?;
        return Ok(open(request, vec![check]));
    }
    let mut permits = vec![budgets.calls.try_acquire(1)?];
    if request.uri().path().starts_with("/grpc.reflection.") {
        permits.push(budgets.reflections.try_acquire(1)?);
    }
    Ok(open(request, permits))
}

fn open<B>(request: &Request<B>, permits: Vec<Permit>) -> Arc<OpenCall> {
    let unread = request.extensions().get::<Lifetime>().and_then(Lifetime::unread);
    OpenCall::new(permits, unread, request.uri().path().ends_with("/WatchMsgs"))
}

/// Returns the response that rejects a request. It holds a permit of `budget`. If there is none, the connection is closed.
fn rejection<B>(budget: &Arc<Budget>, request: &Request<B>, response: Response<Body>) -> Response<Body> {
    match budget.try_acquire(1) {
        Ok(permit) => hold_permits(response, open(request, vec![permit])),
        Err(_) => {
            request.extensions().get::<Lifetime>().into_iter().for_each(Lifetime::disconnect_slow_reader);
            Response::default()
        }
    }
}

fn failed(failure: impl Into<Failure>) -> Response<Body> {
    Status::from(failure.into()).into_http()
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

fn ready_response<G>(response: Response<Body>) -> RouterFuture<G> {
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
        let is_exempt = self.authenticator.is_exempt(request.uri().path());
        let bytes = if is_exempt { &self.budgets.health_bytes } else { &self.budgets.partial_requests };
        let bounded = |body| BoundedBody::new(body, bytes, kind, self.receive_timeout);
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
        let budgets = &self.budgets;
        if let Some(status) = not_grpc_status(&request) {
            return ready_response(rejection(&budgets.refusals, &request, rejected(status)));
        }
        let is_exempt = self.authenticator.is_exempt(request.uri().path());
        let call = match admit(budgets, &request, is_exempt) {
            Ok(call) => call,
            Err(reached) => return ready_response(rejection(&budgets.rejections, &request, failed(reached))),
        };
        request.extensions_mut().insert(Arrival(Instant::now()));
        match self.authenticator.authenticate(&request) {
            Authentication::Done(Ok(caller)) => self.serve(request, call, caller),
            Authentication::Done(Err(failure)) => {
                ready_response(rejection(&budgets.refusals, &request, failed(failure)))
            }
            Authentication::Waiting(authenticated) => {
                // Its caller is not known yet, so it must not hold a permit that the calls of known callers need.
                drop(call);
                let wait = match budgets.key_waits.try_acquire(1) {
                    Ok(wait) => wait,
                    Err(reached) => return ready_response(rejection(&budgets.refusals, &request, failed(reached))),
                };
                let mut router = self.clone();
                Either::Right(Either::Right(Box::pin(async move {
                    let authenticated = authenticated.await;
                    drop(wait);
                    let budgets = &router.budgets;
                    let caller = match authenticated {
                        Ok(caller) => caller,
                        Err(failure) => return Ok(rejection(&budgets.refusals, &request, failed(failure))),
                    };
                    match admit(budgets, &request, false) {
                        Ok(call) => router.serve(request, call, caller).await,
                        Err(reached) => Ok(rejection(&budgets.rejections, &request, failed(reached))),
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
mod tests;
