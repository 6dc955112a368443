//! What the tests ask of a gateway, and how they read its answers.

use std::time::Duration;

use msg_common::admin;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{Msg, Placement, SendMsgRequest, SendResult, send_result};
use msg_dev::stack::ServiceSpec;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorDetails, StatusExt};

use crate::support::world::Gateway;
use crate::support::{NotYet, ensure, eventually};

pub(crate) type Client = MsgGatewayClient<Channel>;

/// A connection of its own to a gateway that may only just have been launched.
pub(super) async fn channel(gateway: &Gateway) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    eventually("the gateway listens", async || Ok(endpoint.connect().await?)).await
}

pub(crate) async fn client(gateway: &Gateway) -> Client {
    Client::new(channel(gateway).await)
}

pub(crate) async fn send(client: &Client, msg: &Msg) -> Result<Placement, Status> {
    call(client, Request::new(request(msg))).await
}

/// With the caller's deadline.
pub(super) async fn send_within(client: &Client, msg: &Msg, timeout: Duration) -> Result<Placement, Status> {
    let mut request = Request::new(request(msg));
    request.set_timeout(timeout);
    call(client, request).await
}

pub(super) fn request(msg: &Msg) -> SendMsgRequest {
    SendMsgRequest { msg: Some(msg.clone()), wait_for: 0 }
}

async fn call(client: &Client, request: Request<SendMsgRequest>) -> Result<Placement, Status> {
    let response = client.clone().send_msg(request).await?;
    Ok(response.into_inner().placement.expect("an OK has one"))
}

/// What an entry of a batch or a stream was told.
pub(super) fn result(told: &SendResult) -> Result<Placement, Status> {
    match told.result.as_ref().expect("one is set") {
        send_result::Result::Placement(placement) => Ok(placement.clone()),
        send_result::Result::Error(error) => {
            Err(Status::with_details(Code::from_i32(error.code), error.message.clone(), error.encode_to_vec().into()))
        }
    }
}

/// The reason of an error of ours; `None` for one that was made on the way.
pub(super) fn reason(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    assert_eq!(info.domain, "msg.v1", "{status:?}");
    Some(info.reason.clone())
}

/// The error has this code and this reason, and is short enough for every client; its details.
#[track_caller]
pub(super) fn assert_failed<T>(result: Result<T, Status>, code: Code, expected: &str) -> ErrorDetails {
    let status = result.err().unwrap_or_else(|| panic!("OK instead of {expected}"));
    assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(expected)), "{status:?}");
    assert!(!status.message().is_empty(), "{status:?}");
    assert!(status.details().len() < 4096, "the details have {} bytes", status.details().len());
    status.get_error_details()
}

/// The error says that nothing was sent, and when to try again, in both ways in which clients look for it.
#[track_caller]
pub(super) fn assert_not_sent<T>(result: Result<T, Status>, code: Code) {
    let status = result.err().unwrap_or_else(|| panic!("OK instead of NOT_SENT"));
    let pushback: u128 = status
        .metadata()
        .get("grpc-retry-pushback-ms")
        .unwrap_or_else(|| panic!("no push-back: {status:?}"))
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let details = assert_failed::<T>(Err(status), code, "NOT_SENT");
    let delay = details.retry_info().and_then(|info| info.retry_delay).expect("it says when to try again");
    assert!(delay > Duration::ZERO);
    assert_eq!(delay.as_millis(), pushback);
}

/// The fields that a BadRequest names.
pub(super) fn fields(details: &ErrorDetails) -> Vec<&str> {
    let violations = &details.bad_request().expect("the fields are named").field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{violations:?}");
    violations.iter().map(|violation| violation.field.as_str()).collect()
}

/// `/readyz` says no, with all of these texts.
pub(super) async fn says_not_ready(gateway: &Gateway, texts: &[&str]) {
    eventually("it says why it is not ready", async || {
        let (status, body) = readyz(gateway).await?;
        ensure(status == 503 && texts.iter().all(|text| body.contains(text)), format!("{status}: {body}"))
    })
    .await;
}

pub(super) async fn readyz(gateway: &Gateway) -> Result<(u16, String), NotYet> {
    Ok(admin::probe(gateway.service.spec().admin.unwrap(), "/readyz").await?)
}

/// The value of a metric's only line; 0 where there is none.
pub(super) async fn metric(gateway: &Gateway, line: &str) -> Result<f64, NotYet> {
    let metrics = gateway.service.metrics().await?;
    let value = metrics.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    Ok(value.map_or(Ok(0.0), str::parse)?)
}

/// Waits until exactly so many messages were taken and are not confirmed.
pub(super) async fn in_flight(gateway: &Gateway, count: usize) {
    eventually("they are in flight", async || {
        let found = metric(gateway, "msg_gateway_inflight_msgs").await?;
        ensure(found == count as f64, format!("{found} of {count} in flight"))
    })
    .await;
}

/// Without one of its settings.
pub(super) fn without(mut spec: ServiceSpec, setting: &str) -> ServiceSpec {
    let before = spec.env.len();
    spec.env.retain(|(name, _)| name != setting);
    assert_eq!(spec.env.len() + 1, before, "{setting} was not set");
    spec
}

/// Any call, by its path.
pub(super) async fn unary<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?.into_inner())
}

/// grpc.health.v1, as far as it is needed.
pub(super) mod health {
    use super::*;

    pub(crate) const SERVING: i32 = 1;
    pub(crate) const NOT_SERVING: i32 = 2;
    const SERVICE: &str = "msg.v1.MsgGateway";

    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckRequest {
        #[prost(string, tag = "1")]
        service: String,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(crate) struct HealthCheckResponse {
        #[prost(int32, tag = "1")]
        pub(crate) status: i32,
    }

    /// What both names have: the server's and the service's.
    pub(crate) async fn check(channel: &Channel) -> i32 {
        let mut found = Vec::new();
        for service in ["", SERVICE] {
            let request = HealthCheckRequest { service: service.into() };
            let answer: HealthCheckResponse = unary(channel, "/grpc.health.v1.Health/Check", request).await.unwrap();
            found.push(answer.status);
        }
        assert_eq!(found[0], found[1], "the server and the service differ");
        found[0]
    }

    pub(crate) async fn watch(channel: &Channel) -> tonic::Streaming<HealthCheckResponse> {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let request = Request::new(HealthCheckRequest { service: SERVICE.into() });
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        grpc.server_streaming(request, path, codec).await.unwrap().into_inner()
    }
}
