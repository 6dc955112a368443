//! The gateway as a whole: what is built, what runs beside what, and how it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use msg_common::admin::{self, Readiness};
use msg_common::proto::DESCRIPTORS;
use msg_common::proto::msg_gateway_server::MsgGatewayServer;
use msg_common::telemetry;
use rdkafka::error::KafkaError;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use crate::config::{Config, ServerOptions};
use crate::incoming::connections;
use crate::layer::{Arriving, Door};
use crate::metrics::{Levels, describe};
use crate::producer::preflight::{self, Demands, Preflight};
use crate::producer::{Producer, settings};
use crate::read::Reader;
use crate::send::Sender;
use crate::send::admission::Admission;
use crate::send::deadline::Timing;
use crate::service::Gateway;
use crate::{health, read};

/// The component of [`Readiness`] that speaks for the end.
const SHUTDOWN: &str = "shutdown";

/// Why the gateway could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("{setting} {address}: {source}")]
    Listen {
        /// The flag.
        setting: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("signals: {0}")]
    Signals(io::Error),
    /// librdkafka refuses its settings.
    #[error("kafka client: {0}")]
    Kafka(#[from] KafkaError),
    /// The pool cannot be made.
    #[error("database pool: {0}")]
    Database(String),
    /// The contract's descriptors cannot be served.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// gRPC ended.
    #[error("grpc server: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The admin port ended.
    #[error("admin port: {0}")]
    Admin(io::Error),
    /// The health check could not ask.
    #[error("health check: {0}")]
    Probe(io::Error),
    /// The health check was told no.
    #[error("not ready: {0}")]
    NotReady(String),
}

/// Serves until `shutdown`, then drains: not ready, no new calls, those that run to their end, the producer empty.
pub async fn run(
    config: Config,
    grpc: TcpListener,
    admin: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    // First of all: handles are of the recorder that is there when they are made.
    telemetry::metrics();
    describe();
    // Ends the tasks that serve the calls; outlives the drain.
    let stop = CancellationToken::new();
    let _stop_at_return = stop.clone().drop_guard();
    let tasks = TaskTracker::new();
    let readiness = Readiness::waiting_for(&[preflight::COMPONENT]);

    let client = settings::producer(&config.kafka, &config.limits, &config.send);
    let producer = Arc::new(Producer::new(client, &config.kafka.kafka_topic)?);
    let settle = settings::settle(&config.send);
    tasks.spawn(producer.clone().supervise(readiness.clone(), settle, stop.clone()));
    let demands = Demands {
        safe: config.requirements.clone(),
        allow_unsafe: config.send.allow_unsafe_topic,
        partitions: config.send.topic_partitions,
        record_bytes: config.limits.max_record_bytes(),
    };
    let (kafka, topic) = (config.kafka.client_config(), &config.kafka.kafka_topic);
    let preflight = Preflight::new(&kafka, topic, demands, producer.clone(), readiness.clone())?;
    tasks.spawn(preflight.run(stop.clone()));

    let admission = Admission::new(config.send.max_inflight_msgs, config.send.max_inflight_bytes);
    let arriving = Arriving::new(config.server.max_arriving_bytes);
    tasks.spawn(watch_levels(admission.clone(), arriving.clone(), stop.clone()));
    let timing = Timing {
        max_wait: config.send.max_send_wait,
        margin: config.send.deadline_margin,
        shortest: config.send.linger,
    };
    let limits = config.limits.clone();
    let sender = Sender::new(limits, config.send.topic_partitions, timing, settle, admission, producer.clone());
    let reader = Reader::new(&config, read::timing(&config)).map_err(Error::Database)?;

    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::set(&reporter, false).await;
    let service =
        MsgGatewayServer::new(Gateway::new(sender, reader)).max_decoding_message_size(config.limits.max_record_bytes());
    let mut routes = Routes::builder();
    routes.add_service(health_service);
    add_reflection(&mut routes)?;
    let door = Door::new(service, routes.routes().prepare(), arriving);

    let mut admin = tasks.spawn(admin::serve(admin, readiness.clone(), stop.clone()));
    if let Ok(address) = grpc.local_addr() {
        tracing::info!(grpc = %address, topic, "listening");
    }

    let goaway = CancellationToken::new();
    let incoming = connections(grpc, config.server.max_connections);
    let stop_taking = goaway.clone().cancelled_owned();
    let serving = builder(&config.server).serve_with_incoming_shutdown(door, incoming, stop_taking);
    tokio::pin!(serving);
    let following = tasks.spawn(health::follow(reporter.clone(), readiness.clone(), goaway.clone()));

    tokio::select! {
        served = &mut serving => return Ok(served?),
        ended = &mut admin => return ended.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(Error::Admin),
        () = shutdown.cancelled() => {}
    }

    announce_end(&readiness, &reporter).await;
    let delay = config.server.shutdown_delay;
    if let Ok(served) = tokio::time::timeout(delay, &mut serving).await {
        tracing::warn!("the grpc server ended by itself");
        return Ok(served?);
    }
    let deadline = Instant::now() + config.server.drain_timeout;
    goaway.cancel();
    let _ = following.await;
    match tokio::time::timeout_at(deadline, &mut serving).await {
        Ok(served) => served?,
        Err(_) => tracing::warn!("calls that have not ended are cut off"),
    }
    let left = producer.flush(deadline.saturating_duration_since(Instant::now())).await;
    tracing::info!(records_given_up = left, "drained");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Health says so first, so that callers that watch it go elsewhere before anything is refused.
async fn announce_end(readiness: &Readiness, reporter: &HealthReporter) {
    readiness.not_ready(SHUTDOWN, "draining");
    health::set(reporter, false).await;
}

fn builder(options: &ServerOptions) -> Server {
    let mut builder = Server::builder()
        .max_concurrent_streams(options.max_concurrent_streams)
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout));
    if let Some(age) = options.max_connection_age {
        builder = builder.max_connection_age(age);
    }
    builder
}

/// Both versions: older tools ask for v1alpha only.
fn add_reflection(routes: &mut tonic::service::RoutesBuilder) -> Result<(), Error> {
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // ErrorInfo and its like, so that tools can show the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(described().build_v1()?).add_service(described().build_v1alpha()?);
    Ok(())
}

/// Looks at what changes with every message, from time to time, so that a message need not tell.
async fn watch_levels(admission: Arc<Admission>, arriving: Arc<Arriving>, stop: CancellationToken) {
    let levels = Levels::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => return,
        }
        let (msgs, bytes) = admission.taken();
        for (gauge, value) in
            [(&levels.inflight_msgs, msgs), (&levels.inflight_bytes, bytes), (&levels.arriving_bytes, arriving.bytes())]
        {
            gauge.set(value as f64);
        }
    }
}
