//! The service: migrates the schema, starts the lanes and the consumer's thread, and ends them in order.

use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use machine::consumer::{Event, Limit, Machine, Settings};
use machine::driver::{Driver, Times};
use machine::{Millis, lane};
use msg_common::admin::{self, AdminError, AdminListener, Readiness};
use msg_common::config::SettingError;
use msg_common::error::{NO_THREAD, chain};
use msg_common::kafka::{ClientPurpose, FileChanges, FilesError, KafkaClient, RequestError, Role};
use msg_common::postgres::{Pool, Purpose};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::config::{Config, SeqGuard};
use crate::consumer::context::Context;
use crate::consumer::identity::{PreviousTopics, TopicIdentity};
use crate::consumer::io::{Explainer, Parts};
use crate::consumer::lookup::Lookup;
use crate::consumer::progress::ProgressStore;
use crate::consumer::stalls::{FetchSilence, Stalls};
use crate::consumer::{self, FatalError};
use crate::hints::Hints;
use crate::lag::LagReader;
use crate::lag::states::States;
use crate::lag::watchdog::Watchdog;
use crate::lane::connection::Connection;
use crate::lane::sql::ServerKind;
use crate::lane::{BatchLimits, Handle as LaneHandle, Lane};
use crate::schema::{self, SchemaError};
use crate::{metrics, session};

/// A record with fewer bytes is never dead-lettered because it is too large for the database's time or memory.
const HUGE: usize = 1 << 20;

/// The backoff between attempts to fetch a failing partition. The first attempt may fail because the leader has just
/// changed.
const FETCH_BACKOFF: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
/// How long a fetch has no further error until it has recovered, in milliseconds.
const FETCH_RECOVERY: Millis = 15_000;

/// The driver's times in milliseconds, except the drain timeout, which is a setting.
const TIMES: Times = Times { wait: 20, idle_wait: 100, drain: 0, last_commit: 5_000, commit: 10_000, check: 3_000 };

/// Why the service ended without a signal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The admin port could not be served.
    #[error("admin port")]
    Admin(#[source] AdminError),
    /// The schema does not fit this build, and waiting does not change that.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A Kafka client could not be created.
    #[error("kafka")]
    Kafka(#[from] RequestError),
    /// The files of the Kafka clients cannot be used.
    #[error("kafka")]
    KafkaFiles(#[from] FilesError),
    /// The Kafka client reported a fatal error.
    #[error(transparent)]
    Consumer(#[from] FatalError),
    /// The consumer's thread could not be started.
    #[error("{NO_THREAD}")]
    Thread(#[source] std::io::Error),
    /// A thread ended in a panic.
    #[error("the {0} ended in a panic; see the log, and restart the process")]
    Panicked(&'static str),
}

impl Error {
    /// Returns whether a client or its thread could not be created, which may succeed later.
    fn is_creation(&self) -> bool {
        matches!(self, Error::Kafka(RequestError::Create(_)) | Error::Thread(_))
    }
}

impl From<KafkaError> for Error {
    fn from(error: KafkaError) -> Self {
        Error::Kafka(RequestError::create(error))
    }
}

/// Runs until `shutdown` is cancelled. Then it drains, commits, leaves the group, and returns.
pub async fn run(config: Config, admin: AdminListener, shutdown: CancellationToken) -> Result<(), Error> {
    // Before metrics are described or counted.
    msg_common::telemetry::metrics();
    metrics::describe();
    let readiness = Readiness::waiting_for(&["schema", "group"]);
    let done = CancellationToken::new();
    let _end_all = done.clone().drop_guard();
    let mut admin = tokio::spawn(admin::serve(admin, config.admin_tls.files(), readiness.clone(), done.clone()));
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
    database.warn_if_exposed();
    let pool = database.pool("msg-transfer", config.pool_size(), &session::settings(database), Purpose::Write);
    let pool = pool?;
    let prepared = shutdown.run_until_cancelled(prepare_schema(config, &pool, readiness)).await;
    match prepared {
        None => return Ok(()),
        Some(prepared) => prepared?,
    }
    let Some(traits) = shutdown.run_until_cancelled(database_traits(config.lanes.seq_guard, &pool)).await else {
        return Ok(());
    };
    let previous = PreviousTopics::default();
    let (mut changes, following) =
        FileChanges::follow(&config.kafka, ClientPurpose::Consumer, Role::Consumer, shutdown.clone())?;
    let _following = AbortOnDropHandle::new(tokio::spawn(following));
    let refreshing = config.kafka.refresh_token(CancellationToken::new());
    let _refreshing = refreshing.map(|task| AbortOnDropHandle::new(tokio::spawn(task)));
    let mut backoff = Backoff::default();
    let mut started = false;
    loop {
        // The clients and lanes have a scope of their own, so that a restart clears their reasons and no other
        // component's.
        let round = readiness.scope();
        round.not_ready("group", "starting");
        readiness.ready("group");
        let served = serve_until_client_restart(config, &pool, traits, &previous, &mut changes, &round, shutdown).await;
        match served {
            // For example a file that librdkafka reads by itself and that is broken, or no thread is left. The process has
            // worked before, so it does not end.
            Err(error) if started && error.is_creation() => {
                let error = chain(&error);
                tracing::error!(error, "cannot create the kafka clients again, will be retried");
                readiness.not_ready("group", error);
                round.clear();
                shutdown.run_until_cancelled(backoff.wait()).await;
            }
            Ok(()) if !shutdown.is_cancelled() => {
                (started, backoff) = (true, Backoff::default());
                tracing::warn!("restarting kafka clients");
                metrics::client_restarted();
                readiness.not_ready("group", "restarting Kafka clients");
                round.clear();
            }
            served => return served,
        }
        if shutdown.is_cancelled() {
            return Ok(());
        }
    }
}

/// Runs until `shutdown`, or until the Kafka clients have to be restarted.
async fn serve_until_client_restart(
    config: &Config,
    pool: &Pool,
    database: DatabaseTraits,
    previous: &PreviousTopics,
    changes: &mut FileChanges,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let lag = LagReader::new(config, pool.clone())?;
    let states = States::default();
    let explainer = Explainer::new(readiness.clone());
    let watchdog = Watchdog {
        reader: lag,
        states: states.clone(),
        readiness: readiness.clone(),
        explainer: explainer.clone(),
        topic: config.kafka.kafka_topic.clone(),
        group: config.consumer.group_id.clone(),
        client_id: config.kafka.client_id(ClientPurpose::Consumer),
        stall_timeout: config.consumer.stall_timeout,
    };
    let _lag = AbortOnDropHandle::new(tokio::spawn(watchdog.run()));
    let (events, received) = std_mpsc::channel();
    let abandon = CancellationToken::new();
    let _abandon_lanes = abandon.clone().drop_guard();
    let progress = ProgressStore::new(pool.clone(), database.kind);
    let (lanes, senders) = start_lanes(config, database, pool, &progress, &events, readiness, &abandon)?;
    let topic = config.kafka.kafka_topic.clone();
    let restart = shutdown.child_token();
    let identity = TopicIdentity::new(previous.clone(), restart.clone());
    let lookup = Lookup::new(config, progress.clone(), identity)?;
    let silence = FetchSilence::default();
    let stalls = Stalls {
        lookup: lookup.clone(),
        silence: silence.clone(),
        config: config.lookup_config(ClientPurpose::StallCheck),
        topic: topic.clone(),
        restart: restart.clone(),
    };
    let _stalls = AbortOnDropHandle::new(tokio::spawn(stalls.watch()));
    let parts = Parts {
        topic,
        lanes: senders,
        events: received,
        report: events,
        lookup,
        silence,
        progress,
        runtime: Handle::current(),
        readiness: readiness.clone(),
        states,
        start_at_oldest: config.consumer.start_at_oldest,
        dead_letter_window: i64::try_from(config.dead_letters.dead_letter_window).unwrap_or(i64::MAX),
    };
    let machine = Machine::new(Settings {
        commit_records: config.consumer.commit_records,
        commit_interval: millis(config.consumer.commit_interval),
        max_inflight_bytes: config.consumer.max_inflight_bytes,
        max_inflight_records: config.consumer.max_inflight_records,
        max_partition_bytes: config.consumer.max_partition_inflight_bytes,
        max_partition_records: config.consumer.max_partition_inflight_records,
        dead_letters: Limit {
            count: config.dead_letters.dead_letter_limit,
            percent: config.dead_letters.dead_letter_percent,
            window: config.dead_letters.dead_letter_window,
        },
        fetch_backoff: |attempts| millis(FETCH_BACKOFF.ceiling(attempts)),
        fetch_recovery: FETCH_RECOVERY,
    });
    let drain = millis(config.consumer.drain_timeout);
    let context = Context::new(Driver::new(machine, Times { drain, ..TIMES }), parts, explainer);
    let consumer: KafkaClient<BaseConsumer<Context>> = config.consumer_config().create_with_context(context)?;
    consumer.subscribe(&[&config.kafka.kafka_topic])?;
    let mut ended = start_thread(consumer, restart.clone()).map_err(Error::Thread)?;
    let ended = tokio::select! {
        ended = &mut ended => ended,
        () = changes.changed() => {
            tracing::info!("detected changed files of the kafka clients");
            restart.cancel();
            ended.await
        }
    };
    ended.map_err(|_| Error::Panicked("consumer's thread"))??;
    // The records of released partitions are fenced or stored, so the lanes need not finish.
    abandon.cancel();
    lanes.join_all().await;
    Ok(())
}

/// Migrates or checks the schema, and retries without limit while the database is unavailable.
async fn prepare_schema(config: &Config, pool: &Pool, readiness: &Readiness) -> Result<(), SchemaError> {
    let mut backoff = Backoff::default();
    loop {
        let prepared = if config.no_migrate {
            schema::check(pool).await.map(|_| ())
        } else {
            schema::migrate(&config.database).await.map(|applied| tracing::info!(?applied, "schema is up to date"))
        };
        match prepared {
            Ok(()) => break,
            Err(error) if error.is_final() => return Err(error),
            // For example a wrong password or a missing database: readiness reports it, and an operator may fix it
            // meanwhile.
            Err(error) => {
                let (transient, error) = (error.is_transient(), chain(&error));
                if transient {
                    tracing::warn!(error, "database is not available, will be retried");
                } else {
                    tracing::error!(error, "could not prepare the schema, will be retried: an operator has to act");
                }
                readiness.not_ready("schema", error);
            }
        }
        backoff.wait().await;
    }
    readiness.ready("schema");
    Ok(())
}

/// The kind of the database, and whether it needs the sequence guard.
#[derive(Clone, Copy, Debug)]
struct DatabaseTraits {
    /// The database may confirm a COMMIT before its rows are visible.
    guard: bool,
    kind: ServerKind,
}

/// Reads the kind of the database, and retries without limit. A wrong kind would count rows wrongly, and a wrong count
/// makes a gap, also without the guard.
async fn database_traits(guard: SeqGuard, pool: &Pool) -> DatabaseTraits {
    let mut backoff = Backoff::default();
    loop {
        match schema::has_citus(pool).await {
            Ok(citus) => {
                if citus {
                    tracing::info!("found citus, so each batch counts the returned rows");
                }
                let guard = match guard {
                    SeqGuard::On => true,
                    SeqGuard::Off => false,
                    SeqGuard::Auto => citus,
                };
                return DatabaseTraits { guard, kind: if citus { ServerKind::Citus } else { ServerKind::Single } };
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not read whether citus is installed, will be retried");
            }
        }
        backoff.wait().await;
    }
}

fn start_lanes(
    config: &Config,
    database: DatabaseTraits,
    pool: &Pool,
    progress: &ProgressStore,
    events: &std_mpsc::Sender<Event>,
    readiness: &Readiness,
    abandon: &CancellationToken,
) -> Result<(JoinSet<()>, Vec<LaneHandle>), Error> {
    let hints = Hints::new(&config.kafka)?;
    let options = &config.lanes;
    let cached = NonZeroUsize::new(options.seq_cache_inboxes.get() / options.lanes).unwrap_or(NonZeroUsize::MIN);
    let mut lanes = JoinSet::new();
    let mut handles = Vec::new();
    for number in 0..options.lanes {
        // All records in flight may have the same key. The consumer stops at the limit, which one chunk may exceed.
        let (sender, waiting) = mpsc::channel(config.consumer.max_inflight_records + 2 * consumer::raw::CHUNK);
        let approved = Arc::new(Notify::new());
        handles.push(LaneHandle { items: sender, approved: approved.clone() });
        let settings = lane::Settings {
            cached_inboxes: cached,
            guard: database.guard,
            insert_new: database.kind == ServerKind::Single,
            huge: HUGE,
            batch_records: options.batch_records,
            batch_bytes: options.batch_bytes,
            // Each lane has its share of the limit.
            conflict_limit: (config.dead_letters.dead_letter_limit / options.lanes).max(1),
            conflict_window: config.dead_letters.dead_letter_window,
        };
        let (pool, progress, topic) = (pool.clone(), progress.clone(), config.kafka.kafka_topic.clone());
        let lane = Lane {
            machine: lane::Machine::new(number, settings),
            waiting,
            approved,
            events: events.clone(),
            connection: Connection::new(pool, progress, topic, &config.database, database.kind),
            limits: BatchLimits {
                records: options.batch_records,
                bytes: options.batch_bytes,
                interval: options.batch_interval,
            },
            hints: hints.clone(),
            readiness: readiness.clone(),
            abandon: abandon.clone(),
        };
        lanes.spawn(lane.run());
    }
    Ok((lanes, handles))
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn start_thread(
    consumer: KafkaClient<BaseConsumer<Context>>,
    stop: CancellationToken,
) -> std::io::Result<oneshot::Receiver<Result<(), FatalError>>> {
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new().name("consumer".into()).spawn(move || {
        let _ = sender.send(consumer::run(consumer, &stop));
    })?;
    Ok(ended)
}
