//! What librdkafka calls back: rebalances go to the driver, which answers them itself.

use std::sync::{Mutex, MutexGuard};

use machine::Partition;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;

use super::driver::Driver;

/// Holds the driver where the callback finds it. Only the consumer's thread ever takes the lock, and never while it
/// polls.
pub struct Context(Mutex<Driver>);

impl Context {
    /// Around this driver.
    pub fn new(driver: Driver) -> Self {
        Context(Mutex::new(driver))
    }

    /// The driver.
    pub fn driver(&self) -> MutexGuard<'_, Driver> {
        self.0.lock().expect("a panic ends the process")
    }

    /// The group assigns or revokes partitions, and waits for the response.
    pub fn rebalanced(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: Vec<Partition>) {
        let mut driver = self.driver();
        match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => driver.assigned(consumer, partitions),
            _ if consumer.assignment_lost() => driver.lost(consumer, &partitions),
            _ => driver.revoked(consumer, &partitions),
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Polling returns the same error, and acts on it.
        tracing::debug!(%error, reason, "the consumer reports an error");
        self.driver().explain(&error, reason);
    }
}

impl ConsumerContext for Context {
    /// Only what comes while the consumer is closed: before, rebalances are polled as events.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<_> = list.elements().iter().map(|element| element.partition()).collect();
        self.rebalanced(consumer, error, partitions);
    }
}
