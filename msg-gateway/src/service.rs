//! The methods of msg.v1.MsgGateway: they read the head of each request, check what the caller may read, and count the
//! responses. What the caller may send is checked for each message, by the sender.

use std::sync::Arc;
use std::time::Instant;

use msg_common::proto::msg_gateway_server::MsgGateway;
use msg_common::proto::{
    BatchSendMsgRequest, BatchSendMsgResponse, GetMaxSeqsRequest, GetMaxSeqsResponse, GetMsgStatusRequest,
    GetMsgStatusResponse, PullMsgsRequest, PullMsgsResponse, SendMsgRequest, SendMsgResponse, StreamSendMsgRequest,
    WatchMsgsRequest,
};
use msg_common::record::TRACEPARENT_HEADER;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::rules::Caller;
use crate::incoming::Lifetime;
use crate::metrics::answered;
use crate::quota::Account;
use crate::read::{self, Reader};
use crate::response_permit::ResponsePermit;
use crate::send::deadline::{Arrival, grpc_timeout};
use crate::send::stream::ReplyStream;
use crate::send::{Call, Sender};
use crate::status::Failure;
use crate::watch::WatchServices;
use crate::watch::stream::WatchStream;

pub(crate) struct Gateway {
    sender: Arc<Sender>,
    reader: Reader,
    watch: WatchServices,
}

impl Gateway {
    pub(crate) fn new(sender: Sender, reader: Reader, watch: WatchServices) -> Self {
        Gateway { sender: Arc::new(sender), reader, watch }
    }
}

#[tonic::async_trait]
impl MsgGateway for Gateway {
    async fn send_msg(&self, request: Request<SendMsgRequest>) -> Result<Response<SendMsgResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let result = match call(&metadata, &extensions) {
            Ok(call) => self.sender.send(request, call).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(placement) => Ok(Response::new(SendMsgResponse { placement: Some(placement) })),
            Err(failure) => Err(failed("SendMsg", failure)),
        }
    }

    async fn batch_send_msg(
        &self,
        request: Request<BatchSendMsgRequest>,
    ) -> Result<Response<BatchSendMsgResponse>, Status> {
        const METHOD: &str = "BatchSendMsg";
        let (metadata, extensions, request) = request.into_parts();
        let result = match call(&metadata, &extensions) {
            Ok(call) => self.sender.send_batch(request, call).await,
            Err(failure) => Err(failure),
        };
        respond(METHOD, result)
    }

    type StreamSendMsgStream = ReplyStream;

    async fn stream_send_msg(
        &self,
        request: Request<Streaming<StreamSendMsgRequest>>,
    ) -> Result<Response<Self::StreamSendMsgStream>, Status> {
        let (metadata, extensions, requests) = request.into_parts();
        let opened = call(&metadata, &extensions)
            .and_then(|call| self.sender.open_stream(requests, call, lifetime(&extensions, call.caller)?));
        let (replies, permit) = opened.map_err(|failure| failed("StreamSendMsg", failure))?;
        Ok(with_permit(replies, Some(permit)))
    }

    async fn pull_msgs(&self, request: Request<PullMsgsRequest>) -> Result<Response<PullMsgsResponse>, Status> {
        let call = read_call(&request);
        let checked = caller(request.extensions())
            .and_then(|caller| caller.check_read(&request.get_ref().recv_id, || "recv_id".into()));
        let result = match checked {
            Ok(()) => self.reader.pull(request.into_inner(), call).await,
            Err(failure) => Err(failure),
        };
        respond("PullMsgs", result)
    }

    async fn get_max_seqs(&self, request: Request<GetMaxSeqsRequest>) -> Result<Response<GetMaxSeqsResponse>, Status> {
        let call = read_call(&request);
        let checked = caller(request.extensions()).and_then(|caller| {
            let mut inboxes = request.get_ref().recv_ids.iter().enumerate();
            inboxes.try_for_each(|(i, recv_id)| caller.check_read(recv_id, || format!("recv_ids[{i}]")))
        });
        let result = match checked {
            Ok(()) => self.reader.max_seqs(request.into_inner(), call).await,
            Err(failure) => Err(failure),
        };
        respond("GetMaxSeqs", result)
    }

    async fn get_msg_status(
        &self,
        request: Request<GetMsgStatusRequest>,
    ) -> Result<Response<GetMsgStatusResponse>, Status> {
        let call = read_call(&request);
        let checked = caller(request.extensions()).and_then(|caller| caller.check_status(request.get_ref()));
        let result = match checked {
            Ok(()) => self.reader.msg_status(request.into_inner(), call).await,
            Err(failure) => Err(failure),
        };
        respond("GetMsgStatus", result)
    }

    type WatchMsgsStream = WatchStream;

    async fn watch_msgs(&self, request: Request<WatchMsgsRequest>) -> Result<Response<Self::WatchMsgsStream>, Status> {
        let checked = caller(request.extensions()).and_then(|caller| {
            let mut inboxes = request.get_ref().inboxes.iter().enumerate();
            inboxes.try_for_each(|(i, inbox)| caller.check_read(&inbox.recv_id, || format!("inboxes[{i}].recv_id")))?;
            Ok((lifetime(request.extensions(), caller)?, account(request.extensions())?))
        });
        let opened = match (checked, &self.watch.watches) {
            (Ok((lifetime, account)), Some(watches)) => watches.open(request.into_inner(), account, lifetime).await,
            (Ok(_), None) => Err(Failure::NoDatabase),
            (Err(failure), _) => Err(failure),
        };
        let (events, permit) = opened.map_err(|failure| failed("WatchMsgs", failure))?;
        Ok(with_permit(events, Some(permit)))
    }
}

/// Reads what a send needs from the head of its request.
fn call<'a>(metadata: &'a MetadataMap, extensions: &'a tonic::Extensions) -> Result<Call<'a>, Failure> {
    let headers = metadata.as_ref();
    Ok(Call {
        arrival: arrival(extensions),
        timeout: grpc_timeout(headers),
        traceparent: headers.get(TRACEPARENT_HEADER).map(|value| value.as_bytes()),
        caller: caller(extensions)?,
        account: account(extensions)?,
    })
}

/// Returns whom a call is counted for.
fn account(extensions: &tonic::Extensions) -> Result<Account, Failure> {
    Ok(Account::of(caller(extensions)?, connection(extensions)?))
}

/// Returns the caller that the router has authenticated.
fn caller(extensions: &tonic::Extensions) -> Result<&Caller, Failure> {
    extensions.get::<Caller>().ok_or_else(|| Failure::Internal("the caller was not authenticated".into()))
}

/// Returns when a stream of this caller has to end.
fn lifetime(extensions: &tonic::Extensions, caller: &Caller) -> Result<Lifetime, Failure> {
    Ok(connection(extensions)?.clone().not_after(caller.stream_end()).unless_withdrawn(caller.key_withdrawn()))
}

fn connection(extensions: &tonic::Extensions) -> Result<&Lifetime, Failure> {
    extensions.get::<Lifetime>().ok_or_else(|| Failure::Internal("the connection has no lifetime".into()))
}

/// Returns when the head of the request arrived, or the current time if no layer has noted it.
fn arrival(extensions: &tonic::Extensions) -> Instant {
    extensions.get::<Arrival>().map_or_else(Instant::now, |arrival| arrival.0)
}

fn read_call<T>(request: &Request<T>) -> read::Call {
    let extensions = request.extensions();
    read::Call { arrival: arrival(extensions), timeout: grpc_timeout(request.metadata().as_ref()) }
}

fn respond<T>(
    method: &'static str,
    result: Result<(T, impl Into<Option<Arc<ResponsePermit>>>), Failure>,
) -> Result<Response<T>, Status> {
    let (value, permit) = result.map_err(|failure| failed(method, failure))?;
    answered(method, "OK");
    Ok(with_permit(value, permit.into()))
}

fn with_permit<T>(value: T, permit: Option<Arc<ResponsePermit>>) -> Response<T> {
    let mut response = Response::new(value);
    if let Some(permit) = permit {
        response.extensions_mut().insert(permit);
    }
    response
}

fn failed(method: &'static str, failure: Failure) -> Status {
    answered(method, failure.outcome());
    failure.into()
}
