//! Kafka, the topic and the database become available in any order: the gateway reports what it lacks, and recovers.

use std::time::Duration;

use msg_common::proto::{GetMaxSeqsRequest, PullMsgsRequest};
use tonic::{Code, Request};

use super::calls::{
    Client, assert_failed, assert_not_sent, channel, client, health, send, wait_gateway_not_ready, without,
};
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, eventually};

fn bobs() -> PullMsgsRequest {
    PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() }
}

fn inboxes() -> GetMaxSeqsRequest {
    GetMaxSeqsRequest { recv_ids: vec!["bob".into()] }
}

async fn reads_fail(client: &Client, code: Code, reason: &str) {
    let mut client = client.clone();
    for details in [
        assert_failed(client.pull_msgs(bobs()).await, code, reason),
        assert_failed(client.get_max_seqs(inboxes()).await, code, reason),
    ] {
        assert_eq!(details.retry_info().is_some(), code == Code::Unavailable);
    }
}

async fn wait_for_reads(client: &Client) {
    let read = eventually("reads succeed again", async || Ok(client.clone().get_max_seqs(inboxes()).await?)).await;
    assert!(read.into_inner().inboxes[0].max_seq >= 1);
}

#[tokio::test]
async fn gateway_starts_before_kafka_and_the_database() {
    let (stack, _folder) = own_stack("early").await;
    let world = World::on(&stack, "early", 4);
    // The margin is so long that responses arrive before the caller's own timer ends the call.
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "500ms"));
    gateway.service.launch().unwrap();
    let (client, channel) = (client(&gateway).await, channel(&gateway).await);
    wait_gateway_not_ready(&gateway, &["kafka: "]).await;
    assert_eq!(health::check(&channel).await, health::NOT_SERVING);
    assert_not_sent(send(&client, &msg("alice", "bob", "too early", "x")).await, Code::Unavailable);
    reads_fail(&client, Code::Unavailable, "DATABASE_UNAVAILABLE").await;

    stack.kafka().start().await.unwrap();
    wait_gateway_not_ready(&gateway, &["topic early does not exist"]).await;
    assert_eq!(health::check(&channel).await, health::NOT_SERVING);
    assert_not_sent(send(&client, &msg("alice", "bob", "still too early", "x")).await, Code::Unavailable);
    assert_eq!(stack.kafka().partitions("early").await.unwrap(), None, "the gateway created the topic");

    world.create_topic(&stack).await;
    gateway.service.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert_eq!(health::check(&channel).await, health::SERVING);
    // The database is still unavailable: sends do not need it.
    send(&client, &msg("alice", "bob", "1", "x")).await.unwrap();
    reads_fail(&client, Code::Unavailable, "DATABASE_UNAVAILABLE").await;

    stack.postgres().start().await.unwrap();
    stack.postgres().create_database("early").await.unwrap();
    reads_fail(&client, Code::Unavailable, "DATABASE_UNAVAILABLE").await;
    let _transfer = world.running_transfer().await;
    world.wait_for_rows(1).await;
    let read = client.clone().pull_msgs(bobs()).await.unwrap().into_inner();
    let ids: Vec<_> = read.msgs.into_iter().map(|stored| stored.msg.unwrap().client_msg_id).collect();
    assert_eq!(ids, ["1"]);

    // The database becomes unavailable, under connections that worked.
    stack.postgres().stop().await;
    reads_fail(&client, Code::Unavailable, "DATABASE_UNAVAILABLE").await;
    send(&client, &msg("alice", "bob", "2", "x")).await.unwrap();
    assert_eq!(health::check(&channel).await, health::SERVING);
    stack.postgres().start().await.unwrap();
    wait_for_reads(&client).await;

    // The database hangs.
    assert!(stack.postgres().freeze());
    let mut hanging = Request::new(bobs());
    hanging.set_timeout(Duration::from_secs(2));
    assert_failed(client.clone().pull_msgs(hanging).await, Code::Unavailable, "DATABASE_UNAVAILABLE");
    send(&client, &msg("alice", "bob", "3", "x")).await.unwrap();
    assert!(stack.postgres().thaw());
    wait_for_reads(&client).await;
    world.wait_for_rows(3).await;
    let ids: Vec<_> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
    assert_eq!(ids, ["1", "2", "3"], "P6: only sent messages are stored");
    stack.stop().await;
}

#[tokio::test]
async fn gateway_without_a_database_sends_and_rejects_reads() {
    let world = World::new("no_database").await;
    let gateway = world.gateway("gateway", |spec| without(spec, "DATABASE_URL"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "1", "x")).await.unwrap();
    reads_fail(&client, Code::FailedPrecondition, "NO_DATABASE").await;
    let _transfer = world.running_transfer().await;
    world.wait_for_rows(1).await;
}

#[tokio::test]
async fn database_url_is_read_from_a_file() {
    let world = World::new("secret_file").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{}\n", world.database_url())).unwrap();
    let secret = |spec| without(spec, "DATABASE_URL").env("DATABASE_URL_FILE", file.path().display());
    let gateway = world.gateway("gateway", secret);
    gateway.service.start().await.unwrap();
    let _transfer = world.running_transfer().await;
    let read = client(&gateway).await.pull_msgs(bobs()).await.unwrap().into_inner();
    assert_eq!(read.msgs, []);
}
