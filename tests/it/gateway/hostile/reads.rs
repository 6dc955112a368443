//! Reads with numbers and tokens that no client library would produce.

use msg_common::proto::{
    GetMaxSeqsRequest, InboxCursor, PullMsgsRequest, PullMsgsResponse, SendMsgRequest, WatchMsgsRequest,
};
use tonic::Code;

use super::super::calls::{assert_failed, fields};
use super::{Attacked, ordinary_msg};
use crate::support::eventually;

#[tokio::test]
async fn extreme_reads_succeed_or_name_the_invalid_field() {
    let attacked = Attacked::new("hostile_reads", |spec| spec).await;
    let _transfer = attacked.world.running_transfer().await;
    let mut client = attacked.bystander.clone();
    for _ in 0..3 {
        client.send_msg(SendMsgRequest { msg: Some(ordinary_msg()), wait_for: 0 }).await.unwrap();
    }
    attacked.world.wait_for_rows(4).await;
    let pull =
        async |request: PullMsgsRequest| attacked.bystander.clone().pull_msgs(request).await.map(|a| a.into_inner());
    let good = || PullMsgsRequest { recv_id: "bob".into(), page_size: 2, ..PullMsgsRequest::default() };
    let first: PullMsgsResponse = eventually("a page", async || Ok(pull(good()).await?)).await;
    let token = first.next_page_token;
    assert_eq!((first.msgs.len(), token.is_empty()), (2, false));

    for (request, expected) in [
        (PullMsgsRequest { page_size: i32::MAX, ..good() }, 4),
        (PullMsgsRequest { from_seq: i64::MAX, ..good() }, 0),
        (PullMsgsRequest { from_seq: i64::MAX, to_seq: i64::MAX, ..good() }, 0),
        (PullMsgsRequest { to_seq: i64::MAX, page_size: 1000, ..good() }, 4),
        (PullMsgsRequest { page_token: token.clone(), page_size: i32::MAX, ..good() }, 2),
    ] {
        assert_eq!(pull(request.clone()).await.unwrap().msgs.len(), expected, "{request:?}");
    }
    let with = |token: &str| PullMsgsRequest { page_token: token.into(), ..good() };
    let altered = token.replace('0', "1");
    for (request, expected) in [
        (PullMsgsRequest { page_size: -1, ..good() }, "page_size"),
        (PullMsgsRequest { page_size: i32::MIN, ..good() }, "page_size"),
        (PullMsgsRequest { from_seq: i64::MIN, ..good() }, "from_seq"),
        (PullMsgsRequest { to_seq: i64::MIN, ..good() }, "to_seq"),
        (PullMsgsRequest { from_seq: i64::MAX, to_seq: 1, ..good() }, "to_seq"),
        (PullMsgsRequest { order: i32::MIN, ..good() }, "order"),
        (PullMsgsRequest { recv_id: "eve".into(), ..with(&token) }, "page_token"),
        (PullMsgsRequest { from_seq: 2, ..with(&token) }, "page_token"),
        (PullMsgsRequest { omit_content: true, ..with(&token) }, "page_token"),
        (with(&altered), "page_token"),
        (with(&token[1..]), "page_token"),
        (with(&token.to_uppercase()), "page_token"),
        (with(&format!("{token}00")), "page_token"),
        (with(&"é".repeat(token.len() / 2)), "page_token"),
        (with(&"0".repeat(1_000_000)), "page_token"),
    ] {
        let details = assert_failed(pull(request).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), [expected]);
    }
    assert_failed(pull(with(&"0".repeat(8 << 20))).await, Code::ResourceExhausted, "TOO_LARGE");
    attacked.assert_unharmed(60).await;
}

#[tokio::test]
async fn inbox_lists_above_the_maximum_are_rejected() {
    let attacked = Attacked::new("hostile_lists", |spec| spec).await;
    let _transfer = attacked.world.running_transfer().await;
    for count in [0, 1001, 2000] {
        let request = GetMaxSeqsRequest { recv_ids: vec![String::new(); count] };
        let result = attacked.bystander.clone().get_max_seqs(request).await;
        assert_eq!(fields(&assert_failed(result, Code::InvalidArgument, "INVALID_FIELDS")), ["recv_ids"], "{count}");
        let inboxes = vec![InboxCursor::default(); count];
        let result = attacked.bystander.clone().watch_msgs(WatchMsgsRequest { inboxes, omit_content: false }).await;
        let details = assert_failed(result.map(|_| ()), Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), ["inboxes"], "{count}");
    }
    let request = GetMaxSeqsRequest { recv_ids: vec![String::new(); 400_000] };
    assert_failed(attacked.bystander.clone().get_max_seqs(request).await, Code::ResourceExhausted, "TOO_LARGE");
    let request = WatchMsgsRequest { inboxes: vec![InboxCursor::default(); 400_000], omit_content: false };
    let result = attacked.bystander.clone().watch_msgs(request).await;
    assert_failed(result.map(|_| ()), Code::ResourceExhausted, "TOO_LARGE");
    let cursor = |recv_id: &str, after_seq| InboxCursor { recv_id: recv_id.into(), after_seq };
    for (inboxes, expected) in [
        (vec![cursor("bob", Some(i64::MIN))], "inboxes[0].after_seq"),
        (vec![cursor("bob", None), cursor("bob", None)], "inboxes[1].recv_id"),
        (vec![cursor("b\0b", None)], "inboxes[0].recv_id"),
    ] {
        let result = attacked.bystander.clone().watch_msgs(WatchMsgsRequest { inboxes, omit_content: false }).await;
        let details = assert_failed(result.map(|_| ()), Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), [expected]);
    }
    // No message follows the largest possible seq; the stream is opened nevertheless.
    let inboxes = vec![cursor("bob", Some(i64::MAX))];
    attacked.bystander.clone().watch_msgs(WatchMsgsRequest { inboxes, omit_content: false }).await.unwrap();
    attacked.assert_unharmed(100).await;
}
