//! Every call of the contract, as it succeeds and as it fails, with marked contents, IDs, tokens and headers.

use msg_common::proto::{
    BatchSendMsgRequest, GetMaxSeqsRequest, GetMsgStatusRequest, InboxCursor, Msg, PullMsgsRequest, SendMsgRequest,
    StreamSendEntry, StreamSendMsgRequest, WaitFor, WatchMsgsRequest,
};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::{INBOX, TOKEN_SECRET, token};
use crate::gateway::calls::{Client, result};
use crate::support::issuer::authorized;
use crate::support::kafka::msg;
use crate::support::leaks::{MARK, Seen};

/// An inbox that the token's scopes do not allow to read.
pub(super) const FOREIGN: &str = "zq7xSecret93-foreign";

fn marked(id: &str) -> Msg {
    let content = format!("{MARK}{}", "x".repeat(100));
    let attributes = [(format!("{MARK}-key"), format!("{MARK}-value"))].into();
    let content_type = format!("text/{MARK}");
    Msg { content_type, attributes, ..msg("alice", INBOX, &format!("{MARK}-{id}"), content) }
}

/// What a caller gets with an error.
fn text(status: &Status) -> Vec<u8> {
    [format!("{status:?} {} {:?} ", status.message(), status.metadata()).as_bytes(), status.details()].concat()
}

/// The calls of one caller, and the errors that it gets.
struct Calls<'a> {
    channel: Channel,
    client: Client,
    token: String,
    source: &'a str,
    seen: &'a mut Seen,
}

impl Calls<'_> {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = authorized(&self.token, message);
        request.metadata_mut().insert("x-marked", MARK.parse().unwrap());
        request.set_timeout(std::time::Duration::from_secs(5));
        request
    }

    fn add(&mut self, call: &str, result: Result<(), Status>) {
        if let Err(status) = result {
            self.seen.add(format!("error of {call}, {}", self.source), text(&status));
        }
    }

    async fn send(&mut self, msg: Msg, wait_for: i32) {
        let request = self.request(SendMsgRequest { msg: Some(msg), wait_for });
        let result = self.client.send_msg(request).await.map(drop);
        self.add("SendMsg", result);
    }

    async fn send_all(&mut self) {
        let stored = WaitFor::Stored.into();
        self.send(marked("1"), stored).await;
        self.send(Msg { content: format!("{MARK} other").into(), ..marked("1") }, stored).await;
        let foreign = Msg { send_id: format!("{MARK}-mallory"), ..marked("2") };
        let invalid = Msg { session_type: 77, send_id: String::new(), ..marked("3") };
        let too_long = Msg { recv_id: MARK.repeat(200), content_type: MARK.into(), ..marked("4") };
        let too_large = Msg { content: MARK.repeat(200_000).into(), ..marked("5") };
        let with_nul = Msg { client_msg_id: format!("{MARK}\0"), ..marked("6") };
        let bad = [foreign, invalid, too_long, too_large, with_nul];
        for msg in &bad {
            self.send(msg.clone(), 0).await;
        }
        self.send(marked("7"), 99).await;
        let msgs: Vec<Msg> = [marked("8")].into_iter().chain(bad.iter().cloned()).collect();
        let batch = self.request(BatchSendMsgRequest { msgs: msgs.clone(), wait_for: 0 });
        match self.client.batch_send_msg(batch).await {
            Ok(response) => {
                for entry in &response.into_inner().results {
                    self.add("an entry of BatchSendMsg", result(entry).map(drop));
                }
            }
            Err(status) => self.add("BatchSendMsg", Err(status)),
        }
        let entries = (1..).zip(msgs).map(|(correlation_id, msg)| StreamSendEntry { correlation_id, msg: Some(msg) });
        let requests = tokio_stream::iter([StreamSendMsgRequest { entries: entries.collect(), wait_for: 0 }]);
        let result = self.stream(self.request(requests)).await;
        self.add("StreamSendMsg", result);
    }

    async fn stream(
        &mut self,
        requests: Request<impl tokio_stream::Stream<Item = StreamSendMsgRequest> + Send + 'static>,
    ) -> Result<(), Status> {
        let mut responses = self.client.stream_send_msg(requests).await?.into_inner();
        while let Some(response) = responses.message().await? {
            for one in response.results {
                let outcome = result(one.result.as_ref().expect("a result is set")).map(drop);
                self.add("an entry of StreamSendMsg", outcome);
            }
        }
        Ok(())
    }

    async fn read_all(&mut self) {
        for recv_id in [INBOX, FOREIGN] {
            let pages = [String::new(), MARK.to_owned()];
            for page_token in pages {
                let pull = PullMsgsRequest { recv_id: recv_id.into(), page_token, ..PullMsgsRequest::default() };
                let result = self.client.pull_msgs(self.request(pull)).await.map(drop);
                self.add("PullMsgs", result);
            }
            let seqs = GetMaxSeqsRequest { recv_ids: vec![recv_id.into()] };
            let result = self.client.get_max_seqs(self.request(seqs)).await.map(drop);
            self.add("GetMaxSeqs", result);
            for msg_id in [MARK, "018f0000-0000-7000-8000-000000000000"] {
                let (recv_id, send_id) = (recv_id.into(), format!("{MARK}-mallory"));
                let status = GetMsgStatusRequest {
                    recv_id,
                    msg_id: msg_id.into(),
                    send_id,
                    client_msg_id: MARK.into(),
                    ..GetMsgStatusRequest::default()
                };
                let result = self.client.get_msg_status(self.request(status)).await.map(drop);
                self.add("GetMsgStatus", result);
            }
            let inboxes = vec![InboxCursor { recv_id: recv_id.into(), after_seq: Some(0) }];
            let watch = self.request(WatchMsgsRequest { inboxes, ..WatchMsgsRequest::default() });
            let opened = match self.client.watch_msgs(watch).await {
                // The first event has the marked messages.
                Ok(events) => events.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            };
            self.add("WatchMsgs", opened);
        }
    }

    async fn call_unknown_methods(&mut self) {
        for path in ["/msg.v1.MsgGateway/zq7xSecret93", "/zq7xSecret93/zq7xSecret93"] {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            let called = match grpc.ready().await {
                Ok(()) => {
                    let codec = ProstCodec::<(), ()>::default();
                    grpc.unary(self.request(()), PathAndQuery::from_static(path), codec).await.map(drop)
                }
                Err(error) => Err(Status::unknown(error.to_string())),
            };
            self.add("an unknown method", called);
        }
    }
}

/// Makes each call with a good token, and some with each kind of bad token. Keeps the errors.
pub(super) async fn make_every_call(channel: Channel, source: &str, seen: &mut Seen) {
    let good = token(TOKEN_SECRET, "alice", 3600);
    seen.keep_secret("a token", &good);
    let client = Client::new(channel.clone());
    let mut calls = Calls { channel, client, token: good, source, seen };
    calls.send_all().await;
    calls.read_all().await;
    calls.call_unknown_methods().await;
    let expired = token(TOKEN_SECRET, "alice", -100);
    let signed = token("zq7xSecret93-another-secret-of-32-bytes", "alice", 3600);
    for bad in [MARK.to_owned(), format!("{MARK}.{MARK}.{MARK}"), expired, signed, MARK.repeat(800)] {
        calls.seen.keep_secret("a rejected token", &bad);
        calls.token = bad;
        calls.send(marked("9"), 0).await;
    }
}
