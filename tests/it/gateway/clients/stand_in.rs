//! A stand-in for a proxy between a client and a gateway: it passes calls on, and loses or rejects some of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use msg_common::proto::msg_gateway_server::{MsgGateway, MsgGatewayServer};
use msg_common::proto::{
    BatchSendMsgRequest, BatchSendMsgResponse, GetMaxSeqsRequest, GetMaxSeqsResponse, GetMsgStatusRequest,
    GetMsgStatusResponse, PullMsgsRequest, PullMsgsResponse, SendMsgRequest, SendMsgResponse, StreamSendMsgRequest,
    StreamSendMsgResponse, WatchMsgsRequest, WatchMsgsResponse,
};
use tokio::net::TcpListener;
use tokio_stream::Empty;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::gateway::calls::Client;

/// What the stand-in does with a call.
pub(super) enum Step {
    /// Passes the call to the gateway, and returns its response.
    Pass,
    /// Passes the call to this gateway instead.
    Other(Client),
    /// Does not pass the call on, and returns this error.
    Reject(Status),
    /// Passes the call to the gateway, and returns this error instead of its response.
    Lose(Status),
}

#[derive(Clone)]
pub(super) struct ReceivedSend {
    pub(super) request: SendMsgRequest,
    pub(super) has_deadline: bool,
    pub(super) received_at: Instant,
    pub(super) responded_at: Instant,
    /// The delay that the response asks for, in `grpc-retry-pushback-ms`.
    pub(super) pushback: Option<Duration>,
}

/// A server that listens until it is dropped.
pub(super) struct StandIn {
    pub(super) address: String,
    received: Arc<Mutex<Vec<ReceivedSend>>>,
    server: tokio::task::JoinHandle<()>,
}

impl StandIn {
    /// In front of this gateway. The steps are for one SendMsg each, the errors for one PullMsgs each; all later
    /// calls are passed on.
    pub(super) async fn new(gateway: &Client, sends: Vec<Step>, pulls: Vec<Status>) -> StandIn {
        StandIn::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), gateway, sends, pulls)
    }

    /// As `new`, with this listener.
    pub(super) fn on(listener: TcpListener, gateway: &Client, sends: Vec<Step>, pulls: Vec<Status>) -> StandIn {
        let address = listener.local_addr().unwrap().to_string();
        let received = Arc::new(Mutex::new(Vec::new()));
        let service = Service {
            gateway: gateway.clone(),
            sends: Mutex::new(sends.into()),
            pulls: Mutex::new(pulls.into()),
            received: received.clone(),
        };
        let server = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(MsgGatewayServer::new(service));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        StandIn { address, received, server }
    }

    /// All received SendMsg calls, in order.
    pub(super) fn received(&self) -> Vec<ReceivedSend> {
        self.received.lock().unwrap().clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    gateway: Client,
    sends: Mutex<VecDeque<Step>>,
    pulls: Mutex<VecDeque<Status>>,
    received: Arc<Mutex<Vec<ReceivedSend>>>,
}

fn pushback(trailers: &MetadataMap) -> Option<Duration> {
    let millis = trailers.get("grpc-retry-pushback-ms")?.to_str().unwrap().parse().unwrap();
    Some(Duration::from_millis(millis))
}

fn not_served<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the stand-in does not pass this call on"))
}

#[tonic::async_trait]
impl MsgGateway for Service {
    async fn send_msg(&self, request: Request<SendMsgRequest>) -> Result<Response<SendMsgResponse>, Status> {
        let received_at = Instant::now();
        let has_deadline = request.metadata().contains_key("grpc-timeout");
        let request = request.into_inner();
        let step = self.sends.lock().unwrap().pop_front().unwrap_or(Step::Pass);
        let response = match step {
            Step::Pass => self.gateway.clone().send_msg(request.clone()).await,
            Step::Other(mut other) => other.send_msg(request.clone()).await,
            Step::Reject(status) => Err(status),
            Step::Lose(status) => {
                self.gateway
                    .clone()
                    .send_msg(request.clone())
                    .await
                    .expect("the gateway accepts the message whose response is lost");
                Err(status)
            }
        };
        let pushback = response.as_ref().err().and_then(|status| pushback(status.metadata()));
        let received = ReceivedSend { request, has_deadline, received_at, responded_at: Instant::now(), pushback };
        self.received.lock().unwrap().push(received);
        response
    }

    async fn pull_msgs(&self, request: Request<PullMsgsRequest>) -> Result<Response<PullMsgsResponse>, Status> {
        let error = self.pulls.lock().unwrap().pop_front();
        match error {
            Some(status) => Err(status),
            None => self.gateway.clone().pull_msgs(request.into_inner()).await,
        }
    }

    async fn get_max_seqs(&self, request: Request<GetMaxSeqsRequest>) -> Result<Response<GetMaxSeqsResponse>, Status> {
        self.gateway.clone().get_max_seqs(request.into_inner()).await
    }

    async fn batch_send_msg(&self, _: Request<BatchSendMsgRequest>) -> Result<Response<BatchSendMsgResponse>, Status> {
        not_served()
    }

    type StreamSendMsgStream = Empty<Result<StreamSendMsgResponse, Status>>;

    async fn stream_send_msg(
        &self,
        _: Request<Streaming<StreamSendMsgRequest>>,
    ) -> Result<Response<Self::StreamSendMsgStream>, Status> {
        not_served()
    }

    async fn get_msg_status(&self, _: Request<GetMsgStatusRequest>) -> Result<Response<GetMsgStatusResponse>, Status> {
        not_served()
    }

    type WatchMsgsStream = Empty<Result<WatchMsgsResponse, Status>>;

    async fn watch_msgs(&self, _: Request<WatchMsgsRequest>) -> Result<Response<Self::WatchMsgsStream>, Status> {
        not_served()
    }
}
