//! PullMsgs in descending order: the same messages as in ascending order, also while others are stored.

use msg_common::proto::{GetMaxSeqsRequest, GetMsgStatusRequest, MsgState, Order, PullMsgsRequest, StoredMsg};
use prost::Message;
use tonic::Code;

use super::calls::{Client, assert_failed, client, fields, send};
use crate::support::kafka::{msg, msg_id_of, record_of};
use crate::support::load::Load;
use crate::support::world::World;

/// The size of a response that every gRPC client accepts by default.
const MAX_RESPONSE_BYTES: usize = 4 << 20;

pub(super) fn inbox(recv_id: &str) -> PullMsgsRequest {
    PullMsgsRequest { recv_id: recv_id.into(), ..PullMsgsRequest::default() }
}

fn newest_first(recv_id: &str) -> PullMsgsRequest {
    PullMsgsRequest { order: Order::Descending.into(), ..inbox(recv_id) }
}

async fn page(client: &Client, request: &PullMsgsRequest) -> (Vec<StoredMsg>, String) {
    let page = client.clone().pull_msgs(request.clone()).await.unwrap().into_inner();
    assert!(page.encoded_len() < MAX_RESPONSE_BYTES, "a page has {} bytes", page.encoded_len());
    (page.msgs, page.next_page_token)
}

pub(super) async fn pages(client: &Client, mut request: PullMsgsRequest) -> Vec<Vec<StoredMsg>> {
    let mut pages = Vec::new();
    loop {
        let (msgs, next) = page(client, &request).await;
        assert!(!msgs.is_empty() || next.is_empty(), "an empty page that is not the end");
        pages.push(msgs);
        if next.is_empty() {
            return pages;
        }
        request.page_token = next;
    }
}

fn seqs(msgs: &[StoredMsg]) -> Vec<i64> {
    msgs.iter().map(|stored| stored.seq).collect()
}

/// The pages have each message below the first page's newest one once, no matter what is stored meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn descending_pages_reverse_ascending_ones_under_load() {
    let world = World::new("descending").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let load = Load::start(world.writer(), 4);
    world.wait_for_rows(2000).await;
    let mut newest = 0;
    for page_size in [7, 100, 1000] {
        let down = pages(&client, PullMsgsRequest { page_size, ..newest_first("inbox-1") }).await.concat();
        let top = down[0].seq;
        assert!(top > newest, "the newest was {newest} before and is {top} now");
        newest = top;
        world.wait_for_more_rows(400).await;
        let up = pages(&client, PullMsgsRequest { to_seq: top, page_size: 300, ..inbox("inbox-1") }).await.concat();
        assert_eq!(seqs(&up), (1..=top).collect::<Vec<_>>());
        assert!(down.iter().rev().eq(up.iter()), "the orders differ: {:?}", seqs(&down));
    }
    load.finish(&world).await;
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn descending_range_has_page_tokens_of_its_own() {
    let world = World::new("descending_range").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let writer = world.writer();
    for i in 1..=50 {
        writer.put(&record_of(&msg("a", "bob", &i.to_string(), "some body")));
    }
    writer.flush();
    world.wait_for_rows(50).await;
    let range = PullMsgsRequest { from_seq: 20, to_seq: 34, page_size: 7, ..newest_first("bob") };
    let read = pages(&client, range.clone()).await;
    assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [7, 7, 1]);
    assert_eq!(seqs(&read.concat()), (20..=34).rev().collect::<Vec<_>>());
    assert_eq!(seqs(&pages(&client, newest_first("bob")).await.concat()), (1..=50).rev().collect::<Vec<_>>());
    assert_eq!(seqs(&page(&client, &PullMsgsRequest { from_seq: 51, ..newest_first("bob") }).await.0), [0; 0]);
    assert_eq!(seqs(&page(&client, &newest_first("empty")).await.0), [0; 0]);
    // One call reads the last message of an inbox.
    assert_eq!(seqs(&page(&client, &PullMsgsRequest { page_size: 1, ..newest_first("bob") }).await.0), [50]);

    let (_, down) = page(&client, &range).await;
    let up_range = PullMsgsRequest { order: 0, ..range.clone() };
    let (_, up) = page(&client, &up_range).await;
    let altered = down.replace('1', "2");
    for (request, token) in [(&range, &up), (&up_range, &down), (&range, &altered), (&range, &down[..10].to_owned())] {
        let foreign = PullMsgsRequest { page_token: token.clone(), ..request.clone() };
        let rejected = client.clone().pull_msgs(foreign).await;
        let details = assert_failed(rejected, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&details), ["page_token"]);
    }
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn descending_pages_of_large_messages_stay_below_4_mib() {
    let world = World::new("descending_large").await;
    let (gateway, transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    for i in 0..8_u8 {
        send(&client, &msg("alice", "bob", &i.to_string(), vec![i; 1_000_000])).await.unwrap();
    }
    world.wait_for_rows(8).await;
    let read = pages(&client, PullMsgsRequest { page_size: 1000, ..newest_first("bob") }).await;
    assert_eq!(seqs(&read.concat()), (1..=8).rev().collect::<Vec<_>>());
    assert!(read.len() >= 2, "all in {} pages", read.len());
    for (stored, i) in read.concat().into_iter().zip((0..8).rev()) {
        assert!(stored.msg.unwrap().content == vec![i; 1_000_000], "a body differs");
    }
    assert!(transfer.stop().await.unwrap().success());
}

/// The database that is configured as the replica has other rows, so each response shows where it was read.
#[tokio::test]
async fn pages_are_read_from_the_replica_and_status_from_primary() {
    let world = World::new("primary").await;
    let replica = World::new("replica").await;
    let url = replica.database_url().to_owned();
    let gateway = world.gateway("gateway", |spec| spec.env("DATABASE_REPLICA_URL", &url));
    gateway.service.start().await.unwrap();
    let transfers = (world.running_transfer().await, replica.running_transfer().await);
    let client = client(&gateway).await;
    // The primary has one row more, as if the replica were behind.
    let messages = [msg("alice", "bob", "1", "hello"), msg("alice", "bob", "2", "hello")];
    for (world, count) in [(&world, 2), (&replica, 1)] {
        let writer = world.writer();
        for message in messages.iter().take(count) {
            writer.put(&record_of(message));
        }
        writer.flush();
    }
    world.wait_for_rows(2).await;
    replica.wait_for_rows(1).await;
    assert_eq!(seqs(&page(&client, &inbox("bob")).await.0), [1]);
    let max_seqs = client.clone().get_max_seqs(GetMaxSeqsRequest { recv_ids: vec!["bob".into()] }).await.unwrap();
    assert_eq!(max_seqs.into_inner().inboxes[0].max_seq, 1);
    let msg_id = msg_id_of(&messages[1]).to_string();
    let second = GetMsgStatusRequest { recv_id: "bob".into(), msg_id, ..GetMsgStatusRequest::default() };
    let status = client.clone().get_msg_status(second).await.unwrap().into_inner();
    assert_eq!((status.state(), status.seq), (MsgState::Stored, 2));
    for transfer in [transfers.0, transfers.1] {
        assert!(transfer.stop().await.unwrap().success());
    }
}
