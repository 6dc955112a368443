//! Calls that wait for STORED, and the three ways to send: single calls, batches and streams, each until Kafka has
//! every message. The limit is librdkafka alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use msg_common::proto::send_result::Result as Outcome;
use msg_common::proto::{
    BatchSendMsgRequest, SendMsgRequest, SendResult, StreamSendEntry, StreamSendMsgRequest, WaitFor,
};
use msg_stack::Stack;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tokio::sync::mpsc;

use super::callers::{self, Client, Measured, Token, msg};
use super::{Error, Load, PARTITIONS, TOPIC, line, memory, rate, start};

/// Messages of a batch, and of one request on a stream.
const BATCH: usize = 100;
const BATCH_CALLERS: usize = 32;
const STREAMS: usize = 8;
/// Maximum number of messages in flight on a stream.
const WINDOW: usize = 2000;
const STORED_CALLERS: usize = 64;

pub(crate) async fn run(stack: &Stack, load: &Load) -> Result<(), Error> {
    let services = start(stack, "send", &load.set).await?;
    let (transfer, sender) = (&services.transfer, &services.gateway);
    println!("{} messages of {} bytes to {} inboxes", load.messages, load.body, load.inboxes);

    let load = &Arc::new(load.clone());
    let clients = callers::clients(callers::connect(&services).await?, &Token::default());
    for (callers, messages) in [(1, 500), (STORED_CALLERS, load.messages / 20)] {
        let stored = unary(&clients, load, messages, callers, WaitFor::Stored).await?;
        let what = format!("SendMsg until stored, {callers} callers");
        line(&what, format!("{:.0} messages/s, {}", stored.rate, stored.quantiles()));
    }
    line("peak memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", memory(sender).1, memory(transfer).1));
    // Stop the transfer: the rest measures only the path into Kafka.
    transfer.stop().await;
    let limit = produce(stack, load)?;
    line("librdkafka alone", format!("{limit:.0} messages/s"));
    let single = unary(&clients, load, load.messages / 5, load.callers, WaitFor::Accepted).await?;
    let what = format!("SendMsg, {} callers", load.callers);
    line(&what, format!("{:.0} messages/s, {}", single.rate, single.quantiles()));
    let batches = batches(&clients, load).await?;
    let what = format!("BatchSendMsg of {BATCH}, {BATCH_CALLERS} callers");
    let times = batches.rate / single.rate;
    line(&what, format!("{:.0} messages/s, {times:.1} x SendMsg, {}", batches.rate, batches.quantiles()));
    let streams = streams(&clients, load).await?;
    let what = format!("StreamSendMsg, {STREAMS} streams");
    line(&what, format!("{streams:.0} messages/s, {:.1} x SendMsg", streams / single.rate));
    line(
        "of librdkafka alone, batches and streams",
        format!("{:.0} %, {:.0} %", 100.0 * batches.rate / limit, 100.0 * streams / limit),
    );

    line("peak memory, gateway", format!("{:.0} MB", memory(sender).1));
    sender.stop().await;
    Ok(())
}

/// Measures the limit: librdkafka writes the same records with the same acks and linger, without a gateway.
fn produce(stack: &Stack, load: &Load) -> Result<f64, Error> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", stack.kafka().bootstrap())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "40000")
        .create()?;
    let body = Bytes::from(load.random_body());
    let started = Instant::now();
    for n in 0..load.messages {
        let msg = msg(load, &body, "limit", n);
        let id = msg_common::id::msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id);
        let key = msg.recv_id.clone();
        let value = msg_common::record::encode(msg, id, 1);
        let partition = msg_common::partition::partition_for(key.as_bytes(), PARTITIONS);
        let headers = rdkafka::message::OwnedHeaders::new()
            .insert(rdkafka::message::Header { key: msg_common::record::VERSION_HEADER, value: Some("1") });
        let mut record = BaseRecord::to(TOPIC).partition(partition).key(&key).payload(&value).headers(headers);
        // Retry when the queue is full.
        while let Err((error, rejected)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(1));
            record = rejected;
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(rate(load.messages, started.elapsed()))
}

/// Sends single messages, each with its own call.
pub(crate) async fn unary(
    clients: &[Client],
    load: &Arc<Load>,
    messages: usize,
    callers: usize,
    wait_for: WaitFor,
) -> Result<Measured, Error> {
    let (clients, load, body) = (clients.to_vec(), load.clone(), Bytes::from(load.random_body()));
    let sender = format!("{wait_for:?} {callers}");
    callers::run(callers, messages, 1, move |caller, n| {
        let mut client = clients[caller % clients.len()].clone();
        let msg = Some(msg(&load, &body, &sender, n));
        async move { client.send_msg(SendMsgRequest { msg, wait_for: wait_for.into() }).await.map(|_| ()) }
    })
    .await
}

pub(crate) async fn batches(clients: &[Client], load: &Arc<Load>) -> Result<Measured, Error> {
    let (clients, messages) = (clients.to_vec(), load.messages);
    let (load, body) = (load.clone(), Bytes::from(load.random_body()));
    callers::run(BATCH_CALLERS, messages, BATCH, move |caller, first| {
        let mut client = clients[caller % clients.len()].clone();
        let msgs = (first..first + BATCH).map(|n| msg(&load, &body, "batch", n)).collect();
        async move {
            let response = client.batch_send_msg(BatchSendMsgRequest { msgs, wait_for: 0 }).await?.into_inner();
            response.results.iter().try_for_each(accepted)
        }
    })
    .await
}

fn accepted(result: &SendResult) -> Result<(), Error> {
    match &result.result {
        Some(Outcome::Placement(_)) => Ok(()),
        other => Err(format!("not accepted: {other:?}").into()),
    }
}

pub(crate) async fn streams(clients: &[Client], load: &Arc<Load>) -> Result<f64, Error> {
    let body = Bytes::from(load.random_body());
    let started = Instant::now();
    let streams = (0..STREAMS).map(|stream| {
        let (mut client, body) = (clients[stream % clients.len()].clone(), body.clone());
        let load = load.clone();
        tokio::spawn(async move {
            let (requests, received) = mpsc::channel(4);
            let mine: Vec<usize> = (stream..load.messages).step_by(STREAMS).collect();
            let in_flight = tokio::sync::Semaphore::new(WINDOW);
            let (count, mut confirmed) = (mine.len(), 0);
            let requested = tokio_stream::wrappers::ReceiverStream::new(received);
            let send = async {
                for chunk in mine.chunks(BATCH) {
                    let permits = u32::try_from(chunk.len()).expect("a chunk is small");
                    in_flight.acquire_many(permits).await?.forget();
                    let entry = |n: &usize| StreamSendEntry {
                        correlation_id: *n as u64,
                        msg: Some(msg(&load, &body, "stream", *n)),
                    };
                    let entries = chunk.iter().map(entry).collect();
                    requests.send(StreamSendMsgRequest { entries, wait_for: 0 }).await?;
                }
                drop(requests);
                Ok::<_, Error>(())
            };
            let receive = async {
                let mut responses = client.stream_send_msg(requested).await?.into_inner();
                while let Some(response) = responses.message().await? {
                    confirmed += response.results.len();
                    in_flight.add_permits(response.results.len());
                    response.results.iter().filter_map(|result| result.result.as_ref()).try_for_each(accepted)?;
                }
                Ok::<_, Error>(())
            };
            tokio::try_join!(send, receive)?;
            if confirmed == count {
                Ok::<(), Error>(())
            } else {
                Err(format!("{confirmed} of {count} confirmed").into())
            }
        })
    });
    for ended in try_join_all(streams).await? {
        ended?;
    }
    Ok(rate(load.messages, started.elapsed()))
}
