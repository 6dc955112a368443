//! StreamSendMsg: the results that a caller gets, and the rows that its messages become.

mod ends;
mod flow;
mod order;
mod quotas;
mod results;

use std::collections::BTreeMap;
use std::time::Duration;

use msg_common::proto::{Msg, Placement, StreamSendEntry, StreamSendMsgRequest, StreamSendMsgResponse};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::calls::{Client, result};
use crate::support::WAIT_TIMEOUT;

/// A caller's side of a stream.
struct Stream {
    requests: mpsc::Sender<StreamSendMsgRequest>,
    responses: Streaming<StreamSendMsgResponse>,
}

/// The results of entries, by `correlation_id`.
type Results = BTreeMap<u64, Result<Placement, Status>>;

async fn open(client: &Client) -> Stream {
    try_open(client, None).await.unwrap()
}

async fn try_open(client: &Client, timeout: Option<Duration>) -> Result<Stream, Status> {
    let (requests, receiver) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(receiver));
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let responses = client.clone().stream_send_msg(request).await?.into_inner();
    Ok(Stream { requests, responses })
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

    /// Reads the next response; `None` if the stream has ended with OK.
    async fn next_response(&mut self) -> Result<Option<Results>, Status> {
        Ok(self.next_results().await?.map(Results::from_iter))
    }

    /// As `next_response`, for entries that share a `correlation_id`.
    async fn next_results(&mut self) -> Result<Option<Vec<(u64, Result<Placement, Status>)>>, Status> {
        let next_response = tokio::time::timeout(WAIT_TIMEOUT, self.responses.message())
            .await
            .expect("a response or the end arrives")?;
        let Some(next_response) = next_response else { return Ok(None) };
        assert!((1..=1000).contains(&next_response.results.len()), "{} results", next_response.results.len());
        assert!(next_response.encoded_len() < 4 << 20);
        let entry = |one: &msg_common::proto::StreamSendResult| {
            (one.correlation_id, result(one.result.as_ref().expect("a result is set")))
        };
        Ok(Some(next_response.results.iter().map(entry).collect()))
    }

    /// Reads until `count` entries have a result.
    async fn results(&mut self, count: usize) -> Results {
        let mut results = Results::new();
        while results.len() < count {
            results.extend(self.next_response().await.unwrap().expect("the stream is open"));
        }
        assert_eq!(results.len(), count);
        results
    }

    async fn send_and_read(&mut self, request: StreamSendMsgRequest) -> Results {
        let count = request.entries.len();
        self.send(request).await;
        self.results(count).await
    }

    /// Reads to the end; returns the results and how the stream ended.
    async fn remaining(&mut self) -> (Results, Result<(), Status>) {
        let mut results = Results::new();
        loop {
            match self.next_response().await {
                Ok(Some(more)) => results.extend(more),
                Ok(None) => return (results, Ok(())),
                Err(status) => return (results, Err(status)),
            }
        }
    }

    /// Half-closes, and reads to the end.
    async fn finish(self) -> (Results, Result<(), Status>) {
        let Stream { requests, responses } = self;
        drop(requests);
        Stream { requests: mpsc::channel(1).0, responses }.remaining().await
    }
}
