//! What librdkafka calls back, and the driver, where the callbacks find it.

use std::sync::{Mutex, MutexGuard};

use machine::driver::Driver;
use msg_common::kafka::ClientError;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;

use super::events::rebalance;
use super::io::{Explainer, Io, Outside, Parts};
use crate::lane::item::RawRecord;

/// The consumer's context.
pub struct Context {
    /// Locked by the consumer's thread alone: for a turn, or in the callback of a rebalance while the consumer is closed.
    driven: Mutex<Driven>,
    explainer: Explainer,
}

/// The driver and all that it reaches.
struct Driven {
    driver: Driver<RawRecord>,
    outside: Outside,
}

impl Context {
    /// Around this driver.
    pub fn new(driver: Driver<RawRecord>, parts: Parts) -> Self {
        let explainer = Explainer::new(parts.readiness.clone());
        let outside = Outside::new(parts, explainer.clone());
        Context { driven: Mutex::new(Driven { driver, outside }), explainer }
    }

    /// Before the first turn.
    pub fn open(&self, consumer: &BaseConsumer<Self>) {
        self.driven().outside.open(consumer);
    }

    /// Before the consumer is dropped.
    pub fn close(&self) {
        self.driven().outside.close();
    }

    /// One turn of the driver: `Driver::turn`. An error says why the consumer cannot go on.
    pub fn turn(&self, consumer: &BaseConsumer<Self>, stop: bool) -> Result<bool, ClientError> {
        let mut driven = self.driven();
        let Driven { driver, outside } = &mut *driven;
        let goes_on = driver.turn(&mut Io { consumer, outside }, stop);
        outside.fatal().map_or(Ok(goes_on), Err)
    }

    fn driven(&self) -> MutexGuard<'_, Driven> {
        self.driven.lock().expect("a panic ends the process")
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Polling returns the same error, and acts on it.
        tracing::debug!(%error, reason, "the consumer reports an error");
        self.explainer.explain(&error, reason);
    }
}

impl ConsumerContext for Context {
    /// Only what comes while the consumer is closed: before, rebalances are polled as events. The group has its response when this
    /// returns.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<_> = list.elements().iter().map(|element| element.partition()).collect();
        let mut driven = self.driven();
        let Driven { driver, outside } = &mut *driven;
        let mut io = Io { consumer, outside };
        driver.happened(&mut io, rebalance(error, partitions));
        while driver.is_releasing() {
            driver.turn(&mut io, true);
        }
    }
}
