//! The reports of the driver: log lines, metrics, and the reasons why the process is not ready.

use std::time::Instant;

use machine::Partition;
use machine::consumer::{Action, Failing};
use machine::driver::Report;
use msg_common::error::chain;
use msg_common::repeat::Repeats;
use rdkafka::consumer::ConsumerContext;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use super::Io;
use crate::consumer::fetch_error;
use crate::metrics;

/// The number of failed attempts from which a partition makes the process not ready. One attempt can fail because the
/// leader has just changed.
const MIN_ATTEMPTS: u32 = 2;

static NOT_COMMITTED: Repeats = Repeats::new();

static CLIENT_ERRORS: Repeats = Repeats::new();

/// Logs an error of the client. While Kafka is unavailable, the client reports the same error several times a second.
pub(super) fn warn_client_error(code: RDKafkaErrorCode, detail: &str) {
    if let Some(repeated) = CLIENT_ERRORS.occurred(&code.to_string()) {
        tracing::warn!(%code, detail, repeated, "consumer reported an error, and continues by itself");
    }
}

impl<C: ConsumerContext> Io<'_, C> {
    pub(super) fn show(&mut self, report: &Report<'_>) {
        let parts = &self.outside.parts;
        match report {
            Report::Event(_) | Report::Received(..) => {}
            Report::Action(action) => self.show_action(action),
            Report::Assigned(partitions) => {
                tracing::info!(?partitions, "assigned");
                metrics::rebalanced("assigned", partitions.len());
                parts.readiness.ready("group");
                if !partitions.is_empty() {
                    parts.readiness.ready("topic");
                }
                parts.states.assigned(partitions);
            }
            Report::Revoked(partitions) => {
                tracing::info!(?partitions, "revoked, draining");
                metrics::rebalanced("revoked", partitions.len());
            }
            Report::Lost(partitions) => {
                tracing::warn!(?partitions, "lost");
                parts
                    .readiness
                    .not_ready("group", "the group reassigned all partitions of this member, which joins again");
                metrics::rebalanced("lost", partitions.len());
            }
            Report::Strayed(partition, offset) => {
                tracing::warn!(partition, %offset, "received record through the queue of events, will be fetched again");
            }
            Report::DrainExpired => {
                tracing::warn!(
                    "drain deadline passed before all records were stored; the next owner consumes the others again"
                );
            }
            Report::ReleaseExpired => {
                tracing::warn!("last commit was not confirmed; the next owner consumes its records again");
            }
            Report::Fetching { partition, from, retried } => {
                let (from, leader_epoch) = (from.next.0, from.leader_epoch.0);
                // A failing partition is fetched again at each attempt, so this is not worth a line for operators.
                if *retried {
                    tracing::debug!(partition, from, leader_epoch, "fetching");
                } else {
                    tracing::info!(partition, from, leader_epoch, "fetching");
                }
            }
            Report::Rejected(what, error) => tracing::warn!(what, error = chain(*error), "rejected by the consumer"),
            Report::Halted(halted) => self.show_halted(halted),
            Report::Failing(failing) => self.show_failing(failing),
            Report::Recovered(partition, attempts) => {
                tracing::info!(partition, attempts, "fetched partition after failed attempts")
            }
            Report::Consumed(count) => metrics::consumed(*count),
            Report::Committed(result) => {
                metrics::committed(result.is_ok());
                if let Err(error) = result.map_err(chain)
                    && let Some(repeated) = NOT_COMMITTED.occurred(&error)
                {
                    tracing::warn!(error, repeated, "offsets not committed, will be retried");
                }
            }
            Report::States(states) => parts.states.replace(states.iter().copied()),
            Report::Expected(Some(expected)) => {
                parts.silence.fetching(Instant::now(), expected.iter().copied());
            }
            Report::Expected(None) => parts.silence.full(Instant::now()),
            Report::Turn { inflight: (bytes, records), throttled } => {
                metrics::inflight(*bytes, *records);
                metrics::throttled(*throttled);
            }
        }
    }

    fn show_action(&self, action: &Action) {
        match action {
            Action::Halted { partition, reason } => tracing::error!(partition, reason, "halted partition"),
            // Logged at the first, second, fourth, … attempt: the intervals between the lines grow with those between
            // the attempts.
            Action::FetchFailing { partition, at, attempts, text } if attempts.is_power_of_two() => {
                let topic = &self.outside.parts.topic;
                tracing::warn!(
                    topic,
                    partition,
                    offset = %at,
                    attempts,
                    error = text,
                    "fetching failed, will be retried"
                );
            }
            Action::Release(partitions) => tracing::info!(?partitions, "released"),
            _ => {}
        }
    }

    fn show_halted(&self, halted: &[(Partition, &str)]) {
        metrics::halted(halted.len());
        let parts = &self.outside.parts;
        if halted.is_empty() {
            return parts.readiness.ready("partitions");
        }
        let reasons: Vec<_> =
            halted.iter().map(|(p, reason)| format!("{} partition {p}: {reason}", parts.topic)).collect();
        parts.readiness.not_ready("partitions", reasons.join("; "));
    }

    fn show_failing(&self, failing: &[(Partition, &Failing)]) {
        let parts = &self.outside.parts;
        let failing = failing.iter().filter(|(_, failing)| failing.attempts >= MIN_ATTEMPTS);
        let reason = |(p, failing): &(Partition, &Failing)| {
            format!("{} partition {p} at offset {}: {}", parts.topic, failing.at, failing.text)
        };
        let reasons: Vec<_> = failing.map(reason).collect();
        if reasons.is_empty() {
            parts.readiness.ready("fetching");
        } else {
            parts.readiness.not_ready("fetching", format!("cannot be fetched: {}", reasons.join("; ")));
        }
    }

    /// Reports that the group assigns no partition of the topic for now. When the topic can be consumed again, the
    /// group detects it and assigns its partitions.
    pub(super) fn topic_failed(&mut self, code: RDKafkaRespErr, text: &str) {
        metrics::fetch_failed(fetch_error::name(code));
        let parts = &self.outside.parts;
        let topic = &parts.topic;
        let advice = match RDKafkaErrorCode::from(code) {
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                "grant the transfer's Kafka user READ and DESCRIBE on the topic"
            }
            RDKafkaErrorCode::UnknownTopicOrPartition => "create it, or correct --kafka-topic",
            _ => "see the brokers' logs",
        };
        let code = fetch_error::name(code);
        parts.readiness.not_ready("topic", format!("{topic} cannot be consumed: {text} ({code}): {advice}"));
    }
}
