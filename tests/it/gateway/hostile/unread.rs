//! Callers that ask and do not take the answer.

use std::time::Duration;

use msg_common::proto::PullMsgsRequest;
use prost::Message;
use tokio::io::AsyncWriteExt;

use super::super::calls::metric;
use super::Attacked;
use super::peer::{END_HEADERS, END_STREAM, PULL, Peer, block, frame, framed, kind};
use crate::support::kafka::{good, msg};
use crate::support::{ensure, eventually};

/// HTTP/2's number for the window that each stream begins with.
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test]
async fn answers_that_nobody_takes_do_not_keep_others_from_reading() {
    let attacked = Attacked::new("hostile_unread", |spec| spec.env("RESPONSE_READ_TIMEOUT", "2s")).await;
    let _transfer = attacked.world.running_transfer().await;
    let writer = attacked.world.writer();
    (0..90).for_each(|i| writer.put(&good(&msg("alice", "eve", &i.to_string(), vec![b'x'; 40_000]))));
    writer.flush();
    attacked.world.rows_reach(91).await;
    let pull = PullMsgsRequest { recv_id: "eve".into(), page_size: 1000, ..PullMsgsRequest::default() };
    let message = pull.encode_to_vec();
    let body = framed(0, message.len(), &message);
    let calls: Vec<u8> = (0..200)
        .map(|i| 2 * i + 1)
        .flat_map(|stream| {
            let head = frame(kind::HEADERS, END_HEADERS, stream, &block(PULL));
            [head, frame(kind::DATA, END_STREAM, stream, &body)].concat()
        })
        .collect();
    // A page has 3.6 MB. With a window of one byte it leaves the gateway's hands for those of its HTTP/2, and waits there.
    for window in [0, 1] {
        let mut peer = Peer::greeted(&attacked.gateway.address, &[(INITIAL_WINDOW_SIZE, window)]).await;
        peer.writing.write_all(&calls).await.unwrap();
        // What comes is read, or this would be about TCP; but no window is given for it.
        let (said, ()) = tokio::join!(peer.end(), async {
            eventually("others read", async || {
                let begun = std::time::Instant::now();
                let read = attacked.bystander.clone().pull_msgs(pull.clone()).await?;
                ensure(read.get_ref().msgs.len() > 50 && begun.elapsed() < Duration::from_secs(1), "slow or short")
            })
            .await;
        });
        assert_eq!(said, "closed", "a window of {window}");
        attacked.serves_others().await;
    }
    let cut = metric(&attacked.gateway, "msg_gateway_slow_reader_disconnects_total").await;
    assert!(cut.unwrap() >= 2.0);
    attacked.is_unharmed(400).await;
}
