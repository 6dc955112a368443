//! The transfer alone: writes a backlog directly to the topic, starts the transfer, and measures how long it needs.

use std::time::{Duration, Instant};

use msg_common::partition::partition_for;
use msg_common::proto::{Msg, SessionType};
use msg_common::{id, record};
use msg_stack::{Service, Stack};
use msg_transfer::lane::sql::ServerKind;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{Error, Load, PARTITIONS, TOPIC, line, memory, rate, settings, statement, until};

const TIMEOUT: Duration = Duration::from_secs(600);

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
    let bare = statement::run(&bare_url, load, ServerKind::Single).await?;
    line("the bare statement, 4 connections", format!("{:.0} rows/s", rate(load.messages, bare)));
    stack.postgres().connect(&bare_url).await?.batch_execute("TRUNCATE messages; CHECKPOINT").await?;
    let returned = statement::run(&bare_url, load, ServerKind::Citus).await?;
    line("the same, each row returned (ADR 28)", format!("{:.0} rows/s", rate(load.messages, returned)));
    // Empty the table first: the server would write its rows back to disk while the transfer is measured.
    stack.postgres().connect(&bare_url).await?.batch_execute("TRUNCATE messages; CHECKPOINT").await?;

    let runs = if load.variants { variants(load) } else { vec![Variant::new("transfer", "the transfer drains")] };
    for variant in runs {
        let drained = drain(stack, load, &variant).await?;
        line("of the bare statement", format!("{:.0} %", 100.0 * drained / rate(load.messages, bare)));
    }
    Ok(())
}

/// One run of the transfer over the backlog.
struct Variant {
    name: &'static str,
    label: &'static str,
    settings: Vec<(&'static str, &'static str)>,
    /// The statements that an operator has run on the table.
    sql: &'static str,
    /// The path of another build's msg-transfer.
    binary: Option<String>,
}

impl Variant {
    fn new(name: &'static str, label: &'static str) -> Self {
        Variant { name, label, settings: Vec::new(), sql: "", binary: None }
    }
}

/// Returns the runs that show what each guard costs on the same backlog: this build, this build with one more guard,
/// and another build.
fn variants(load: &Load) -> Vec<Variant> {
    let limit = ("DEAD_LETTER_LIMIT", "1000000000");
    let mut variants = vec![
        Variant::new("first", "the transfer drains"),
        Variant { settings: vec![("SEQ_GUARD", "on")], ..Variant::new("guard", "the same with SEQ_GUARD=on") },
        Variant {
            settings: vec![limit],
            sql: "ALTER TABLE messages ADD CHECK (kafka_offset % 1000 <> 7)",
            ..Variant::new("rejected", "the same, a constraint rejects 1 row in 1,000")
        },
        Variant {
            sql: "ALTER TABLE messages ADD CHECK (seq <> 0)",
            ..Variant::new("check", "the same with a constraint that rejects no row")
        },
        Variant::new("again", "this build once more"),
    ];
    if let Some(binary) = &load.against {
        variants.push(Variant { binary: Some(binary.clone()), ..Variant::new("against", "the other build") });
    }
    variants
}

/// Drains the backlog, and returns rows and dead letters a second.
async fn drain(stack: &Stack, load: &Load, variant: &Variant) -> Result<f64, Error> {
    let url = stack.postgres().create_database(&format!("drain_{}", variant.name)).await?;
    let plan = stack.pipe(TOPIC, PARTITIONS, &url).transfer(variant.name)?;
    let mut spec = plan.spec.env("GROUP_ID", variant.name);
    for (name, value) in settings(&load.set)?.into_iter().chain(variant.settings.iter().copied()) {
        spec = spec.env(name, value);
    }
    if let Some(binary) = &variant.binary {
        spec.binary.clone_from(binary);
    }
    if !variant.sql.is_empty() {
        let migrate = Service::new(spec.clone().arg("migrate"), stack.logs())?;
        migrate.launch()?;
        migrate.wait().await?;
        stack.postgres().connect(&url).await?.batch_execute(variant.sql).await?;
    }
    let transfer = Service::new(spec, stack.logs())?;
    transfer.start().await?;
    // Start the measurement at the first row: starting is not draining.
    let stored = async || {
        let rows = transfer.metric("msg_transfer_stored_messages_total").await?;
        Ok::<f64, Error>(rows + transfer.metric("msg_transfer_dead_letters_total").await?)
    };
    until("the first rows", TIMEOUT, async || Ok(stored().await? > 0.0)).await?;
    let (started, before) = (Instant::now(), stored().await?);
    until("all rows", TIMEOUT, async || Ok(stored().await? >= load.messages as f64)).await?;
    let duration = started.elapsed();
    let drained = rate(load.messages - before as usize, duration);
    line(variant.label, format!("{drained:.0} rows/s"));
    let (now, peak) = memory(&transfer);
    line("its resident memory", format!("{now:.0} MB, at its peak {peak:.0} MB"));
    transfer.stop().await;
    // Empty the table: the server would write its rows back to disk while the next run is measured.
    stack.postgres().connect(&url).await?.batch_execute("TRUNCATE messages; CHECKPOINT").await?;
    Ok(drained)
}

/// Writes the backlog, and returns how long that took. Blocks.
fn backlog(brokers: &str, load: &Load) -> Result<Duration, Error> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "200000")
        .create()?;
    let bodies: Vec<bytes::Bytes> = (0..1000).map(|_| load.random_body().into()).collect();
    let started = Instant::now();
    for n in 0..load.messages {
        let inbox = load.inbox(n);
        let msg = Msg {
            recv_id: inbox.clone(),
            send_id: "sender".into(),
            client_msg_id: n.to_string(),
            session_type: SessionType::Single.into(),
            content_type: "text/plain".into(),
            content: bodies[n % bodies.len()].clone(),
            ..Msg::default()
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
    producer.flush(TIMEOUT)?;
    Ok(started.elapsed())
}
