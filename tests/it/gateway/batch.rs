//! BatchSendMsg: one truthful result per entry.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use msg_common::partition::partition_for;
use msg_common::proto::{BatchSendMsgRequest, BatchSendMsgResponse, Msg, SendResult};
use msg_stack::{Signal, Stack, StackOptions};
use prost::Message;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tonic::{Code, Request, Status};

use super::calls::{Client, assert_failed, assert_not_sent, client, fields, metric, result, wait_in_flight};
use crate::support::eventually;
use crate::support::kafka::{msg, msg_id_of};
use crate::support::world::World;

async fn batch(client: &Client, msgs: &[Msg]) -> Result<Vec<SendResult>, Status> {
    let response = client.clone().batch_send_msg(BatchSendMsgRequest { msgs: msgs.to_vec(), wait_for: 0 }).await?;
    Ok(response.into_inner().results)
}

#[tokio::test]
async fn batch_returns_results_in_order_and_invalid_entry_fails_alone() {
    let world = World::new("batch").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let message = |i: usize| msg("alice", &format!("inbox-{}", i % 4), &i.to_string(), format!("body {i}"));
    let mut msgs: Vec<Msg> = (0..1000).map(message).collect();
    for i in [3, 500, 999] {
        msgs[i] = Msg { send_id: String::new(), content: vec![0; 1_000_001].into(), ..message(i) };
    }
    let results = batch(&client, &msgs).await.unwrap();
    assert_eq!(results.len(), 1000);
    let mut positions = BTreeSet::new();
    for (i, (msg, entry)) in msgs.iter().zip(&results).enumerate() {
        if [3, 500, 999].contains(&i) {
            let details = assert_failed(result(entry), Code::InvalidArgument, "INVALID_FIELDS");
            assert_eq!(fields(&details), [format!("msgs[{i}].send_id"), format!("msgs[{i}].content")]);
            continue;
        }
        let placement = result(entry).unwrap();
        assert_eq!(placement.msg_id, msg_id_of(msg).to_string());
        assert_eq!(placement.partition, partition_for(msg.recv_id.as_bytes(), world.partitions));
        assert!(positions.insert((placement.partition, placement.offset)), "two entries have one position");
    }
    world.wait_for_all_committed().await;
    let rows = world.rows().await;
    assert_eq!(rows.len(), 997);
    for inbox in 0..4 {
        let found = rows.iter().filter(|row| row.recv_id == format!("inbox-{inbox}"));
        let found: Vec<usize> = found.map(|row| row.client_msg_id.parse().unwrap()).collect();
        let sent: Vec<usize> = (inbox..1000).step_by(4).filter(|i| ![3, 500, 999].contains(i)).collect();
        assert_eq!(found, sent, "P3: of inbox-{inbox}");
    }
    world.assert_ordered_without_gaps().await;
    for (line, expected) in [
        ("msg_gateway_requests_total{method=\"BatchSendMsg\",outcome=\"OK\"}", 1.0),
        ("msg_gateway_messages_total{method=\"BatchSendMsg\",outcome=\"OK\"}", 997.0),
        ("msg_gateway_messages_total{method=\"BatchSendMsg\",outcome=\"INVALID_FIELDS\"}", 3.0),
    ] {
        assert_eq!(metric(&gateway, line).await.unwrap(), expected, "{line}");
    }
}

#[tokio::test]
async fn duplicates_in_a_batch_have_one_id_and_one_row() {
    let world = World::new("batch_repeats").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    let ids = ["1", "2", "1", "1", "3", "2"];
    let results = batch(&client, &ids.map(|id| msg("alice", "bob", id, "x"))).await.unwrap();
    for (id, entry) in ids.iter().zip(&results) {
        assert_eq!(result(entry).unwrap().msg_id, msg_id_of(&msg("alice", "bob", id, "x")).to_string());
    }
    let without_id = batch(&client, &["", "", ""].map(|id| msg("alice", "carol", id, "x"))).await.unwrap();
    let ids_without_client_id: BTreeSet<String> =
        without_id.iter().map(|entry| result(entry).unwrap().msg_id).collect();
    assert_eq!(ids_without_client_id.len(), 3, "without a client_msg_id each is a message of its own");
    world.wait_for_all_committed().await;
    let rows: Vec<_> = world.rows().await.into_iter().map(|row| (row.recv_id, row.seq, row.client_msg_id)).collect();
    let expected =
        [("bob", 1, "1"), ("bob", 2, "2"), ("bob", 3, "3"), ("carol", 1, ""), ("carol", 2, ""), ("carol", 3, "")];
    assert_eq!(rows, expected.map(|(inbox, seq, id)| (inbox.to_owned(), seq, id.to_owned())));
}

#[tokio::test]
async fn batches_of_many_senders_keep_each_senders_order() {
    let world = World::new("batch_order").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    const SENDERS: usize = 8;
    const BATCHES: usize = 10;
    const EACH: usize = 100;
    join_all((0..SENDERS).map(async |sender| {
        for round in 0..BATCHES {
            let ids = round * EACH..(round + 1) * EACH;
            let msgs: Vec<Msg> = ids
                .map(|i| msg(&format!("sender-{sender}"), &format!("inbox-{}", i % 3), &i.to_string(), "x"))
                .collect();
            let results = batch(&client, &msgs).await.unwrap();
            assert!(results.iter().all(|entry| result(entry).is_ok()));
        }
    }))
    .await;
    world.wait_for_rows((SENDERS * BATCHES * EACH) as i64).await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    for inbox in 0..3 {
        for sender in 0..SENDERS {
            let (recv_id, send_id) = (format!("inbox-{inbox}"), format!("sender-{sender}"));
            let matching = rows.iter().filter(|row| row.recv_id == recv_id && row.send_id == send_id);
            let found: Vec<usize> = matching.map(|row| row.client_msg_id.parse().unwrap()).collect();
            let sent: Vec<usize> = (inbox..BATCHES * EACH).step_by(3).collect();
            assert_eq!(found, sent, "P3: of {send_id} in {recv_id}");
        }
    }
}

#[tokio::test]
async fn batch_above_a_limit_fails_as_a_whole_and_sends_nothing() {
    let world = World::new("batch_refused").await;
    let limited = world.gateway("few", |spec| {
        spec.env("MAX_INFLIGHT_MSGS", 5).env("MAX_INFLIGHT_BYTES", "1200KiB").env("DEADLINE_MARGIN", "10s")
    });
    limited.service.start().await.unwrap();
    let client = client(&limited).await;
    let msgs = |count: usize| vec![msg("alice", "bob", "1", "x"); count];
    let call = async |msgs, wait_for| client.clone().batch_send_msg(BatchSendMsgRequest { msgs, wait_for }).await;
    let details = assert_failed(call(Vec::new(), 7).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["msgs", "wait_for"]);
    let details = assert_failed(call(msgs(1001), 0).await, Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(fields(&details), ["msgs"]);
    // Each message is below the limit of a request, and together they are above it.
    let large = vec![msg("alice", "bob", "1", vec![0; 1_000_000]); 5];
    assert_failed(call(large, 0).await, Code::ResourceExhausted, "TOO_LARGE");
    let mut request = Request::new(BatchSendMsgRequest { msgs: msgs(5), wait_for: 0 });
    request.set_timeout(Duration::from_secs(9));
    let rejected = client.clone().batch_send_msg(request).await;
    assert_failed(rejected, Code::DeadlineExceeded, "DEADLINE_TOO_SHORT");
    assert_eq!(world.end_offsets().await, [0; 4], "something was sent");
    wait_in_flight(&limited, 0).await;
    // A batch above MAX_INFLIGHT_MSGS is accepted if nothing else is in flight: otherwise it could never be sent.
    let mut fits = msgs(11);
    fits[..3].fill(Msg::default());
    assert_eq!(
        call(fits, 0).await.unwrap().into_inner().results.iter().filter(|entry| result(entry).is_ok()).count(),
        8
    );

    let closed = world.gateway("closed", |spec| spec.env("TOPIC_PARTITIONS", 5));
    closed.service.launch().unwrap();
    let closed = super::calls::client(&closed).await;
    assert_not_sent(batch(&closed, &msgs(2)).await, Code::Unavailable);
    assert_eq!(world.end_offsets().await.iter().sum::<i64>(), 8);
}

#[tokio::test]
async fn batch_response_full_of_errors_stays_below_4_mib() {
    let world = World::new("batch_errors").await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let attributes = (0..90).map(|i| (format!("\0{i:0>25}"), String::new())).collect();
    let bad = vec![Msg { attributes, ..Msg::default() }; 1000];
    let request = BatchSendMsgRequest { msgs: bad, wait_for: 0 };
    assert!(request.encoded_len() < 4 << 20);
    let response: BatchSendMsgResponse = client.clone().batch_send_msg(request).await.unwrap().into_inner();
    assert!(response.encoded_len() < 4 << 20, "{}", response.encoded_len());
    for entry in &response.results {
        let details = assert_failed(result(entry), Code::InvalidArgument, "INVALID_FIELDS");
        assert!(details.bad_request().unwrap().field_violations.last().unwrap().description.starts_with("and "));
    }
    assert_eq!(world.end_offsets().await, [0; 4], "something was sent");
}

/// One of three brokers is frozen. The outcome of the entries in its partitions is unknown, that of the others is OK.
#[tokio::test]
async fn batch_reports_unknown_outcomes_per_entry() {
    let folder = tempfile::Builder::new().prefix("msg-it-batch-unknown-").tempdir().unwrap();
    let mut options = StackOptions::new(folder.path());
    options.brokers = 3;
    let stack = Stack::reserve(options).await.unwrap();
    stack.launch().await.unwrap();
    let world = World::on(&stack, "batch_unknown", 6);
    stack.postgres().create_database("batch_unknown").await.unwrap();
    let leaders = topic_without_replicas(&world).await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_WAIT", "2s").env("ALLOW_UNSAFE_TOPIC", "true"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let inbox = |i: usize| format!("inbox-{}", i % 40);
    let first: Vec<Msg> = (0..40).map(|i| msg("alice", &inbox(i), &format!("before {i}"), "x")).collect();
    assert!(batch(&client, &first).await.unwrap().iter().all(|entry| result(entry).is_ok()));
    assert!(stack.kafka().signal_broker(3, Signal::Stop).unwrap());
    let msgs: Vec<Msg> = (0..200).map(|i| msg("alice", &inbox(i), &i.to_string(), "x")).collect();
    let results = batch(&client, &msgs).await.unwrap();
    let (mut ok, mut unknown) = (0, 0);
    for (msg, entry) in msgs.iter().zip(&results) {
        let frozen = leaders[usize::try_from(partition_for(msg.recv_id.as_bytes(), 6)).unwrap()] == 3;
        if frozen {
            let details = assert_failed(result(entry), Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
            let metadata = &details.error_info().unwrap().metadata;
            assert_eq!(metadata["msg_id"], msg_id_of(msg).to_string());
            assert!(metadata["settles_by"].ends_with('Z'));
            unknown += 1;
        } else {
            result(entry).unwrap();
            ok += 1;
        }
    }
    assert!(ok > 0 && unknown > 0, "{ok} OK, {unknown} unknown");
    // The entries without a delivery report keep their permits.
    wait_in_flight(&gateway, unknown).await;
    assert!(stack.kafka().signal_broker(3, Signal::Cont).unwrap());
    eventually("every unknown outcome is settled", async || {
        let results = batch(&client, &msgs).await?;
        Ok(results.iter().map(result).collect::<Result<Vec<_>, _>>()?)
    })
    .await;
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 240, "P1, P2");
    world.assert_ordered_without_gaps().await;
    stack.stop().await;
}

/// Creates a topic without replicas; returns the leader of each partition.
async fn topic_without_replicas(world: &World) -> Vec<i32> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", world.brokers()).create().unwrap();
    let topic = NewTopic::new(world.topic(), world.partitions, TopicReplication::Fixed(1));
    let topic = topic.set("min.insync.replicas", "1").set("max.message.bytes", "2097152");
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap().pop().unwrap().unwrap();
    let (brokers, topic, partitions) = (world.brokers().to_owned(), world.topic().to_owned(), world.partitions);
    let read_leaders = move || -> Option<Vec<i32>> {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(30)).ok()?;
        let mut leaders: Vec<_> =
            metadata.topics()[0].partitions().iter().map(|one| (one.id(), one.leader())).collect();
        leaders.sort_unstable();
        let known = leaders.len() == usize::try_from(partitions).unwrap() && leaders.iter().all(|one| one.1 > 0);
        known.then(|| leaders.into_iter().map(|one| one.1).collect())
    };
    eventually("each partition has a leader", async || {
        tokio::task::spawn_blocking(read_leaders.clone()).await?.ok_or_else(|| "not yet".into())
    })
    .await
}
