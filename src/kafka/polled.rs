//! A producer with a thread that polls its events. Unlike rdkafka's own, it is an error and no panic if the system has no
//! thread for it: a service that replaces its producer must outlive that.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, ProducerContext};

use crate::error::NO_THREAD;

/// How long the thread waits for an event before it checks whether it has to end. rdkafka waits for whole milliseconds,
/// rounded down, and polls without a pause for what is left. The fraction keeps that short: with 100 ms, the wait was 99
/// ms, and the thread then used 0.7 ms of CPU time, ten times a second.
const POLL_INTERVAL: Duration = Duration::from_micros(100_100);

/// A producer whose delivery reports and other events arrive on a thread of its own, until it is dropped.
pub struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    fn start(producer: BaseProducer<C>, thread: Builder) -> io::Result<Self> {
        let (producer, stop) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, stopped) = (producer.clone(), stop.clone());
        let poll = move || {
            while !stopped.load(Ordering::Relaxed) {
                polled.poll(POLL_INTERVAL);
            }
        };
        let thread = thread.name("producer-poll".into()).spawn(poll)?;
        Ok(PolledProducer { producer, stop, thread: Some(thread) })
    }
}

impl<C: ProducerContext + 'static> FromClientConfigAndContext<C> for PolledProducer<C> {
    fn from_config_and_context(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer = BaseProducer::from_config_and_context(config, context)?;
        let no_thread = |error: io::Error| KafkaError::ClientCreation(format!("{NO_THREAD}: {error}"));
        PolledProducer::start(producer, Builder::new()).map_err(no_thread)
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It fails only after a panic, which ends the process.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::DefaultProducerContext;

    use super::*;

    #[test]
    fn missing_thread_is_an_error() {
        let config = ClientConfig::new();
        let producer =
            || BaseProducer::from_config_and_context(&config, DefaultProducerContext).expect("no broker is needed");
        // No system has this much memory for a stack.
        let started = PolledProducer::start(producer(), Builder::new().stack_size(1 << 60));
        assert!(started.is_err());
        drop(PolledProducer::start(producer(), Builder::new()).expect("the system has a thread"));
    }
}
