//! Callers that do not read the responses they requested.

use std::time::Duration;

use msg_common::proto::PullMsgsRequest;
use prost::Message;
use tokio::io::AsyncWriteExt;

use super::super::calls::metric;
use super::Attacked;
use super::peer::{END_HEADERS, END_STREAM, PULL, Peer, frame, grpc_frame, headers_block, kind};
use crate::support::kafka::{msg, record_of};
use crate::support::{ensure, eventually};

/// HTTP/2's setting for the initial flow-control window of each stream.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test]
async fn unread_responses_do_not_block_other_readers() {
    let attacked = Attacked::new("hostile_unread", |spec| spec.env("RESPONSE_READ_TIMEOUT", "2s")).await;
    let _transfer = attacked.world.running_transfer().await;
    let writer = attacked.world.writer();
    (0..90).for_each(|i| writer.put(&record_of(&msg("alice", "eve", &i.to_string(), vec![b'x'; 40_000]))));
    writer.flush();
    attacked.world.wait_for_rows(91).await;
    let pull = PullMsgsRequest { recv_id: "eve".into(), page_size: 1000, ..PullMsgsRequest::default() };
    let message = pull.encode_to_vec();
    let body = grpc_frame(0, message.len(), &message);
    let calls: Vec<u8> = (0..200)
        .map(|i| 2 * i + 1)
        .flat_map(|stream| {
            let head = frame(kind::HEADERS, END_HEADERS, stream, &headers_block(PULL));
            [head, frame(kind::DATA, END_STREAM, stream, &body)].concat()
        })
        .collect();
    // A page has 3.6 MB. With a window of one byte the gateway passes it to its HTTP/2 library, where it waits.
    for window in [0, 1] {
        let mut peer = Peer::with_preface(&attacked.gateway.address, &[(INITIAL_WINDOW_SIZE, window)]).await;
        peer.writing.write_all(&calls).await.unwrap();
        // Frames are read, so that HTTP/2's flow control holds the responses back, and not TCP's; but the window is
        // never enlarged.
        let (ending, ()) = tokio::join!(peer.end(), async {
            eventually("other callers get their pages", async || {
                let started = std::time::Instant::now();
                let read = attacked.bystander.clone().pull_msgs(pull.clone()).await?;
                ensure(
                    read.get_ref().msgs.len() > 50 && started.elapsed() < Duration::from_secs(1),
                    "the page is incomplete or late",
                )
            })
            .await;
        });
        assert_eq!(ending, "closed", "a window of {window}");
        attacked.assert_serves_others().await;
    }
    let disconnects = metric(&attacked.gateway, "msg_gateway_slow_reader_disconnects_total").await;
    assert!(disconnects.unwrap() >= 2.0);
    attacked.assert_unharmed(400).await;
}
