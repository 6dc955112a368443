//! The transfer alone: writes a backlog directly to the topic, starts the transfer, and measures how long it needs. The
//! limits are the bare statement and COPY on the same server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use msg_common::proto::{Msg, SessionType};
use msg_stack::{Service, Stack};

use super::cost::Watched;
use super::figure::Output;
use super::peers::debezium::Sink;
use super::peers::jetstream::{Server, Sync};
use super::peers::{self, TIME};
use super::rounds::{self, Round, Side};
use super::statement::{self, Statement};
use super::{Error, Load, TOPIC, librdkafka, line, memory, rate, settings, until};

const TIMEOUT: Duration = Duration::from_secs(600);
/// Maximum number of different bodies in the backlog, and of their bytes.
const BODIES: usize = 1000;
const BODIES_BYTES: usize = 16 << 20;

/// What a side does with the backlog.
enum Way<'a> {
    /// Writes the same rows without the backlog.
    Bare(Statement),
    Transfer(Variant<'a>),
    Debezium(Sink),
}

pub(crate) async fn run(stack: &Stack, load: &Load, output: &mut Output) -> Result<(), Error> {
    stack.kafka().create_topic(TOPIC, load.partitions, &[]).await?;
    println!("{} messages of {} bytes to {} inboxes", load.messages, load.body, load.inboxes);
    let produced = tokio::task::block_in_place(|| backlog(stack.kafka().bootstrap(), load, "sender"))?;
    line("librdkafka alone writes the backlog", format!("{:.0} records/s", rate(load.messages, produced)));

    let bare_url = stack.postgres().create_database("bare").await?;
    migrate(stack, load, &bare_url).await?;

    let mut sides = vec![
        Side::limit("the bare statement", Way::Bare(Statement::Insert)),
        Side::limit("the same, each row returned", Way::Bare(Statement::InsertReturning)),
        Side::limit("COPY of the same rows", Way::Bare(Statement::Copy)),
    ];
    let variants = if load.variants { variants(load) } else { vec![Variant::new("msg-transfer", "transfer")] };
    sides.extend(variants.into_iter().map(|variant| Side::system(variant.label, Way::Transfer(variant))));
    let jetstream = if load.peers { Some(Server::start(stack, Sync::Default).await?) } else { None };
    if let Some(server) = &jetstream {
        server.copy_topic(stack, load).await?;
        sides.extend(peers(server, load)?.into_iter().map(|peer| Side::limit(peer.label, Way::Transfer(peer))));
        sides.push(Side::limit("Debezium's JDBC sink", Way::Debezium(Sink::fetch()?)));
    }
    let mut started = 0;
    let series = rounds::measure(load.rounds, &sides, async |way| match way {
        Way::Bare(statement) => bare(stack, &bare_url, load, *statement).await,
        Way::Transfer(variant) => {
            started += 1;
            drain(stack, load, variant, &format!("{}_{started}", variant.name)).await
        }
        Way::Debezium(sink) => {
            started += 1;
            sink.drain(stack, load, &format!("debezium_{started}")).await
        }
    });
    output.add("drain", None, &series.await?);
    if let Some(server) = &jetstream {
        server.service.stop().await;
    }
    Ok(())
}

/// One run of the transfer over the backlog.
struct Variant<'a> {
    name: &'static str,
    label: &'static str,
    settings: Vec<(&'static str, String)>,
    /// The statements that an operator has run on the table.
    sql: &'static str,
    /// The path of another build's msg-transfer, or of a peer.
    binary: Option<String>,
    /// Stop after this time, although the backlog is not drained.
    stop_after: Option<Duration>,
    /// Another service that does a part of the work.
    also: Option<&'a Service>,
}

impl Variant<'_> {
    fn new(name: &'static str, label: &'static str) -> Self {
        Variant { name, label, settings: Vec::new(), sql: "", binary: None, stop_after: None, also: None }
    }
}

/// Returns the runs that show what each guard costs on the same backlog: this build, this build with one more guard,
/// and another build.
fn variants(load: &Load) -> Vec<Variant<'static>> {
    let limit = ("DEAD_LETTER_LIMIT", "1000000000".to_owned());
    let mut variants = vec![
        Variant::new("msg-transfer", "transfer"),
        Variant { settings: vec![("SEQ_GUARD", "on".to_owned())], ..Variant::new("guard", "with SEQ_GUARD=on") },
        Variant {
            settings: vec![limit],
            sql: "ALTER TABLE messages ADD CHECK (kafka_offset % 1000 <> 7)",
            ..Variant::new("rejected", "a constraint rejects 1 in 1,000")
        },
        Variant {
            sql: "ALTER TABLE messages ADD CHECK (seq <> 0)",
            ..Variant::new("check", "a constraint rejects no row")
        },
    ];
    if let Some(binary) = &load.against {
        variants.push(Variant { binary: Some(binary.clone()), ..Variant::new("against", "the other build") });
    }
    variants
}

/// Returns the consumers in Go. They have the transfer's settings and its metric of stored rows.
fn peers<'a>(jetstream: &'a Server, load: &Load) -> Result<[Variant<'a>; 3], Error> {
    let binary = peers::in_go()?;
    let peer = |name: &'static str, label| Variant {
        settings: vec![("PEER", name.to_owned())],
        // Create the tables first, which a peer cannot.
        sql: "SELECT 1",
        binary: Some(binary.clone()),
        stop_after: Some(TIME),
        ..Variant::new(name, label)
    };
    let mut from_jetstream = peer("jetstream", "Go, in batches from NATS JetStream");
    from_jetstream.settings.extend([("NATS_URL", jetstream.url()), ("PARTITIONS", load.partitions.to_string())]);
    from_jetstream.also = Some(&jetstream.service);
    Ok([peer("single", "Go, a SELECT and an INSERT a record"), peer("batched", "Go, in batches"), from_jetstream])
}

/// Writes the rows with the bare statement.
async fn bare(stack: &Stack, url: &str, load: &Load, statement: Statement) -> Result<Round, Error> {
    let watched = Watched::new(stack, &[]);
    let clients = statement::connect(url).await?;
    let meter = watched.start();
    let duration = statement::run(&clients, load, statement).await?;
    let costs = meter.stop(load.messages as f64);
    drop(clients);
    empty(stack, url).await?;
    Ok(Round::new(rate(load.messages, duration), costs))
}

/// Drains the backlog into a new database of this name.
async fn drain(stack: &Stack, load: &Load, variant: &Variant<'_>, name: &str) -> Result<Round, Error> {
    let url = stack.postgres().create_database(name).await?;
    let plan = stack.pipe(TOPIC, load.partitions, &url).transfer(variant.name)?;
    let mut spec = plan.spec.env("GROUP_ID", name);
    let set = load.set();
    for (name, value) in
        settings(&set)?.into_iter().chain(variant.settings.iter().map(|(name, value)| (*name, value.as_str())))
    {
        spec = spec.env(name, value);
    }
    if !variant.sql.is_empty() {
        migrate(stack, load, &url).await?;
        stack.postgres().connect(&url).await?.batch_execute(variant.sql).await?;
    }
    if let Some(binary) = &variant.binary {
        spec.binary.clone_from(binary);
    }
    let transfer = Service::new(spec, stack.logs())?;
    let round = until_drained(stack, &transfer, variant.also, load.messages, variant.stop_after).await?;
    line(&format!("{name}: peak memory"), format!("{:.0} MB", memory(&transfer).1));
    transfer.stop().await;
    empty(stack, &url).await?;
    Ok(round)
}

/// Creates the tables of this database.
pub(crate) async fn migrate(stack: &Stack, load: &Load, url: &str) -> Result<(), Error> {
    let plan = stack.pipe(TOPIC, load.partitions, url).transfer("migrate")?;
    let migrate = Service::new(plan.spec.arg("migrate"), stack.logs())?;
    migrate.launch()?;
    match migrate.wait().await? {
        status if status.success() => Ok(()),
        status => Err(format!("msg-transfer migrate: {status}").into()),
    }
}

/// Starts a transfer or a peer, and measures it until these messages are stored, or until `stop_after`. The cost of the
/// service `also` is measured too.
pub(crate) async fn until_drained(
    stack: &Stack,
    transfer: &Service,
    also: Option<&Service>,
    messages: usize,
    stop_after: Option<Duration>,
) -> Result<Round, Error> {
    transfer.start().await?;
    // Start the measurement at the first row: starting is not draining.
    let stored = async || {
        let rows = transfer.metric("msg_transfer_stored_messages_total").await?;
        Ok::<f64, Error>(rows + transfer.metric("msg_transfer_dead_letters_total").await?)
    };
    until("the first rows", TIMEOUT, async || Ok(stored().await? > 0.0)).await?;
    let services: Vec<&Service> = [transfer].into_iter().chain(also).collect();
    until_stored(&Watched::new(stack, &services), messages, stop_after, stored).await
}

/// Measures from now on until these messages are stored, or until `stop_after`.
pub(crate) async fn until_stored(
    watched: &Watched,
    messages: usize,
    stop_after: Option<Duration>,
    stored: impl AsyncFn() -> Result<f64, Error>,
) -> Result<Round, Error> {
    let (meter, started, before) = (watched.start(), Instant::now(), stored().await?);
    let mut after = before;
    until("all rows", TIMEOUT, async || {
        after = stored().await?;
        Ok(after >= messages as f64 || stop_after.is_some_and(|time| started.elapsed() > time))
    })
    .await?;
    let (duration, count) = (started.elapsed(), (after - before) as usize);
    Ok(Round::new(rate(count, duration), meter.stop(count as f64)))
}

/// Empties the table: the server would write its rows back to disk while the next round is measured.
async fn empty(stack: &Stack, url: &str) -> Result<(), Error> {
    Ok(stack.postgres().connect(url).await?.batch_execute("TRUNCATE messages; CHECKPOINT").await?)
}

/// Writes the backlog of this sender, and returns how long that took. Blocks.
pub(crate) fn backlog(brokers: &str, load: &Load, sender: &str) -> Result<Duration, Error> {
    let bodies: Vec<Bytes> = (0..load.within(BODIES_BYTES, BODIES)).map(|_| load.random_body().into()).collect();
    let mut settings = librdkafka::settings(brokers);
    settings.set("linger.ms", "5").set("queue.buffering.max.messages", "200000");
    librdkafka::write(&settings, load, |n| Msg {
        recv_id: load.inbox(n),
        send_id: sender.to_owned(),
        client_msg_id: n.to_string(),
        session_type: SessionType::Single.into(),
        content_type: "text/plain".into(),
        content: bodies[n % bodies.len()].clone(),
        ..Msg::default()
    })
}
