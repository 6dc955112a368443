//! The gateway as a whole: builds its parts, runs them, and shuts them down.

use std::io;
use std::sync::Arc;

use msg_common::admin::{self, AdminError, AdminListener, Readiness};
use msg_common::config::SettingError;
use msg_common::kafka::{ClientPurpose, ClientSettings, FileChanges, FilesError, Role};
use msg_common::proto::DESCRIPTORS;
use msg_common::proto::msg_gateway_server::MsgGatewayServer;
use msg_common::telemetry;
use msg_common::tls::{self, TlsError};
use rdkafka::error::KafkaError;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use crate::auth::AuthError;
use crate::budget::Budgets;
use crate::config::producer as settings;
use crate::config::{Config, ServerOptions};
use crate::incoming::{Age, Incoming, connections};
use crate::metrics::describe;
use crate::producer::Producer;
use crate::producer::preflight::{self, Preflight, PreflightRequirements};
use crate::read::{ReadError, Reader};
use crate::router::RpcRouter;
use crate::send::Sender;
use crate::service::Gateway;
use crate::unread::ReadTimer;
use crate::watch::{WatchError, WatchServices};
use crate::{auth, health, read};

/// The component of [`Readiness`] for the shutdown.
const SHUTDOWN: &str = "shutdown";

/// Maximum size of a request of reflection, and of a health check. It is a name; reflection's response contains it twice.
const MAX_TOOL_REQUEST_BYTES: usize = 4 << 10;

/// Why the gateway could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text says it")]
pub enum Error {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Listen(Vec<SettingError>),
    /// The system has no threads or files left.
    #[error("runtime: {0}")]
    Runtime(io::Error),
    #[error("signals: {0}")]
    Signals(io::Error),
    #[error("kafka client: {0}")]
    Kafka(#[from] KafkaError),
    #[error("kafka client: {0}")]
    KafkaFiles(#[from] FilesError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The database pools or the Kafka client of the reads could not be created.
    #[error("reads")]
    Reads(#[from] ReadError),
    #[error("authentication")]
    Auth(#[from] AuthError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("grpc server: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error("admin port")]
    Admin(#[source] AdminError),
    #[error("health check: {0}")]
    Probe(io::Error),
    #[error("not ready: {0}")]
    NotReady(String),
}

/// Serves until `shutdown`, then drains: it is not ready, accepts no new calls, finishes the open ones, and flushes
/// the producer.
pub async fn run(
    config: Config,
    grpc: TcpListener,
    admin: AdminListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    // First: a metric handle belongs to the recorder that is installed when it is created.
    telemetry::metrics();
    describe();
    // Stops the tasks that serve the calls, after the drain.
    let stop = CancellationToken::new();
    let _stop_at_return = stop.clone().drop_guard();
    let tasks = TaskTracker::new();
    let readiness = Readiness::waiting_for(&[preflight::COMPONENT]);
    let tls = match config.tls.files() {
        None => None,
        Some(files) => {
            let reloader = tls::reloader("grpc", files, |material| tls::server_config(material, &[b"h2"]))?;
            let settings = reloader.value();
            tasks.spawn(reloader.run(stop.clone()));
            Some(settings)
        }
    };

    if let Some(refreshing) = config.kafka.refresh_token(stop.clone()) {
        tasks.spawn(refreshing);
    }
    let (limits, send) = (config.limits.clone(), config.send.clone());
    let client = ClientSettings::new(&config.kafka, move |kafka| settings::producer(kafka, &limits, &send));
    let producer = Arc::new(Producer::new(client, &config.kafka.kafka_topic)?);
    let (mut changes, following) =
        FileChanges::follow(&config.kafka, ClientPurpose::Producer, Role::Producer, stop.clone())?;
    tasks.spawn(following);
    let changing = stop.clone();
    tasks.spawn(async move {
        while changing.run_until_cancelled(changes.changed()).await.is_some() {
            tracing::info!("detected changed files of the kafka clients");
        }
    });
    let settle = settings::settle(&config.send);
    tasks.spawn(producer.clone().supervise(readiness.clone(), settle, stop.clone()));
    let deliveries = producer.clone();
    let (following, ending) = (readiness.clone(), stop.clone());
    tasks.spawn(async move { deliveries.signals().rejections.follow(following, ending).await });
    let requirements = PreflightRequirements {
        safe: config.requirements.clone(),
        allow_unsafe: config.send.allow_unsafe_topic,
        partitions: config.send.topic_partitions,
        record_bytes: config.limits.max_record_bytes(),
        content_bytes: config.limits.max_content_bytes,
    };
    let topic = &config.kafka.kafka_topic;
    let checks = ClientSettings::new(&config.kafka, |kafka| kafka.client_config(ClientPurpose::GatewayAdmin));
    let preflight = Preflight::new(checks, topic, requirements, producer.clone(), readiness.clone())?;
    tasks.spawn(preflight.run(stop.clone()));

    let budgets = Budgets::new(&config);
    tasks.spawn(budgets.clone().show(stop.clone()));
    let timer = ReadTimer::new(config.server.response_read_timeout, config.watch.watch_stall_timeout);
    tasks.spawn(timer.clone().run(stop.clone()));
    let topic_id = producer.signals().topic_id.clone();
    let watch = WatchServices::start(&config, &budgets, topic_id, &tasks, &stop)?;
    let sender = Sender::new(&config, budgets.clone(), producer.clone(), watch.waiters.clone());
    let reader = Reader::new(&config, read::timing(&config), budgets.clone())?;
    reader.watch_databases(&tasks, &readiness, &stop);

    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::set(&reporter, false).await;
    let service = MsgGatewayServer::new(Gateway::new(sender, reader, watch))
        .max_decoding_message_size(config.max_request_bytes());
    let mut routes = Routes::builder();
    routes.add_service(health_service.max_decoding_message_size(MAX_TOOL_REQUEST_BYTES));
    if config.reflection() {
        add_reflection(&mut routes)?;
    }
    let others = routes.routes().prepare();
    let authenticator = auth::start(&config.auth, &readiness, &tasks, &stop)?;
    let router = RpcRouter::new(service, others, authenticator, budgets.clone(), config.server.request_receive_timeout);

    let mut admin = tasks.spawn(admin::serve(admin, config.admin_tls.files(), readiness.clone(), stop.clone()));
    if let Ok(address) = grpc.local_addr() {
        tracing::info!(grpc = %address, topic, "listening");
    }

    let goaway = CancellationToken::new();
    let server = &config.server;
    raise_open_files(server.max_connections);
    let age = config.max_connection_age().map(|max| Age { max, grace: server.max_connection_age_grace });
    let incoming = Incoming {
        budget: budgets.connections.clone(),
        tls,
        age,
        handshake_timeout: server.handshake_timeout,
        drain: goaway.clone(),
        timer,
    };
    let incoming = connections(grpc, incoming);
    let stop_taking = goaway.clone().cancelled_owned();
    let serving = builder(&config.server, age).serve_with_incoming_shutdown(router, incoming, stop_taking);
    tokio::pin!(serving);
    let following = tasks.spawn(health::follow(reporter.clone(), readiness.clone(), goaway.clone()));

    tokio::select! {
        served = &mut serving => return Ok(served?),
        ended = &mut admin => {
            return ended.unwrap_or_else(|error| Err(io::Error::other(error).into())).map_err(Error::Admin);
        }
        () = shutdown.cancelled() => {}
    }

    announce_end(&readiness, &reporter).await;
    let delay = config.server.shutdown_delay;
    if let Ok(served) = tokio::time::timeout(delay, &mut serving).await {
        tracing::warn!("grpc server ended by itself");
        return Ok(served?);
    }
    let deadline = Instant::now() + config.server.drain_timeout;
    goaway.cancel();
    let _ = following.await;
    match tokio::time::timeout_at(deadline, &mut serving).await {
        Ok(served) => served?,
        Err(_) => tracing::warn!("closing calls that are still open"),
    }
    let left = producer.flush(deadline.saturating_duration_since(Instant::now())).await;
    tracing::info!(abandoned_records = left, "drained");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Changes the health status before anything is rejected, so that callers that watch it connect elsewhere.
async fn announce_end(readiness: &Readiness, reporter: &HealthReporter) {
    readiness.not_ready(SHUTDOWN, "draining");
    health::set(reporter, false).await;
}

/// Each connection needs a file descriptor, and so do the connections to Kafka and to the database. A shell or a container often
/// starts a process with a limit far below what is allowed.
fn raise_open_files(max_connections: usize) {
    const OTHERS: u64 = 512;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < max_connections as u64 + OTHERS => {
            tracing::warn!(limit, max_connections, "limit of open files is too low for --max-connections");
        }
        Ok(limit) => tracing::debug!(limit, "checked limit of open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

fn builder(options: &ServerOptions, age: Option<Age>) -> Server {
    // Streams that are not read, because the gateway is full or their results are not read, must not block other calls
    // of the same connection: the connection's window is as large as that of 64 streams. All windows together are
    // bounded by `--max-send-streams`, since every other request is read when it arrives.
    const STREAM_WINDOW: u32 = 256 << 10;
    const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;
    let mut builder = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(options.max_concurrent_streams)
        // After this process was paused (a frozen VM, for example), calls arrive together with their callers' resets.
        // With h2's limit of 20 that looks like an attack, and the other calls of the connection would end without a
        // reason.
        .http2_max_pending_accept_reset_streams(Some(max_resets(options)))
        // h2 keeps each stream that the peer makes it reset until the frame is written, and tonic sets no limit. An
        // honest caller causes few of them: calls above the stream limit that it sends before it has the server's
        // settings.
        .http2_max_local_error_reset_streams(Some(max_resets(options)))
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout));
    if let Some(age) = age {
        builder = builder.max_connection_age(age.max);
    }
    builder
}

/// Returns how many calls of a connection may be reset before they were accepted, and how many because of errors of the
/// peer: as many as may be open. With a higher limit, a flood of calls that are reset immediately would look like callers
/// that cancel.
fn max_resets(options: &ServerOptions) -> usize {
    const MIN: usize = 1024;
    usize::try_from(options.max_concurrent_streams).unwrap_or(MIN).max(MIN)
}

/// Adds both versions, because older tools use only v1alpha.
fn add_reflection(routes: &mut tonic::service::RoutesBuilder) -> Result<(), Error> {
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // ErrorInfo and the like, so that tools can show error details.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = described().build_v1()?.max_decoding_message_size(MAX_TOOL_REQUEST_BYTES);
    let v1alpha = described().build_v1alpha()?.max_decoding_message_size(MAX_TOOL_REQUEST_BYTES);
    routes.add_service(v1).add_service(v1alpha);
    Ok(())
}
