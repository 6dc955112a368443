//! The router with services that respond immediately.

use bytes::Bytes;
use futures_util::FutureExt;
use jsonwebtoken::Algorithm;
use msg_common::admin::Readiness;
use msg_common::http_client::HttpError;
use msg_common::tls::PeerIdentity;
use tokio_util::sync::CancellationToken;
use tonic_types::StatusExt;
use tower::ServiceExt;

use super::*;
use crate::auth::verify::refresh::{Fetch, Refresher};
use crate::auth::verify::tests::issuer::rules;
use crate::auth::verify::{Tokens, Verifier};
use crate::auth::{CertificateName, Required};
use crate::unread::ReadTimer;

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
    router_with(Authenticator::open(), service, budgets)
}

fn router_with(authenticator: Authenticator, service: Always, budgets: Arc<Budgets>) -> RpcRouter<Always, Always> {
    RpcRouter::new(service.clone(), service, authenticator, budgets, Duration::MAX)
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
    let open = admit(&budgets, &request(), false).expect("there is capacity");
    assert_eq!(budgets.calls.used().items, 1);
    let served = Always(Status::ok("served"));
    let router = router_to(served, budgets);
    let call = || router.clone().oneshot(request()).now_or_never().expect("it does not wait").expect("it cannot fail");
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
    let reflect = || admit(&budgets, &request("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), false);
    let open: Vec<_> = std::iter::from_fn(|| reflect().ok()).collect();
    assert_eq!(open.len(), budgets.reflections.used().items);
    assert!(reflect().is_err());
    assert!(admit(&budgets, &request("/msg.v1.MsgGateway/SendMsg"), false).is_ok());
    drop(open);
    assert!(reflect().is_ok());
}

const SEND: &str = "/msg.v1.MsgGateway/SendMsg";
const HEALTH: &str = "/grpc.health.v1.Health/Watch";

/// A call over this connection.
fn call_over(connection: &Lifetime, path: &str) -> Request<Body> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/grpc").body(Body::empty());
    let mut request = request.expect("it is valid");
    request.extensions_mut().insert(connection.clone());
    request
}

fn code_of(response: &Response<Body>) -> Code {
    Status::from_header_map(response.headers()).expect("it has a status").code()
}

/// What a caller without credentials leaves open takes nothing away from one with them.
#[test]
fn strangers_hold_no_permit_of_known_callers() {
    let budgets = Budgets::of(&["--max-open-calls", "1"]);
    let required = Required { tokens: None, certificate: Some(CertificateName::Uri) };
    let router = router_with(Authenticator::requiring(required), Always(Status::not_found("x")), budgets.clone());
    let call = |connection: &Lifetime, path: &str| {
        let response = router.clone().oneshot(call_over(connection, path)).now_or_never();
        response.expect("it does not wait").expect("it cannot fail")
    };
    let timer = ReadTimer::new(Duration::MAX, Duration::MAX);
    let [stranger, other] = [(); 2].map(|()| Lifetime::new(CancellationToken::new(), None, &timer, None));
    // Responses that are not read are open.
    let refused: Vec<_> = (0..100).map(|_| call(&stranger, SEND)).collect();
    assert!(refused.iter().all(|response| code_of(response) == Code::Unauthenticated));
    let watches: Vec<_> = (0..100).map(|_| admit(&budgets, &call_over(&stranger, HEALTH), true)).collect();
    assert_eq!(watches.iter().filter(|watch| watch.is_ok()).count(), 16, "of one connection");
    assert_eq!(code_of(&call(&stranger, HEALTH)), Code::ResourceExhausted);
    assert_eq!(code_of(&call(&other, HEALTH)), Code::NotFound, "another connection is served");
    let not_grpc = router.clone().oneshot(Request::get("/").body(Body::empty()).expect("it is valid"));
    let not_grpc = not_grpc.now_or_never().expect("it does not wait").expect("it cannot fail");
    assert_eq!((budgets.calls.used().items, budgets.refusals.used().items), (0, 101));
    let peer = PeerIdentity { uris: vec!["alice".to_owned()], dns_names: Vec::new() };
    let known = call(&Lifetime::of_peer(peer), SEND);
    assert_eq!((code_of(&known), budgets.calls.used().items), (Code::NotFound, 1), "it is served");
    drop((refused, watches, not_grpc));
    assert_eq!((budgets.refusals.used().items, budgets.health_checks.used().items), (0, 0));
}

/// An issuer that never responds.
struct Hanging;

impl Fetch for Hanging {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, HttpError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn calls_that_wait_for_keys_hold_no_permit_of_known_callers() {
    let budgets = Budgets::of(&["--max-open-calls", "1"]);
    let verifier = Arc::new(Verifier::new(rules(&[Algorithm::ES256]), None));
    let refresher = Refresher::new(Box::new(Hanging), verifier.clone(), Readiness::waiting_for(&[]));
    let tokens = Tokens { verifier, refresher: Some(Arc::new(refresher)) };
    let required = Required { tokens: Some(Arc::new(tokens)), certificate: None };
    let router = router_with(Authenticator::requiring(required), Always(Status::ok("served")), budgets.clone());
    let mut waiting: Vec<_> = (0..257)
        .map(|number| {
            let mut request = call_over(&Lifetime::default(), SEND);
            let token = HeaderValue::try_from(format!("Bearer {number}")).expect("it is valid");
            request.headers_mut().insert(http::header::AUTHORIZATION, token);
            Box::pin(router.clone().oneshot(request))
        })
        .collect();
    let responses: Vec<_> = waiting.iter_mut().map(|call| call.now_or_never()).collect();
    let responded: Vec<_> = responses.into_iter().flatten().map(|response| response.expect("it cannot fail")).collect();
    assert_eq!(responded.iter().map(code_of).collect::<Vec<_>>(), [Code::ResourceExhausted]);
    assert_eq!((budgets.calls.used().items, budgets.key_waits.used().items), (0, 256));
    drop(waiting);
    assert_eq!(budgets.key_waits.used().items, 0, "callers that disconnect");
}
