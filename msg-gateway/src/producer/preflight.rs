//! Checks at the start and regularly that the topic keeps the promises. While it does not, no record is sent and the
//! gateway is not ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::kafka::cause::Causes;
use msg_common::kafka::topic::{RetentionClock, Topic, TopicRequirements, describe};
use msg_common::kafka::{RequestError, events, raw};
use msg_common::partition::Partition;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics::{PREFLIGHT_CHECKS, TOPIC_EXTRA_PARTITIONS, TOPIC_UNSAFE_SETTINGS, TOPIC_USABLE};
use crate::producer::context::report_failure;
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

/// The topic that the gateway needs.
#[derive(Clone, Debug)]
pub(crate) struct PreflightRequirements {
    /// The settings of a safe topic.
    pub(crate) safe: TopicRequirements,
    /// Whether an unsafe topic is used.
    pub(crate) allow_unsafe: bool,
    /// The number of partitions that are used.
    pub(crate) partitions: Partition,
    /// The size of the largest record, in bytes.
    pub(crate) record_bytes: usize,
    /// The size of the largest content, in bytes. It is a part of the record.
    pub(crate) content_bytes: usize,
}

/// If a clock is further ahead than this, its messages are kept noticeably longer than the topic's retention.
const MAX_CLOCK_LEAD: Duration = Duration::from_secs(86_400);

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Why the topic cannot be used; empty if it can.
    pub(crate) problems: Vec<String>,
    /// Problems of a topic that can be used.
    pub(crate) warnings: Vec<String>,
    /// Whether the only problem is that the largest messages do not fit.
    pub(crate) only_too_small: bool,
}

impl PreflightRequirements {
    pub(crate) fn judge(&self, topic: &Topic) -> Verdict {
        let mut verdict = Verdict::default();
        if topic.partitions < self.partitions {
            verdict.problems.push(format!(
                "the topic has {} partitions, fewer than --topic-partitions {}",
                topic.partitions, self.partitions
            ));
        }
        if topic.partitions > self.partitions {
            verdict.warnings.push(format!(
                "the topic has {} partitions, and the first {} are used (--topic-partitions)",
                topic.partitions, self.partitions
            ));
        }
        if topic.max_message_bytes < self.record_bytes {
            let rest = self.record_bytes - self.content_bytes;
            let fits = topic.max_message_bytes.saturating_sub(rest);
            verdict.problems.push(format!(
                "max.message.bytes is {}: raise it to {}, or lower --max-content-bytes from {} to {fits} (ids, attributes \
                 and the rest need {rest})",
                topic.max_message_bytes, self.record_bytes, self.content_bytes
            ));
        }
        let too_small = !verdict.problems.is_empty() && topic.partitions >= self.partitions;
        self.judge_replicas(topic, &mut verdict);
        if let RetentionClock::Producers { ahead, .. } = topic.clock
            && ahead.is_none_or(|ahead| ahead > MAX_CLOCK_LEAD)
        {
            verdict.warnings.push(
                "message.timestamp.type is CreateTime, and message.timestamp.after.max.ms allows more than a day: if a \
                 gateway's clock is ahead, Kafka keeps its messages that much longer"
                    .into(),
            );
        }
        let found = self.safe.unsafe_settings(topic);
        if !found.is_empty() {
            let problem = format!("an accepted message could be lost: {}", found.join(", "));
            if self.allow_unsafe {
                verdict.warnings.push(problem);
            } else {
                verdict.problems.push(format!("{problem} (--allow-unsafe-topic accepts that)"));
            }
        }
        verdict.only_too_small = too_small && verdict.problems.len() == 1;
        gauge!(TOPIC_UNSAFE_SETTINGS).set(u32::try_from(found.len()).unwrap_or(u32::MAX));
        gauge!(TOPIC_EXTRA_PARTITIONS).set((topic.partitions - self.partitions).max(0));
        verdict
    }
}

impl PreflightRequirements {
    /// Kafka confirms no record to a partition that has no leader, or too few in-sync replicas.
    fn judge_replicas(&self, topic: &Topic, verdict: &mut Verdict) {
        let used = topic.in_sync.iter().take(usize::try_from(self.partitions).unwrap_or(0));
        let count = used.len();
        let short: Vec<usize> =
            used.enumerate().filter(|(_, n)| **n < topic.min_insync.max(1)).map(|(at, _)| at).collect();
        let min = topic.min_insync;
        if short.is_empty() {
            return;
        }
        if short.len() == count {
            verdict
                .problems
                .push(format!("no partition has a leader and {min} in-sync replicas (min.insync.replicas)"));
        } else {
            verdict.warnings.push(format!(
                "sends to the partitions {short:?} are not confirmed: they have no leader, or fewer than {min} in-sync \
                 replicas (min.insync.replicas)"
            ));
        }
    }
}

/// The task that checks the topic.
pub(crate) struct Preflight {
    admin: Arc<AdminClient<LogContext>>,
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
    /// Creates the task that checks `topic` through `config`, and opens and closes `producer`.
    pub(crate) fn new(
        config: &ClientConfig,
        topic: &str,
        requirements: PreflightRequirements,
        producer: Arc<Producer>,
        readiness: Readiness,
    ) -> KafkaResult<Self> {
        let causes = Causes::default();
        let admin = Arc::new(AdminClient::from_config_and_context(config, LogContext(causes.clone()))?);
        Ok(Preflight {
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

    /// Checks until `stop`.
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
        let started = Instant::now();
        let oversized = self.producer.signals().take_oversized();
        let described = describe(&self.admin, &self.topic, TIMEOUT).await;
        judge_sizes(oversized, described.as_ref().ok().map(|topic| topic.max_message_bytes));
        events::drain(self.admin.inner());
        let verdict = match described {
            Ok(topic) => match self.same_topic().await {
                Ok(()) => self.requirements.judge(&topic),
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

    /// Replaces the producer if the topic was recreated. If its ID is not known, it counts as the same topic until the
    /// next check.
    async fn same_topic(&mut self) -> Result<(), RequestError> {
        let (admin, topic) = (self.admin.clone(), self.topic.clone());
        let requested = tokio::task::spawn_blocking(move || raw::topic_id(admin.inner(), &topic, TIMEOUT)).await;
        // Confirmed records are in the existing topic, so a failed request is no problem.
        let Ok(Ok(Some(id))) = requested else { return Ok(()) };
        if self.id.is_some_and(|known| known != id) {
            tracing::warn!(
                topic = self.topic,
                "replacing producer because the topic was recreated, its records are abandoned"
            );
            self.producer.replace_abandoning().map_err(RequestError::create)?;
        }
        self.id = Some(id);
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn requirements() -> PreflightRequirements {
        PreflightRequirements {
            safe: TopicRequirements { required_replicas: 3, required_min_insync: 2, required_retention: 3 * DAY },
            allow_unsafe: false,
            partitions: 16,
            record_bytes: 1 << 20,
            content_bytes: 1_000_000,
        }
    }

    fn good() -> Topic {
        Topic {
            partitions: 16,
            replicas: 3,
            min_insync: 2,
            unclean_election: false,
            cleanup_policy: "delete".into(),
            retention: Some(7 * DAY),
            retention_bytes: None,
            max_message_bytes: 2 << 20,
            clock: RetentionClock::Brokers,
            in_sync: vec![3; 16],
        }
    }

    #[test]
    fn safe_topic_is_used() {
        assert_eq!(requirements().judge(&good()), Verdict::default());
    }

    #[test]
    fn topic_that_cannot_work_is_rejected_even_if_unsafe_is_allowed() {
        for (topic, text) in [
            (Topic { partitions: 15, ..good() }, "--topic-partitions 16"),
            (Topic { max_message_bytes: 1000, ..good() }, "max.message.bytes is 1000"),
        ] {
            for allow_unsafe in [false, true] {
                let verdict = PreflightRequirements { allow_unsafe, ..requirements() }.judge(&topic);
                assert!(verdict.problems.len() == 1 && verdict.problems[0].contains(text), "{verdict:?}");
            }
        }
    }

    #[test]
    fn grown_topic_is_used_with_the_pinned_count() {
        let verdict = requirements().judge(&Topic { partitions: 17, ..good() });
        assert_eq!((verdict.problems.len(), verdict.warnings.len()), (0, 1));
    }

    #[test]
    fn partitions_without_in_sync_replicas_warn_unless_it_is_all() {
        let in_sync = |short: usize| (0..16).map(|at| if at < short { 1 } else { 2 }).collect();
        let judge = |short| {
            let verdict = requirements().judge(&Topic { in_sync: in_sync(short), ..good() });
            (verdict.problems.len(), verdict.warnings.len())
        };
        assert_eq!((judge(0), judge(3), judge(16)), ((0, 0), (0, 1), (1, 0)));
    }

    #[test]
    fn clock_that_may_be_far_ahead_is_a_warning() {
        let judge = |ahead| {
            let clock = RetentionClock::Producers { behind: Some(DAY), ahead };
            requirements().judge(&Topic { clock, ..good() })
        };
        assert_eq!(judge(Some(Duration::from_secs(3600))), Verdict::default());
        assert_eq!((judge(None).problems.len(), judge(None).warnings.len()), (0, 1));
    }

    #[test]
    fn kafkas_default_message_limit_fits_the_default_content() {
        let limits = <crate::config::Config as clap::Parser>::parse_from(["msg-gateway"]).limits;
        let requirements = PreflightRequirements {
            record_bytes: limits.max_record_bytes(),
            content_bytes: limits.max_content_bytes,
            ..requirements()
        };
        assert_eq!(requirements.judge(&Topic { max_message_bytes: 1_048_588, ..good() }), Verdict::default());
        let problems = requirements.judge(&Topic { max_message_bytes: 1_000_000, ..good() }).problems;
        assert!(problems[0].contains("from 1000000 to 962240"), "{problems:?}");
    }

    #[test]
    fn unsafe_topic_is_used_only_if_allowed() {
        let topic = Topic { replicas: 1, min_insync: 1, ..good() };
        let verdict = requirements().judge(&topic);
        assert_eq!((verdict.problems.len(), verdict.warnings.len()), (1, 0));
        let verdict = PreflightRequirements { allow_unsafe: true, ..requirements() }.judge(&topic);
        assert_eq!((verdict.problems.len(), verdict.warnings.len()), (0, 1));
    }
}
