//! HTTP/2 by hand: calls whose every byte is the test's, and frames that no library would send.

use std::fmt::{Display, Formatter, Result as FmtResult};

use std::time::Duration;

use h2::SendStream;
use h2::client::{ResponseFuture, handshake};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tonic::codegen::Bytes;
use tonic::codegen::http::{HeaderMap, Request, request::Builder};
use tonic::{Code, Status};

use super::super::calls::reason;
use crate::support::PATIENCE;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const SEND: &str = "/msg.v1.MsgGateway/SendMsg";
pub(super) const PULL: &str = "/msg.v1.MsgGateway/PullMsgs";

/// What a caller was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An HTTP status that is not 200.
    Http(u16),
    Grpc(Code, Option<String>),
    /// The stream's end, or the connection's, with HTTP/2's reason.
    Reset(String),
}

impl Answer {
    /// Waits for it.
    pub(super) async fn of(response: ResponseFuture) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, exchange(response)).await.expect("there is an answer");
        answer.unwrap_or_else(|error| {
            let by = if error.is_go_away() { "GOAWAY" } else { "RST_STREAM" };
            Answer::Reset(error.reason().map_or_else(|| error.to_string(), |reason| format!("{by} {reason:?}")))
        })
    }
}

impl Display for Answer {
    fn fmt(&self, out: &mut Formatter<'_>) -> FmtResult {
        match self {
            Answer::Http(status) => write!(out, "HTTP {status}"),
            Answer::Grpc(Code::Ok, _) => write!(out, "OK"),
            Answer::Grpc(code, reason) => write!(out, "{code:?} {}", reason.as_deref().unwrap_or("without a reason")),
            Answer::Reset(reason) => write!(out, "{reason}"),
        }
    }
}

/// The head of an ordinary gRPC call.
pub(super) fn head(address: &str, path: &str) -> Builder {
    let uri = format!("http://{address}{path}");
    Request::post(uri).header("content-type", "application/grpc").header("te", "trailers")
}

/// Makes one call on a connection of its own, with this body and then the end of the stream.
pub(super) async fn call(address: &str, head: Builder, body: impl Into<Bytes>) -> Answer {
    let (connection, mut stream, response) = begin(address, head).await;
    // A refusal may come before the body is out.
    let _ = stream.send_data(body.into(), true);
    let answer = Answer::of(response).await;
    connection.abort();
    answer
}

/// Begins a call on a connection of its own, and leaves the body to the test.
pub(super) async fn begin(address: &str, head: Builder) -> (JoinHandle<()>, SendStream<Bytes>, ResponseFuture) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (requests, connection) = handshake(tcp).await.unwrap();
    let connection = tokio::spawn(async { drop(connection.await) });
    let mut requests = requests.ready().await.unwrap();
    let (response, stream) = requests.send_request(head.body(()).unwrap(), false).unwrap();
    (connection, stream, response)
}

async fn exchange(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    if head.status != 200 {
        return Ok(Answer::Http(head.status.as_u16()));
    }
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(told(&head.headers).or_else(|| told(&trailers)).expect("there is a grpc-status"))
}

fn told(headers: &HeaderMap) -> Option<Answer> {
    let status = Status::from_header_map(headers)?;
    Some(Answer::Grpc(status.code(), reason(&status)))
}

/// A gRPC frame.
pub(super) fn framed(flag: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend(u32::try_from(length).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

/// Kinds of HTTP/2 frames.
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const ACK: u8 = 1;

/// A frame's bytes.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A head for this path, in HPACK's plainest form.
pub(super) fn block(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    block
}

/// A frame that came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) payload: Vec<u8>,
}

impl Received {
    fn goaway(&self) -> String {
        let code = u32::from_be_bytes(self.payload[4..8].try_into().unwrap());
        format!("GOAWAY {:?}", h2::Reason::from(code))
    }
}

/// One end of a connection.
pub(super) struct Peer {
    reading: OwnedReadHalf,
    pub(super) writing: OwnedWriteHalf,
}

impl Peer {
    /// A connection on which nothing was said.
    pub(super) async fn silent(address: &str) -> Peer {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (reading, writing) = stream.into_split();
        Peer { reading, writing }
    }

    /// A connection that has begun as it should, with these settings.
    pub(super) async fn greeted(address: &str, settings: &[(u16, u32)]) -> Peer {
        let mut peer = Peer::silent(address).await;
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut greeting = PREFACE.to_vec();
        greeting.extend(frame(kind::SETTINGS, 0, 0, &payload));
        peer.writing.write_all(&greeting).await.unwrap();
        peer
    }

    /// The next frame; none at the connection's end.
    pub(super) async fn next(&mut self) -> Option<Received> {
        next(&mut self.reading).await
    }

    /// Reads to the connection's end: what its GOAWAY said, or that there was none.
    pub(super) async fn end(&mut self) -> String {
        let mut said = "closed".to_owned();
        let reading = async {
            while let Some(received) = self.next().await {
                if received.kind == kind::GOAWAY {
                    said = received.goaway();
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the connection ends");
        said
    }

    /// Sends one piece after the other with pauses, and then no more; how the connection ended.
    pub(super) async fn trickle(&mut self, pieces: Vec<Vec<u8>>, pause: Duration) -> String {
        let Peer { reading, writing } = self;
        let write = async {
            for piece in pieces {
                if writing.write_all(&piece).await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            std::future::pending::<()>().await;
        };
        let mut said = "closed".to_owned();
        let read = async {
            while let Some(received) = next(reading).await {
                if received.kind == kind::GOAWAY {
                    said = received.goaway();
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended(read, write)).await.expect("the connection ends");
        said
    }

    /// Writes all of it and a PING behind it, and reads meanwhile: "answered" if that PING is, or how the connection ended.
    pub(super) async fn flood(&mut self, bytes: &[u8]) -> String {
        const LAST: &[u8] = b"the last";
        let Peer { reading, writing } = self;
        let write = async {
            // Nobody listens any more where this fails, which the reading tells.
            let _ = writing.write_all(bytes).await;
            let _ = writing.write_all(&frame(kind::PING, 0, 0, LAST)).await;
            std::future::pending::<()>().await;
        };
        let mut said = "closed".to_owned();
        let read = async {
            while let Some(received) = next(reading).await {
                match received.kind {
                    kind::GOAWAY => said = received.goaway(),
                    kind::PING if received.flags == ACK && received.payload == LAST => {
                        said = "answered".into();
                        return;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended(read, write)).await.expect("an answer or an end");
        said
    }
}

/// Both at a time, until the reading is done.
async fn ended(read: impl Future<Output = ()>, write: impl Future<Output = ()>) {
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

async fn next(reading: &mut OwnedReadHalf) -> Option<Received> {
    let mut head = [0; 9];
    reading.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    reading.read_exact(&mut payload).await.ok()?;
    Some(Received { kind: head[3], flags: head[4], payload })
}
