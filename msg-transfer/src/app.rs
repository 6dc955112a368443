//! The service: brings the schema up, starts the lanes and the consumer's thread, and ends them in order.

use std::num::NonZeroUsize;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use deadpool_postgres::Pool;
use msg_common::admin::{self, Readiness};
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::consumer::context::Context;
use crate::consumer::driver::{Deadlines, Driver, Parts};
use crate::consumer::lookup::Lookup;
use crate::consumer::progress::ProgressKeeper;
use crate::consumer::{self, Fatal};
use crate::lane::store::Store;
use crate::lane::{BatchLimits, Lane};
use crate::machine::{Machine, Settings};
use crate::schema::{self, SchemaError};
use crate::{metrics, session};

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be used after all.
    #[error("{0}")]
    Config(String),
    /// The admin port.
    #[error("admin port: {0}")]
    Admin(std::io::Error),
    /// The schema is not this build's and will not become so.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The Kafka client could not be made.
    #[error("kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// The consumer cannot go on.
    #[error(transparent)]
    Consumer(#[from] Fatal),
    /// A thread ended in a panic.
    #[error("the {0} ended without saying why")]
    Panicked(&'static str),
}

/// Runs until `shutdown`: then drains, commits, leaves the group, and comes back.
pub async fn run(config: Config, admin: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    metrics::describe();
    let readiness = Readiness::waiting_for(&["schema", "group"]);
    let done = CancellationToken::new();
    let _end_all = done.clone().drop_guard();
    let mut admin = tokio::spawn(admin::serve(admin, readiness.clone(), done.clone()));
    let served = tokio::select! {
        served = serve(&config, &readiness, &shutdown) => served,
        ended = &mut admin => Err(match ended {
            Ok(Ok(())) | Err(_) => Error::Panicked("admin port"),
            Ok(Err(error)) => Error::Admin(error),
        }),
    };
    readiness.not_ready("service", "stopping");
    served
}

async fn serve(config: &Config, readiness: &Readiness, shutdown: &CancellationToken) -> Result<(), Error> {
    let database = &config.database;
    // One for each lane, and two for what comes besides: progress rows, starts.
    let size = config.lanes.lanes + 2;
    let pool = database.pool("msg-transfer", size, &session::settings(database)).map_err(Error::Config)?;
    let prepared = shutdown.run_until_cancelled(prepare_schema(config, &pool, readiness)).await;
    match prepared {
        None => return Ok(()),
        Some(prepared) => prepared?,
    }
    let (events, received) = std_mpsc::channel();
    let give_up = CancellationToken::new();
    let _abandon_lanes = give_up.clone().drop_guard();
    let progress = ProgressKeeper::new(pool.clone());
    let (lanes, senders) = start_lanes(config, &pool, &progress, &events, readiness, &give_up);
    let topic = config.kafka.kafka_topic.clone();
    let parts = Parts {
        topic: topic.clone(),
        lanes: senders,
        events: received,
        report: events,
        lookup: Lookup::new(&config.lookup_config(), progress.clone(), topic)?,
        progress,
        runtime: Handle::current(),
        readiness: readiness.clone(),
        deadlines: Deadlines { drain: config.consumer.drain_timeout, commit: Duration::from_secs(5) },
        start_at_oldest: config.consumer.start_at_oldest,
    };
    let machine = Machine::new(Settings {
        commit_records: config.consumer.commit_records,
        commit_interval: u64::try_from(config.consumer.commit_interval.as_millis()).unwrap_or(u64::MAX),
        max_inflight_bytes: config.consumer.max_inflight_bytes,
        max_inflight_records: config.consumer.max_inflight_records,
    });
    let context = Context::new(Driver::new(parts, machine));
    let consumer: BaseConsumer<Context> = config.consumer_config().create_with_context(context)?;
    consumer.subscribe(&[&config.kafka.kafka_topic])?;
    let ended = start_thread(consumer, shutdown.clone());
    ended.await.map_err(|_| Error::Panicked("consumer's thread"))??;
    // What the consumer has let go of is fenced or stored: nothing in the lanes is worth waiting for.
    give_up.cancel();
    lanes.join_all().await;
    Ok(())
}

/// Waits for the database as long as it takes.
async fn prepare_schema(config: &Config, pool: &Pool, readiness: &Readiness) -> Result<(), SchemaError> {
    let mut backoff = Backoff::default();
    loop {
        let prepared = if config.no_migrate {
            schema::check(pool).await
        } else {
            schema::migrate(pool).await.map(|applied| tracing::info!(?applied, "schema is up to date"))
        };
        match prepared {
            Ok(()) => break,
            Err(error @ (SchemaError::Newer { .. } | SchemaError::Migration(_))) => return Err(error),
            // Wrong password, missing database: somebody may mend it while we wait, and the reason is in sight.
            Err(error) => {
                if error.is_transient() {
                    tracing::warn!(%error, "the database is not there yet");
                } else {
                    tracing::error!(%error, "the database refuses us, will be tried again");
                }
                readiness.not_ready("schema", error.to_string());
            }
        }
        backoff.wait().await;
    }
    readiness.ready("schema");
    Ok(())
}

fn start_lanes(
    config: &Config,
    pool: &Pool,
    progress: &ProgressKeeper,
    events: &std_mpsc::Sender<crate::machine::Event>,
    readiness: &Readiness,
    give_up: &CancellationToken,
) -> (JoinSet<()>, Vec<mpsc::Sender<crate::lane::item::Item>>) {
    let options = &config.lanes;
    let cached = NonZeroUsize::new(options.cached_inboxes.get() / options.lanes).unwrap_or(NonZeroUsize::MIN);
    let mut lanes = JoinSet::new();
    let mut senders = Vec::new();
    for number in 0..options.lanes {
        // All records in flight may have one key. The consumer stops at the limit; a chunk may go over it.
        let (sender, waiting) = mpsc::channel(config.consumer.max_inflight_records + 2 * consumer::raw::CHUNK);
        senders.push(sender);
        let lane = Lane {
            number,
            waiting,
            events: events.clone(),
            store: Store::new(pool.clone(), progress.clone(), config.kafka.kafka_topic.clone(), cached),
            limits: BatchLimits {
                records: options.batch_records,
                bytes: options.batch_bytes,
                interval: options.batch_interval,
                attempt: 2 * config.database.database_statement_timeout,
            },
            readiness: readiness.clone(),
            give_up: give_up.clone(),
        };
        lanes.spawn(lane.run());
    }
    (lanes, senders)
}

fn start_thread(consumer: BaseConsumer<Context>, stop: CancellationToken) -> oneshot::Receiver<Result<(), Fatal>> {
    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("consumer".into())
        .spawn(move || {
            let _ = tell.send(consumer::run(consumer, &stop));
        })
        .expect("the system has a thread for us");
    ended
}
