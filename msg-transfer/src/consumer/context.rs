//! The callbacks of librdkafka, and the driver, which they call.

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

/// The consumer's context: through it librdkafka's callbacks reach the driver.
pub(crate) struct Context {
    /// Only the consumer's thread locks it: for a turn, or in the callback of a rebalance while the consumer is closed.
    driven: Mutex<Driven>,
    explainer: Explainer,
}

/// The driver and everything that it does I/O with.
struct Driven {
    driver: Driver<RawRecord>,
    outside: Outside,
}

impl Context {
    pub(crate) fn new(driver: Driver<RawRecord>, parts: Parts, explainer: Explainer) -> Self {
        let outside = Outside::new(parts, explainer.clone());
        Context { driven: Mutex::new(Driven { driver, outside }), explainer }
    }

    /// Creates the queues. Has to be called before the first turn.
    pub(crate) fn open(&self, consumer: &BaseConsumer<Self>) {
        self.driven().outside.open(consumer);
    }

    /// Destroys the queues. Has to be called before the consumer is dropped.
    pub(crate) fn close(&self) {
        self.driven().outside.close();
    }

    /// Runs one turn of the driver (`Driver::turn`). Fails if the consumer cannot continue.
    pub(crate) fn turn(&self, consumer: &BaseConsumer<Self>, stop: bool) -> Result<bool, ClientError> {
        let mut driven = self.driven();
        let Driven { driver, outside } = &mut *driven;
        let continues = driver.turn(&mut Io { consumer, outside }, stop);
        outside.fatal().map_or(Ok(continues), Err)
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
        // Polling returns the same error, and handles it.
        tracing::debug!(%error, reason, "consumer reported an error");
        self.explainer.explain(&error, reason);
    }
}

impl ConsumerContext for Context {
    /// Handles a rebalance while the consumer is closed; before that, rebalances are polled as events. librdkafka
    /// responds to the group when this returns.
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
