//! A caller that stops in the middle of its request, as no client library does.

use tokio::io::AsyncWriteExt;

use super::hostile::peer::{END_HEADERS, END_STREAM, Peer, frame, grpc_frame, headers_block, kind};

/// A call of which 3 of a message's 1,000 bytes were sent.
pub(super) struct PartialCall(Peer);

pub(super) async fn start_partial_call(address: &str, method: &str) -> PartialCall {
    let mut peer = Peer::with_preface(address, &[]).await;
    let path = format!("/msg.v1.MsgGateway/{method}");
    let mut bytes = frame(kind::HEADERS, END_HEADERS, 1, &headers_block(&path));
    bytes.extend(frame(kind::DATA, 0, 1, &grpc_frame(0, 1000, &[10, 1, 1])));
    peer.writing.write_all(&bytes).await.unwrap();
    PartialCall(peer)
}

impl PartialCall {
    /// Waits until the server has ended the call. The connection has to stay open.
    pub(super) async fn wait_until_ended(&mut self) {
        loop {
            let received = self.0.next().await.expect("the connection stays open");
            let is_last = received.kind == kind::HEADERS && received.flags & END_STREAM != 0;
            if received.kind == kind::RST_STREAM || is_last {
                return;
            }
        }
    }
}
