//! A minimal HTTP/2 client: calls with exactly the bytes of the test, and frames that no library would send.

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
use crate::support::WAIT_TIMEOUT;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const SEND: &str = "/msg.v1.MsgGateway/SendMsg";
pub(crate) const PULL: &str = "/msg.v1.MsgGateway/PullMsgs";

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Http(u16),
    Grpc(Code, Option<String>),
    /// The stream or the connection ended, with HTTP/2's reason.
    Reset(String),
}

impl Outcome {
    /// Waits for the outcome. Panics if the call does not end in time.
    pub(crate) async fn of(response: ResponseFuture) -> Outcome {
        let outcome = tokio::time::timeout(WAIT_TIMEOUT, exchange(response)).await.expect("the call ends");
        outcome.unwrap_or_else(|error| {
            let by = if error.is_go_away() { "GOAWAY" } else { "RST_STREAM" };
            Outcome::Reset(error.reason().map_or_else(|| error.to_string(), |reason| format!("{by} {reason:?}")))
        })
    }
}

impl Display for Outcome {
    fn fmt(&self, out: &mut Formatter<'_>) -> FmtResult {
        match self {
            Outcome::Http(status) => write!(out, "HTTP {status}"),
            Outcome::Grpc(Code::Ok, _) => write!(out, "OK"),
            Outcome::Grpc(code, reason) => write!(out, "{code:?} {}", reason.as_deref().unwrap_or("without a reason")),
            Outcome::Reset(reason) => write!(out, "{reason}"),
        }
    }
}

/// The request head of an ordinary gRPC call.
pub(crate) fn head(address: &str, path: &str) -> Builder {
    let uri = format!("http://{address}{path}");
    Request::post(uri).header("content-type", "application/grpc").header("te", "trailers")
}

/// Makes one call on a connection of its own, with this body and the end of the stream.
pub(crate) async fn call(address: &str, head: Builder, body: impl Into<Bytes>) -> Outcome {
    let (connection, mut stream, response) = start_call(address, head).await;
    // The gateway may reject the call before the whole body is sent.
    let _ = stream.send_data(body.into(), true);
    let outcome = Outcome::of(response).await;
    connection.abort();
    outcome
}

/// Starts a call on a connection of its own; the test sends the body.
pub(crate) async fn start_call(address: &str, head: Builder) -> (JoinHandle<()>, SendStream<Bytes>, ResponseFuture) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (requests, connection) = handshake(tcp).await.unwrap();
    let connection = tokio::spawn(async { drop(connection.await) });
    let mut requests = requests.ready().await.unwrap();
    let (response, stream) = requests.send_request(head.body(()).unwrap(), false).unwrap();
    (connection, stream, response)
}

async fn exchange(response: ResponseFuture) -> Result<Outcome, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    if head.status != 200 {
        return Ok(Outcome::Http(head.status.as_u16()));
    }
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(grpc_status(&head.headers).or_else(|| grpc_status(&trailers)).expect("the response has a grpc-status"))
}

fn grpc_status(headers: &HeaderMap) -> Option<Outcome> {
    let status = Status::from_header_map(headers)?;
    Some(Outcome::Grpc(status.code(), reason(&status)))
}

/// Returns a gRPC frame whose header gives `length`, which may not be the length of `message`.
pub(crate) fn grpc_frame(flag: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend(u32::try_from(length).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call of this path, in HPACK's simplest form: literals without indexing, with new names.
pub(crate) fn headers_block(path: &str) -> Vec<u8> {
    let mut headers_block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers_block.extend([0, u8::try_from(name.len()).unwrap()]);
        headers_block.extend(name.as_bytes());
        headers_block.push(u8::try_from(value.len()).unwrap());
        headers_block.extend(value.as_bytes());
    }
    headers_block
}

#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Received {
    fn goaway(&self) -> String {
        let code = u32::from_be_bytes(self.payload[4..8].try_into().unwrap());
        format!("GOAWAY {:?}", h2::Reason::from(code))
    }
}

/// The client's end of a connection.
pub(crate) struct Peer {
    reading: OwnedReadHalf,
    pub(crate) writing: OwnedWriteHalf,
}

impl Peer {
    /// A connection on which nothing has been sent.
    pub(crate) async fn without_preface(address: &str) -> Peer {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (reading, writing) = stream.into_split();
        Peer { reading, writing }
    }

    /// A connection with the client's preface and these settings.
    pub(crate) async fn with_preface(address: &str, settings: &[(u16, u32)]) -> Peer {
        let mut peer = Peer::without_preface(address).await;
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

    /// Receives the next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Received> {
        next(&mut self.reading).await
    }

    /// Reads to the end of the connection: the reason of its GOAWAY, or "closed" if none was received.
    pub(crate) async fn end(&mut self) -> String {
        let mut ending = "closed".to_owned();
        let reading = async {
            while let Some(received) = self.next().await {
                if received.kind == kind::GOAWAY {
                    ending = received.goaway();
                }
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, reading).await.expect("the connection ends");
        ending
    }

    /// Sends these chunks with pauses, and then nothing; returns how the connection ended, like `end`.
    pub(crate) async fn send_slowly(&mut self, chunks: Vec<Vec<u8>>, pause: Duration) -> String {
        let Peer { reading, writing } = self;
        let write = async {
            for chunk in chunks {
                if writing.write_all(&chunk).await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            std::future::pending::<()>().await;
        };
        let mut ending = "closed".to_owned();
        let read = async {
            while let Some(received) = next(reading).await {
                if received.kind == kind::GOAWAY {
                    ending = received.goaway();
                }
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, read_while_writing(read, write)).await.expect("the connection ends");
        ending
    }

    /// Sends all bytes and then a PING, and reads concurrently: "responded" if the PING is acknowledged, or how the
    /// connection ended.
    pub(crate) async fn flood(&mut self, bytes: &[u8]) -> String {
        const LAST: &[u8] = b"the last";
        let Peer { reading, writing } = self;
        let write = async {
            // If a write fails, the connection is closed, which the reading side reports.
            let _ = writing.write_all(bytes).await;
            let _ = writing.write_all(&frame(kind::PING, 0, 0, LAST)).await;
            std::future::pending::<()>().await;
        };
        let mut ending = "closed".to_owned();
        let read = async {
            while let Some(received) = next(reading).await {
                match received.kind {
                    kind::GOAWAY => ending = received.goaway(),
                    kind::PING if received.flags == ACK && received.payload == LAST => {
                        ending = "responded".into();
                        return;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, read_while_writing(read, write))
            .await
            .expect("the PING is acknowledged or the connection ends");
        ending
    }
}

/// Runs both concurrently until the reading ends.
async fn read_while_writing(read: impl Future<Output = ()>, write: impl Future<Output = ()>) {
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
