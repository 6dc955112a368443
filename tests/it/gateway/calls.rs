//! Calls of the gateway for the tests, and checks of its responses.

use std::time::Duration;

use msg_common::admin;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{Msg, Placement, SendMsgRequest, SendResult, send_result};
use msg_stack::ServiceSpec;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorDetails, StatusExt};

use crate::support::world::Gateway;
use crate::support::{NotYet, ensure, eventually};

pub(crate) type Client = MsgGatewayClient<Channel>;

/// Connects to a gateway, which may have been launched only just before.
pub(crate) async fn channel(gateway: &Gateway) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    eventually("the gateway listens", async || Ok(endpoint.connect().await?)).await
}

pub(crate) async fn client(gateway: &Gateway) -> Client {
    Client::new(channel(gateway).await)
}

pub(crate) async fn send(client: &Client, msg: &Msg) -> Result<Placement, Status> {
    call(client, Request::new(request(msg))).await
}

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
    Ok(response.into_inner().placement.expect("an OK has a placement"))
}

/// The outcome of one entry of a batch or a stream.
pub(crate) fn result(entry: &SendResult) -> Result<Placement, Status> {
    match entry.result.as_ref().expect("a result is set") {
        send_result::Result::Placement(placement) => Ok(placement.clone()),
        send_result::Result::Error(error) => {
            Err(Status::with_details(Code::from_i32(error.code), error.message.clone(), error.encode_to_vec().into()))
        }
    }
}

/// The reason of an error of the gateway; `None` for an error of the transport or a proxy.
pub(crate) fn reason(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    assert_eq!(info.domain, "msg.v1", "{status:?}");
    Some(info.reason.clone())
}

/// Checks code and reason, and that the details are short enough for every client. Returns the details.
#[track_caller]
pub(crate) fn assert_failed<T>(result: Result<T, Status>, code: Code, expected: &str) -> ErrorDetails {
    let status = result.err().unwrap_or_else(|| panic!("OK instead of {expected}"));
    assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(expected)), "{status:?}");
    assert!(!status.message().is_empty(), "{status:?}");
    assert!(status.details().len() < 4096, "the details have {} bytes", status.details().len());
    status.get_error_details()
}

/// Checks that the error says NOT_SENT and gives the delay before a retry, in both forms that clients read.
#[track_caller]
pub(crate) fn assert_not_sent<T>(result: Result<T, Status>, code: Code) {
    let status = result.err().unwrap_or_else(|| panic!("OK instead of NOT_SENT"));
    let pushback: u128 = status
        .metadata()
        .get("grpc-retry-pushback-ms")
        .unwrap_or_else(|| panic!("no grpc-retry-pushback-ms: {status:?}"))
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let details = assert_failed::<T>(Err(status), code, "NOT_SENT");
    let delay = details.retry_info().and_then(|info| info.retry_delay).expect("NOT_SENT has a retry delay");
    assert!(delay > Duration::ZERO);
    assert_eq!(delay.as_millis(), pushback);
}

/// The fields of the violations.
pub(super) fn fields(details: &ErrorDetails) -> Vec<&str> {
    let violations = &details.bad_request().expect("a BadRequest names the fields").field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{violations:?}");
    violations.iter().map(|violation| violation.field.as_str()).collect()
}

/// Waits until `/readyz` reports not ready with all of these texts.
pub(crate) async fn wait_gateway_not_ready(gateway: &Gateway, texts: &[&str]) {
    eventually("the gateway is not ready for this reason", async || {
        let (status, body) = readyz(gateway).await?;
        ensure(status == 503 && texts.iter().all(|text| body.contains(text)), format!("{status}: {body}"))
    })
    .await;
}

pub(super) async fn readyz(gateway: &Gateway) -> Result<(u16, String), NotYet> {
    Ok(admin::probe(gateway.service.spec().admin.unwrap(), "/readyz").await?)
}

pub(crate) async fn metric(gateway: &Gateway, series: &str) -> Result<f64, NotYet> {
    Ok(gateway.service.metric(series).await?)
}

/// Waits until exactly `count` messages are in flight.
pub(super) async fn wait_in_flight(gateway: &Gateway, count: usize) {
    eventually("the number of messages in flight is right", async || {
        let value = metric(gateway, "msg_gateway_inflight_msgs").await?;
        ensure(value == count as f64, format!("{value} of {count} in flight"))
    })
    .await;
}

/// The specification without one of its settings.
pub(super) fn without(mut spec: ServiceSpec, setting: &str) -> ServiceSpec {
    let before = spec.env.len();
    spec.env.retain(|(name, _)| name != setting);
    assert_eq!(spec.env.len() + 1, before, "{setting} was not set");
    spec
}

/// Calls any unary method, by its path.
pub(crate) async fn unary<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?.into_inner())
}

/// The part of grpc.health.v1 that the tests need.
pub(crate) mod health {
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

    /// The status of the server and of the service, which has to be the same.
    pub(crate) async fn check(channel: &Channel) -> i32 {
        let mut value = Vec::new();
        for service in ["", SERVICE] {
            let request = HealthCheckRequest { service: service.into() };
            let response: HealthCheckResponse = unary(channel, "/grpc.health.v1.Health/Check", request).await.unwrap();
            value.push(response.status);
        }
        assert_eq!(value[0], value[1], "the server and the service differ");
        value[0]
    }

    pub(crate) async fn watch(channel: &Channel) -> tonic::Streaming<HealthCheckResponse> {
        try_watch(channel).await.unwrap()
    }

    pub(crate) async fn try_watch(channel: &Channel) -> Result<tonic::Streaming<HealthCheckResponse>, Status> {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let request = Request::new(HealthCheckRequest { service: SERVICE.into() });
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
    }
}
