//! A caller that stops in the middle of its request, as no client library does: a minimal HTTP/2 client.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A call whose message has been sent in part.
pub(super) struct PartialCall {
    stream: TcpStream,
}

/// Calls this method, and sends 3 of a message's 1,000 bytes.
pub(super) async fn start_partial_call(address: &str, method: &str) -> PartialCall {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let mut headers = Vec::new();
    let path = format!("/msg.v1.MsgGateway/{method}");
    let fields =
        [(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", address), ("te", "trailers")];
    for (name, value) in fields.into_iter().chain([("content-type", "application/grpc")]) {
        // A literal without indexing, with a new name.
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend(text.as_bytes());
        }
    }
    frame(&mut bytes, HEADERS, END_HEADERS, 1, &headers);
    frame(&mut bytes, DATA, 0, 1, &[0, 0, 0, 3, 232, 10, 1, 1]);
    stream.write_all(&bytes).await.unwrap();
    PartialCall { stream }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    bytes.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(id.to_be_bytes());
    bytes.extend(payload);
}

impl PartialCall {
    /// Waits until the server has ended the call. The connection has to stay open.
    pub(super) async fn wait_until_ended(&mut self) {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.expect("the connection stays open");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await.unwrap();
            let (kind, flags, id) = (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
            if id == 1 && (kind == RST_STREAM || (kind == HEADERS && flags & END_STREAM != 0)) {
                return;
            }
        }
    }
}
