//! StreamSendMsg: what a caller sees of a stream, and what becomes of its messages.

mod ends;
mod flow;
mod order;
mod results;

use std::collections::BTreeMap;
use std::time::Duration;

use msg_common::proto::{Msg, Placement, StreamSendEntry, StreamSendMsgRequest, StreamSendMsgResponse};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::calls::{Client, result};
use crate::support::PATIENCE;

/// A stream as a caller has it.
struct Stream {
    requests: mpsc::Sender<StreamSendMsgRequest>,
    replies: Streaming<StreamSendMsgResponse>,
}

/// What entries were told, by `correlation_id`.
type Told = BTreeMap<u64, Result<Placement, Status>>;

async fn open(client: &Client) -> Stream {
    try_open(client, None).await.unwrap()
}

async fn try_open(client: &Client, timeout: Option<Duration>) -> Result<Stream, Status> {
    let (requests, receiver) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(receiver));
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let replies = client.clone().stream_send_msg(request).await?.into_inner();
    Ok(Stream { requests, replies })
}

/// A request with these messages, numbered from `first`.
fn request(first: u64, msgs: impl IntoIterator<Item = Msg>) -> StreamSendMsgRequest {
    let entry = |(correlation_id, msg)| StreamSendEntry { correlation_id, msg: Some(msg) };
    StreamSendMsgRequest { entries: (first..).zip(msgs).map(entry).collect(), wait_for: 0 }
}

impl Stream {
    async fn send(&self, request: StreamSendMsgRequest) {
        self.requests.send(request).await.expect("the stream is open");
    }

    /// The next reply; `None` at the end of a stream that ends well.
    async fn reply(&mut self) -> Result<Option<Told>, Status> {
        Ok(self.one_by_one().await?.map(Told::from_iter))
    }

    /// The same where one id may be told of twice.
    async fn one_by_one(&mut self) -> Result<Option<Vec<(u64, Result<Placement, Status>)>>, Status> {
        let reply = tokio::time::timeout(PATIENCE, self.replies.message()).await.expect("something comes")?;
        let Some(reply) = reply else { return Ok(None) };
        assert!((1..=1000).contains(&reply.results.len()), "{} results", reply.results.len());
        assert!(reply.encoded_len() < 4 << 20);
        let told = |one: &msg_common::proto::StreamSendResult| {
            (one.correlation_id, result(one.result.as_ref().expect("it is set")))
        };
        Ok(Some(reply.results.iter().map(told).collect()))
    }

    /// The results of so many entries.
    async fn results(&mut self, count: usize) -> Told {
        let mut told = Told::new();
        while told.len() < count {
            told.extend(self.reply().await.unwrap().expect("the stream goes on"));
        }
        assert_eq!(told.len(), count);
        told
    }

    /// Sends one request, and waits for all its results.
    async fn ask(&mut self, request: StreamSendMsgRequest) -> Told {
        let count = request.entries.len();
        self.send(request).await;
        self.results(count).await
    }

    /// Reads to the end, which is told too.
    async fn rest(&mut self) -> (Told, Result<(), Status>) {
        let mut told = Told::new();
        loop {
            match self.reply().await {
                Ok(Some(more)) => told.extend(more),
                Ok(None) => return (told, Ok(())),
                Err(status) => return (told, Err(status)),
            }
        }
    }

    /// Half-closes, and reads to the end.
    async fn finish(self) -> (Told, Result<(), Status>) {
        let Stream { requests, replies } = self;
        drop(requests);
        Stream { requests: mpsc::channel(1).0, replies }.rest().await
    }
}
