//! Checks at the start and regularly that the topic keeps the promises. While it does not, no record is sent and the
//! gateway is not ready.

mod requirements;

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::kafka::cause::Causes;
use msg_common::kafka::topic::describe;
use msg_common::kafka::{ClientSettings, CreatedAt, KafkaClient, RequestError, events, raw};
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics::{PREFLIGHT_CHECKS, TOPIC_USABLE};
use crate::producer::context::report_failure;
pub(crate) use crate::producer::preflight::requirements::PreflightRequirements;
use crate::producer::preflight::requirements::Verdict;
use crate::producer::{InFlight, Producer};
use crate::send::outcome::Outcome;

/// The component of [`Readiness`] for the topic.
pub(crate) const COMPONENT: &str = "kafka";

/// How often a usable topic is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// How often an unusable topic is checked, and the minimum time between two checks.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The timeout of each of the two requests of a check.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The task that checks the topic.
pub(crate) struct Preflight {
    settings: ClientSettings,
    created: CreatedAt,
    admin: Arc<KafkaClient<AdminClient<LogContext>>>,
    topic: String,
    requirements: PreflightRequirements,
    producer: Arc<Producer>,
    readiness: Readiness,
    warned: Vec<String>,
    /// Why the last check was skipped, if it was.
    skipped: Option<String>,
    /// Whether the topic was usable since the start.
    opened: bool,
    causes: Causes,
    /// The topic's ID at the last check. A recreated topic has another one.
    id: Option<Uuid>,
}

impl Preflight {
    /// Creates the task that checks `topic` through a client with `settings`, and opens and closes `producer`.
    pub(crate) fn new(
        settings: ClientSettings,
        topic: &str,
        requirements: PreflightRequirements,
        producer: Arc<Producer>,
        readiness: Readiness,
    ) -> KafkaResult<Self> {
        let causes = Causes::default();
        let (config, created) = settings.current();
        let admin = Arc::new(config.create_with_context(LogContext(causes.clone()))?);
        Ok(Preflight {
            settings,
            created,
            admin,
            topic: topic.to_owned(),
            requirements,
            producer,
            readiness,
            warned: Vec::new(),
            skipped: None,
            opened: false,
            causes,
            id: None,
        })
    }

    /// Checks every [`CHECK_INTERVAL`], or every [`RETRY_INTERVAL`] while the topic cannot be used, until `stop`. Many failed
    /// deliveries cause an earlier check.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let producer = self.producer.clone();
        let checks = async {
            loop {
                let pause = if self.check().await { CHECK_INTERVAL } else { RETRY_INTERVAL };
                // Many failures at a time are one reason to check.
                tokio::time::sleep(RETRY_INTERVAL).await;
                tokio::select! {
                    () = tokio::time::sleep(pause.saturating_sub(RETRY_INTERVAL)) => {}
                    () = producer.signals().check.notified() => {}
                }
            }
        };
        tokio::select! {
            () = checks => {}
            () = stop.cancelled() => {}
        }
    }

    /// Checks once. Returns whether the topic can be used.
    async fn check(&mut self) -> bool {
        self.renew_client();
        let started = Instant::now();
        let oversized = self.producer.signals().take_oversized();
        let described = describe(&self.admin, &self.topic, TIMEOUT).await;
        judge_sizes(oversized, described.as_ref().ok().map(|topic| topic.max_message_bytes));
        events::drain(self.admin.inner());
        let verdict = match described {
            Ok(topic) => match self.same_topic().await {
                Ok(may_write) => self.requirements.judge(&topic, may_write),
                Err(error) => self.rejected(chain(&error)),
            },
            // A busy cluster may respond too late and still confirm records.
            Err(error) if !error.is_missing_topic() && self.producer.signals().confirmed_since(started) => {
                let reason = chain(&error);
                if self.skipped.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "cannot check the topic, but records are confirmed");
                }
                self.skipped = Some(reason);
                counter!(PREFLIGHT_CHECKS, "outcome" => "SKIPPED").increment(1);
                return true;
            }
            // A timeout or a lost connection has no cause of its own; the client's callbacks may have received one.
            Err(error) => self.rejected(chain(&error.explained(&self.causes))),
        };
        self.skipped = None;
        self.apply(verdict)
    }

    /// Replaces the client if the files of its settings have changed.
    fn renew_client(&mut self) {
        if !self.settings.changed_since(self.created) {
            return;
        }
        let (config, created) = self.settings.current();
        match config.create_with_context(LogContext(self.causes.clone())) {
            Ok(admin) => {
                let old = std::mem::replace(&mut self.admin, Arc::new(admin));
                self.created = created;
                // Dropping a client waits for its thread.
                tokio::task::spawn_blocking(move || drop(old));
            }
            Err(error) => tracing::error!(%error, "cannot create the client that checks the topic"),
        }
    }

    /// Replaces the producer if the topic was recreated. If its ID is not known, it counts as the same topic until the
    /// next check. Returns whether the gateway's user may write to the topic, or `None` if that is not known.
    async fn same_topic(&mut self) -> Result<Option<bool>, RequestError> {
        let (admin, topic) = (self.admin.clone(), self.topic.clone());
        let requested = tokio::task::spawn_blocking(move || raw::describe_topic(admin.inner(), &topic, TIMEOUT)).await;
        // Confirmed records are in the existing topic, so a failed request is no problem.
        let Ok(Ok(described)) = requested else { return Ok(None) };
        let Some(id) = described.id else { return Ok(described.may_write) };
        if self.id.is_some_and(|known| known != id) {
            tracing::warn!(
                topic = self.topic,
                "replacing producer because the topic was recreated, its records are abandoned"
            );
            self.producer.replace_abandoning().map_err(RequestError::create)?;
        }
        self.producer.signals().topic_id.store(Some(Arc::new(id)));
        self.id = Some(id);
        Ok(described.may_write)
    }

    /// Keeps the warnings, because they may still hold.
    fn rejected(&self, reason: String) -> Verdict {
        Verdict { problems: vec![reason], warnings: self.warned.clone(), ..Verdict::default() }
    }

    fn apply(&mut self, verdict: Verdict) -> bool {
        for warning in &verdict.warnings {
            if !self.warned.contains(warning) {
                tracing::warn!(topic = self.topic, warning, "topic needs attention");
            }
        }
        // Also while the topic is unusable: it is checked every second then.
        self.warned = verdict.warnings;
        let usable = verdict.problems.is_empty();
        if usable {
            self.opened = true;
            self.producer.open();
            self.readiness.ready(COMPONENT);
        } else {
            let reason = verdict.problems.join("; ");
            if self.opened && verdict.only_too_small {
                // The topic's limit was lowered while the gateway runs: records that fit are sent, and the others are
                // reported as TOO_LARGE.
                self.producer.open();
            } else {
                // Reject records before the gateway is not ready: a caller that sees it not ready must not have a
                // record accepted.
                self.producer.close(reason.clone());
            }
            self.readiness.not_ready(COMPONENT, reason);
        }
        gauge!(TOPIC_USABLE).set(u8::from(usable));
        counter!(PREFLIGHT_CHECKS, "outcome" => if usable { "OK" } else { "REJECTED" }).increment(1);
        usable
    }
}

/// Reports the records of batches that were rejected as too large. A record that is itself larger than the topic's
/// limit is too large, and its neighbors are not sent. Without a known limit no record is reported as too large,
/// because its caller would not send it again.
pub(super) fn judge_sizes(oversized: Vec<InFlight>, limit: Option<usize>) {
    for in_flight in oversized {
        let too_large = limit.is_some_and(|limit| in_flight.size > limit);
        let not_sent = Outcome::NotSent(RDKafkaErrorCode::MessageSizeTooLarge);
        report_failure(in_flight, if too_large { Outcome::TooLarge } else { not_sent });
    }
}

/// The callbacks of the client that checks the topic.
struct LogContext(Causes);

impl ClientContext for LogContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "client of the topic check reported an error");
        self.0.note(&error, reason);
    }
}
