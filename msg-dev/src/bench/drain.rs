//! The transfer alone: a backlog is written straight to the topic, then the transfer is started and timed.

use std::time::{Duration, Instant};

use msg_common::partition::partition_for;
use msg_common::proto::{Msg, SessionType};
use msg_common::{id, record};
use msg_dev::stack::{Service, Stack};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{Error, Load, PARTITIONS, TOPIC, counter, line, memory, rate, statement, until};

const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) async fn run(stack: &Stack, load: &Load) -> Result<(), Error> {
    stack.kafka().create_topic(TOPIC, PARTITIONS, &[]).await?;
    println!("{} messages of {} bytes to {} inboxes", load.messages, load.body, load.inboxes);
    let produced = tokio::task::block_in_place(|| backlog(stack.kafka().bootstrap(), load))?;
    line("librdkafka alone writes the backlog", format!("{:.0} records/s", rate(load.messages, produced)));

    let bare_url = stack.postgres().create_database("bare").await?;
    let migrate = stack.pipe(TOPIC, PARTITIONS, &bare_url).transfer("migrate")?;
    let migrate = Service::new(migrate.spec.arg("migrate"), stack.logs())?;
    migrate.launch()?;
    migrate.wait().await?;
    let bare = statement::run(&bare_url, load).await?;
    line("the bare statement, 4 connections", format!("{:.0} rows/s", rate(load.messages, bare)));
    // Or its rows would be written back while the transfer is timed.
    stack.postgres().connect(&bare_url).await?.batch_execute("TRUNCATE messages; CHECKPOINT").await?;

    let url = stack.postgres().create_database("drain").await?;
    let plan = stack.pipe(TOPIC, PARTITIONS, &url).transfer("transfer")?;
    let spec = load.settings()?.into_iter().fold(plan.spec, |spec, (name, value)| spec.env(name, value));
    let transfer = Service::new(spec, stack.logs())?;
    transfer.start().await?;
    // From the first row: starting is not draining.
    let stored = async || counter(&transfer, "msg_transfer_stored_messages_total").await;
    until("the first rows", PATIENCE, async || Ok(stored().await? > 0.0)).await?;
    let (begun, before) = (Instant::now(), stored().await?);
    until("all rows", PATIENCE, async || Ok(stored().await? >= load.messages as f64)).await?;
    let took = begun.elapsed();
    let drained = rate(load.messages - before as usize, took);
    line("the transfer drains", format!("{drained:.0} rows/s"));
    line("of the bare statement", format!("{:.0} %", 100.0 * drained / rate(load.messages, bare)));
    let (now, peak) = memory(&transfer)?;
    line("its resident memory", format!("{now:.0} MB, at its peak {peak:.0} MB"));
    transfer.stop().await;
    Ok(())
}

/// Writes the backlog; blocks.
fn backlog(brokers: &str, load: &Load) -> Result<Duration, Error> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "200000")
        .create()?;
    let bodies: Vec<bytes::Bytes> = (0..1000).map(|_| load.random_body().into()).collect();
    let begun = Instant::now();
    for n in 0..load.messages {
        let inbox = load.inbox(n);
        let msg = Msg {
            recv_id: inbox.clone(),
            send_id: "sender".into(),
            client_msg_id: n.to_string(),
            session_type: SessionType::Single.into(),
            content_type: "text/plain".into(),
            content: bodies[n % bodies.len()].clone(),
            attributes: Default::default(),
        };
        let msg_id = id::msg_id("sender", &inbox, &msg.client_msg_id);
        let value = record::encode(msg, msg_id, 1_700_000_000_000);
        let version = record::VERSION.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: record::VERSION_HEADER, value: Some(&version) });
        let partition = partition_for(inbox.as_bytes(), PARTITIONS);
        let mut next = BaseRecord::to(TOPIC).partition(partition).key(&inbox).payload(&value).headers(headers);
        while let Err((error, rejected)) = producer.send(next) {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                return Err(error.into());
            }
            producer.poll(Duration::from_millis(10));
            next = rejected;
        }
    }
    producer.flush(PATIENCE)?;
    Ok(begun.elapsed())
}
