//! The calls of msg.v1.MsgGateway: what each needs from its request's head, and the count of its answers.

use std::time::Instant;

use msg_common::proto::msg_gateway_server::MsgGateway;
use msg_common::proto::{
    BatchSendMsgRequest, BatchSendMsgResponse, GetMaxSeqsRequest, GetMaxSeqsResponse, GetMsgStatusRequest,
    GetMsgStatusResponse, PullMsgsRequest, PullMsgsResponse, SendMsgRequest, SendMsgResponse, StreamSendMsgRequest,
    StreamSendMsgResponse, WatchMsgsRequest, WatchMsgsResponse,
};
use msg_common::record::TRACEPARENT_HEADER;
use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming};

use crate::metrics::answered;
use crate::read::{Place, Reader};
use crate::send::deadline::{Arrival, grpc_timeout};
use crate::send::{Call, Sender};
use crate::status::Failure;

/// The service.
pub struct Gateway {
    sender: Sender,
    reader: Reader,
}

impl Gateway {
    /// Sends through one and reads through the other.
    pub fn new(sender: Sender, reader: Reader) -> Self {
        Gateway { sender, reader }
    }
}

#[tonic::async_trait]
impl MsgGateway for Gateway {
    async fn send_msg(&self, request: Request<SendMsgRequest>) -> Result<Response<SendMsgResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let headers = metadata.as_ref();
        let call = Call {
            arrival: arrival(&extensions),
            timeout: grpc_timeout(headers),
            traceparent: headers.get(TRACEPARENT_HEADER).map(|value| value.as_bytes()),
        };
        match self.sender.send(request, call).await {
            Ok(placement) => Ok(Response::new(SendMsgResponse { placement: Some(placement) })),
            Err(failure) => Err(failed("SendMsg", failure)),
        }
    }

    async fn batch_send_msg(&self, _: Request<BatchSendMsgRequest>) -> Result<Response<BatchSendMsgResponse>, Status> {
        Err(failed("BatchSendMsg", Failure::NotImplemented("BatchSendMsg is not implemented yet; use SendMsg")))
    }

    type StreamSendMsgStream = Empty<Result<StreamSendMsgResponse, Status>>;

    async fn stream_send_msg(
        &self,
        _: Request<Streaming<StreamSendMsgRequest>>,
    ) -> Result<Response<Self::StreamSendMsgStream>, Status> {
        Err(failed("StreamSendMsg", Failure::NotImplemented("StreamSendMsg is not implemented yet; use SendMsg")))
    }

    async fn pull_msgs(&self, request: Request<PullMsgsRequest>) -> Result<Response<PullMsgsResponse>, Status> {
        let (arrival, timeout) = (arrival(request.extensions()), grpc_timeout(request.metadata().as_ref()));
        let result = self.reader.pull(request.into_inner(), arrival, timeout).await;
        answer("PullMsgs", result)
    }

    async fn get_max_seqs(&self, request: Request<GetMaxSeqsRequest>) -> Result<Response<GetMaxSeqsResponse>, Status> {
        let (arrival, timeout) = (arrival(request.extensions()), grpc_timeout(request.metadata().as_ref()));
        let result = self.reader.max_seqs(request.into_inner(), arrival, timeout).await;
        answer("GetMaxSeqs", result)
    }

    async fn get_msg_status(&self, _: Request<GetMsgStatusRequest>) -> Result<Response<GetMsgStatusResponse>, Status> {
        Err(failed("GetMsgStatus", Failure::NotImplemented("GetMsgStatus is not implemented yet; use PullMsgs")))
    }

    type WatchMsgsStream = Empty<Result<WatchMsgsResponse, Status>>;

    async fn watch_msgs(&self, _: Request<WatchMsgsRequest>) -> Result<Response<Self::WatchMsgsStream>, Status> {
        Err(failed("WatchMsgs", Failure::NotImplemented("WatchMsgs is not implemented yet; use PullMsgs")))
    }
}

/// When the request's head arrived; now, where no layer has noted it.
fn arrival(extensions: &tonic::Extensions) -> Instant {
    extensions.get::<Arrival>().map_or_else(Instant::now, |arrival| arrival.0)
}

fn answer<T>(method: &'static str, result: Result<(T, Place), Failure>) -> Result<Response<T>, Status> {
    let (value, place) = result.map_err(|failure| failed(method, failure))?;
    answered(method, "OK");
    let mut response = Response::new(value);
    response.extensions_mut().insert(place);
    Ok(response)
}

fn failed(method: &'static str, failure: Failure) -> Status {
    answered(method, failure.outcome());
    failure.into()
}
