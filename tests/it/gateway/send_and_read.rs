//! The path of a message: from a send to the row and to a reader.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use msg_common::partition::partition_for;
use msg_common::proto::{GetMaxSeqsRequest, InboxSeqs, Msg, PullMsgsRequest, StoredMsg};
use tonic::Code;

use super::calls::{Client, assert_failed, client, fields, send};
use super::pull::{inbox, pages};
use crate::support::kafka::{msg, msg_id_of, record_of};
use crate::support::world::World;

fn seqs(pages: &[Vec<StoredMsg>]) -> Vec<Vec<i64>> {
    pages.iter().map(|page| page.iter().map(|stored| stored.seq).collect()).collect()
}

#[tokio::test]
async fn sent_message_is_stored_and_read_unchanged() {
    let world = World::new("e2e").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let mut sent = vec![msg("alice", "bob", "1", "hello")];
    sent.push(Msg { content: Vec::new().into(), attributes: [].into(), ..msg("alice", "bob", "2", "") });
    sent.push(Msg {
        content_type: "application/octet-stream".into(),
        ..msg("зоя", "bob", "ü 3", vec![0xff; 1_000_000])
    });
    // Every field has the largest size that the limits allow.
    let long = "é".repeat(128);
    sent.push(Msg {
        session_type: 2,
        content_type: "x".repeat(128),
        attributes: (0..64).map(|i| (format!("{i:0>128}"), "v".repeat(128))).collect(),
        ..msg(&long, &long, &long, "x")
    });
    let before = SystemTime::now() - Duration::from_secs(1);
    let mut placements = Vec::new();
    for msg in &sent {
        let placement = send(&client, msg).await.unwrap();
        assert_eq!(placement.msg_id, msg_id_of(msg).to_string());
        assert_eq!(placement.partition, partition_for(msg.recv_id.as_bytes(), world.partitions));
        assert_eq!(placement.stored, None);
        placements.push(placement);
    }
    world.wait_for_rows(4).await;
    let mut read = pages(&client, inbox("bob")).await.concat();
    read.extend(pages(&client, inbox(&long)).await.concat());
    assert_eq!(read.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [1, 2, 3, 1]);
    for ((stored, placement), msg) in read.iter().zip(&placements).zip(&sent) {
        assert!(stored.msg.as_ref() == Some(msg), "the message has changed");
        assert_eq!((&stored.msg_id, stored.send_time), (&placement.msg_id, placement.send_time));
        let send_time = SystemTime::try_from(stored.send_time.unwrap()).unwrap();
        let stored_time = SystemTime::try_from(stored.stored_time.unwrap()).unwrap();
        assert!(before < send_time && send_time <= SystemTime::now() && before < stored_time, "{stored:?}");
    }
    for row in world.rows().await {
        let placement = placements.iter().zip(&sent).find(|(_, msg)| msg.client_msg_id == row.client_msg_id).unwrap().0;
        assert_eq!((row.partition, row.offset), (placement.partition, placement.offset.unwrap()));
    }
}

#[tokio::test]
async fn sends_without_a_client_msg_id_are_separate_messages() {
    let world = World::new("anonymous").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        ids.insert(send(&client, &msg("alice", "bob", "", "x")).await.unwrap().msg_id);
    }
    world.wait_for_all_committed().await;
    let read = pages(&client, inbox("bob")).await.concat();
    assert_eq!(read.iter().map(|stored| stored.msg_id.clone()).collect::<BTreeSet<_>>(), ids);
    assert_eq!((read.len(), ids.len()), (3, 3));
}

#[tokio::test]
async fn inbox_is_read_in_pages() {
    let world = World::new("pages").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let writer = world.writer();
    const COUNT: i64 = 1100;
    for i in 1..=COUNT {
        writer.put(&record_of(&msg("a", "bob", &i.to_string(), "some body")));
        writer.put(&record_of(&msg("a", "eve", &i.to_string(), "another's")));
    }
    writer.flush();
    world.wait_for_rows(2 * COUNT).await;
    let client = client(&gateway).await;
    let lengths = |pages: &[Vec<StoredMsg>]| pages.iter().map(Vec::len).collect::<Vec<_>>();
    let all: Vec<i64> = (1..=COUNT).collect();

    let default = pages(&client, inbox("bob")).await;
    assert_eq!(lengths(&default), [100; 11]);
    assert_eq!(seqs(&default).concat(), all);
    assert!(default.concat().iter().all(|stored| stored.msg.as_ref().unwrap().recv_id == "bob"));
    let coerced = pages(&client, PullMsgsRequest { page_size: i32::MAX, ..inbox("bob") }).await;
    assert_eq!(lengths(&coerced), [1000, 100]);
    assert_eq!(seqs(&coerced).concat(), all);
    // A range, both ends included; and an exact number of pages, of which the last has no token.
    let range = PullMsgsRequest { from_seq: 20, to_seq: 34, page_size: 7, ..inbox("bob") };
    assert_eq!(seqs(&pages(&client, range.clone()).await).concat(), (20..=34).collect::<Vec<_>>());
    assert_eq!(lengths(&pages(&client, range.clone()).await), [7, 7, 1]);
    assert_eq!(lengths(&pages(&client, PullMsgsRequest { page_size: 5, ..range.clone() }).await), [5, 5, 5]);
    let one = PullMsgsRequest { from_seq: 7, to_seq: 7, ..inbox("bob") };
    assert_eq!(seqs(&pages(&client, one).await), [[7]]);
    let beyond = PullMsgsRequest { from_seq: COUNT + 1, ..inbox("bob") };
    assert_eq!(seqs(&pages(&client, beyond).await), [[0; 0]]);
    assert_eq!(seqs(&pages(&client, inbox("empty")).await), [[0; 0]]);

    let without_content =
        pages(&client, PullMsgsRequest { omit_content: true, page_size: 3, to_seq: 3, ..inbox("bob") }).await;
    for stored in without_content.concat() {
        let msg = stored.msg.unwrap();
        assert!(msg.content.is_empty() && msg.content_type == "text/plain" && !msg.attributes.is_empty(), "{msg:?}");
    }
    assert_token_needs_its_own_request(&client, range).await;
}

/// A token continues its own request with any page size, and no other request.
async fn assert_token_needs_its_own_request(client: &Client, request: PullMsgsRequest) {
    let token = client.clone().pull_msgs(request.clone()).await.unwrap().into_inner().next_page_token;
    let next = PullMsgsRequest { page_token: token.clone(), ..request };
    let another_size = client.clone().pull_msgs(PullMsgsRequest { page_size: 2, ..next.clone() }).await.unwrap();
    assert_eq!(seqs(&[another_size.into_inner().msgs]), [[27, 28]]);
    let mut wrong = vec![
        PullMsgsRequest { recv_id: "eve".into(), ..next.clone() },
        PullMsgsRequest { from_seq: 19, ..next.clone() },
        PullMsgsRequest { to_seq: 35, ..next.clone() },
        PullMsgsRequest { omit_content: true, ..next.clone() },
    ];
    let flipped = |i: usize| {
        let mut altered = token.clone().into_bytes();
        altered[i] = if altered[i] == b'1' { b'2' } else { b'1' };
        String::from_utf8(altered).unwrap()
    };
    let middle = token.len() / 2;
    for altered in [flipped(0), flipped(middle), flipped(token.len() - 1), token[1..].into(), "next".into()] {
        wrong.push(PullMsgsRequest { page_token: altered, ..next.clone() });
    }
    for request in wrong {
        let rejected = client.clone().pull_msgs(request.clone()).await;
        let details = assert_failed(rejected, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), ["page_token"], "{request:?}");
    }
}

#[tokio::test]
async fn pages_of_large_messages_stay_below_4_mib() {
    let world = World::new("large_pages").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let body = |i: u8| vec![i; 1_000_000];
    for i in 0..10 {
        send(&client, &msg("alice", "bob", &i.to_string(), body(i))).await.unwrap();
        send(&client, &msg("alice", "bob", &format!("small {i}"), "x")).await.unwrap();
    }
    world.wait_for_rows(20).await;
    let read = pages(&client, PullMsgsRequest { page_size: 1000, ..inbox("bob") }).await;
    assert_eq!(seqs(&read).concat(), (1..=20).collect::<Vec<_>>());
    assert!(read.len() >= 3 && read.iter().all(|page| !page.is_empty()), "{:?}", seqs(&read));
    let bodies: Vec<_> = read.concat().into_iter().map(|stored| stored.msg.unwrap().content).collect();
    for i in 0..10 {
        assert!(bodies[2 * usize::from(i)] == body(i) && bodies[2 * usize::from(i) + 1] == "x", "a body differs");
    }
    // Without their content all messages fit in one page.
    let without_content = pages(&client, PullMsgsRequest { page_size: 1000, omit_content: true, ..inbox("bob") }).await;
    assert_eq!(seqs(&without_content), [(1..=20).collect::<Vec<_>>()]);
}

#[tokio::test]
async fn max_seqs_are_returned_in_the_order_of_the_request() {
    let world = World::new("max_seqs").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    for i in 0..6 {
        for inbox in ["bob", "carol"].iter().take(if i < 2 { 2 } else { 1 }) {
            send(&client, &msg("alice", inbox, &i.to_string(), "x")).await.unwrap();
        }
    }
    world.wait_for_rows(8).await;
    let get_max_seqs = async |recv_ids: Vec<String>| client.clone().get_max_seqs(GetMaxSeqsRequest { recv_ids }).await;
    let seqs = |recv_id: &str, first_seq, max_seq| InboxSeqs { recv_id: recv_id.into(), first_seq, max_seq };
    let response =
        get_max_seqs(["carol", "empty", "bob", "carol"].map(str::to_owned).into()).await.unwrap().into_inner();
    let expected = [seqs("carol", 1, 2), seqs("empty", 0, 0), seqs("bob", 1, 6), seqs("carol", 1, 2)];
    assert_eq!(response.inboxes, expected);
    let many = get_max_seqs((0..1000).map(|i| format!("empty-{i}")).collect()).await.unwrap().into_inner();
    assert_eq!(many.inboxes.len(), 1000);
    for bad in [Vec::new(), vec!["bob".to_owned(); 1001]] {
        let details = assert_failed(get_max_seqs(bad).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), ["recv_ids"]);
    }
    let details =
        assert_failed(get_max_seqs(vec!["bob".into(), String::new()]).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["recv_ids[1]"]);
}
