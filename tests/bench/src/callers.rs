//! The callers of a measurement: each waits for its response before it calls again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{Msg, SessionType};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::cost::Watched;
use super::rounds::Round;
use super::{Error, Load, rate};

/// HTTP/2 connections that the callers share.
pub(crate) const CONNECTIONS: usize = 4;

/// A caller of the gateway.
pub(crate) type Client = MsgGatewayClient<InterceptedService<Channel, Token>>;

/// The token that a caller adds to each call, if it has one.
#[derive(Clone, Default)]
pub(crate) struct Token(pub(crate) Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Returns callers that share these connections.
pub(crate) fn clients(channels: Vec<Channel>, token: &Token) -> Vec<Client> {
    let client = |channel| MsgGatewayClient::with_interceptor(channel, token.clone());
    channels.into_iter().map(client).map(|client| client.max_decoding_message_size(8 << 20)).collect()
}

/// Opens the connections of the callers.
pub(crate) async fn connect(grpc: &str) -> Result<Vec<Channel>, Error> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(Channel::from_shared(format!("http://{grpc}"))?.connect().await?);
    }
    Ok(channels)
}

/// Runs concurrent callers until they have sent `messages`, `step` with each call. `call` gets the caller's number and
/// the number of the call's first message.
pub(crate) async fn run<C, F, E>(
    watched: &Watched,
    callers: usize,
    messages: usize,
    step: usize,
    call: C,
) -> Result<Round, Error>
where
    C: Fn(usize, usize) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send,
    E: Into<Error> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let meter = watched.start();
    let started = Instant::now();
    let callers = (0..callers).map(|caller| {
        let (next, call) = (next.clone(), call.clone());
        tokio::spawn(async move {
            let mut latencies = histogram();
            loop {
                let first = next.fetch_add(step, Ordering::Relaxed);
                if first >= messages {
                    return Ok::<_, Error>(latencies);
                }
                let started = Instant::now();
                call(caller, first).await.map_err(Into::into)?;
                latencies.saturating_record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        })
    });
    let mut latencies = histogram();
    for caller in try_join_all(callers).await? {
        latencies.add(caller?)?;
    }
    let rate = rate(messages, started.elapsed());
    Ok(Round { rate, latencies, costs: meter.stop(messages as f64) })
}

/// Returns a histogram of microseconds, up to a minute.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000, 3).expect("the bounds are good")
}

/// Returns message `n` of the load.
pub(crate) fn msg(load: &Load, body: &Bytes, sender: &str, n: usize) -> Msg {
    Msg {
        recv_id: load.inbox(n),
        send_id: sender.to_owned(),
        client_msg_id: n.to_string(),
        session_type: SessionType::Single.into(),
        content_type: "text/plain".into(),
        content: body.clone(),
        ..Msg::default()
    }
}
