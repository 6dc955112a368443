//! Partitions whose fetch fails: the machine decides when each is tried again; here it is counted, logged and reported.

use machine::consumer::{Action, Event, FetchFailure};
use machine::{NextOffset, Partition};
use rdkafka::consumer::BaseConsumer;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use super::Driver;
use crate::consumer::context::Context;
use crate::consumer::fetch_error::{self, FetchError};
use crate::metrics;

/// Failures in a row.
#[derive(Debug)]
pub(super) struct Failure {
    at: NextOffset,
    attempts: u32,
    text: String,
}

/// One failure can be a leader that has just changed.
const REPORTED: u32 = 2;

impl Driver {
    /// An error that came outside its partition's order.
    pub fn fetch_failed(&mut self, consumer: &BaseConsumer<Context>, partition: Partition, error: &FetchError) {
        let mut actions = Vec::new();
        self.failed(partition, error, &mut actions);
        self.carry_out(consumer, actions);
    }

    /// The group gives us nothing of the topic for now. It finds out by itself when that is over, and then assigns.
    pub fn topic_failed(&mut self, code: RDKafkaRespErr, says: &str) {
        metrics::fetch_failed(fetch_error::name(code));
        let topic = &self.parts.topic;
        let advice = match RDKafkaErrorCode::from(code) {
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                "grant the transfer's Kafka user READ and DESCRIBE on the topic"
            }
            RDKafkaErrorCode::UnknownTopicOrPartition => "create it, or correct --kafka-topic",
            _ => "see the brokers' logs",
        };
        let code = fetch_error::name(code);
        self.parts.readiness.not_ready("topic", format!("{topic} cannot be consumed: {says} ({code}): {advice}"));
    }

    pub(super) fn failed(&mut self, partition: Partition, error: &FetchError, actions: &mut Vec<Action>) {
        metrics::fetch_failed(error.name());
        let failure = FetchFailure {
            offset: error.offset,
            damaged: error.is_damage(),
            text: error.describe(),
            jitter: rand::random(),
        };
        let now = self.now();
        self.machine.handle(Event::FetchFailed { partition, failure }, now, actions);
        if error.is_out_of_range() {
            self.machine.handle(Event::OutOfRange(partition), now, actions);
        }
    }

    pub(super) fn fetch_failing(&mut self, partition: Partition, at: NextOffset, attempts: u32, text: String) {
        // At the first, the second, the fourth …: the pauses between the lines grow with those between the attempts.
        if attempts.is_power_of_two() {
            let topic = &self.parts.topic;
            tracing::warn!(topic, partition, offset = %at, attempts, error = text, "fetching failed, will be retried");
        }
        self.failing.insert(partition, Failure { at, attempts, text });
        self.report_failing();
    }

    pub(super) fn fetch_recovered(&mut self, partition: Partition) {
        if let Some(failure) = self.failing.remove(&partition) {
            tracing::info!(partition, attempts = failure.attempts, "fetching again");
            self.report_failing();
        }
    }

    /// A partition that is only tried again is no news.
    pub(super) fn is_failing(&self, partition: Partition) -> bool {
        self.failing.contains_key(&partition)
    }

    fn report_failing(&self) {
        let failing = self.failing.iter().filter(|(_, failure)| failure.attempts >= REPORTED);
        let topic = &self.parts.topic;
        let reason = |(p, failure): (&Partition, &Failure)| {
            format!("{topic} partition {p} at offset {}: {}", failure.at, failure.text)
        };
        let reasons: Vec<_> = failing.map(reason).collect();
        if reasons.is_empty() {
            self.parts.readiness.ready("fetching");
        } else {
            self.parts.readiness.not_ready("fetching", format!("cannot be fetched: {}", reasons.join("; ")));
        }
    }
}
