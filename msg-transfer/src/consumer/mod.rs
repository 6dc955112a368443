//! The consumer's thread: it polls, and never blocks on anything but Kafka's own queues.

pub mod context;
pub mod driver;
pub mod events;
pub mod fetch_error;
pub mod identity;
pub mod kept;
pub mod lookup;
pub mod progress;
pub mod raw;
pub mod stalls;
pub mod starts;

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;

use self::context::Context;
use self::events::{EventQueue, Happened};

/// How often to look around.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// How long the same error is not told again.
const REPEAT: Duration = Duration::from_secs(30);

/// Why the consumer cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the consumer cannot go on: {0}")]
pub struct Fatal(String);

/// Consumes until told to stop: then drains, commits and leaves the group. Blocks its thread.
pub fn run(consumer: BaseConsumer<Context>, stop: &CancellationToken) -> Result<(), Fatal> {
    let context = consumer.client().context().clone();
    let events = EventQueue::new(consumer.client());
    context.driver().open(&consumer);
    let mut looked = Instant::now();
    let mut told = Told::default();
    let mut result = Ok(());
    while !stop.is_cancelled() {
        // Events only: records have a queue of their own.
        match events.poll(consumer.client()) {
            None => {}
            Some(Happened::Rebalance(error, partitions)) => context.rebalanced(&consumer, error, partitions),
            Some(Happened::FetchFailed(partition, error)) => {
                context.driver().fetch_failed(&consumer, partition, &error);
            }
            Some(Happened::Record(partition, offset)) => {
                // Fetched before its partition's queue was taken over, so the ledger does not know it: once more.
                tracing::warn!(partition, %offset, "a record came by the queue of events, fetching again");
                context.driver().restart(&consumer, partition);
            }
            Some(Happened::Topic(code, says)) => context.driver().topic_failed(code, &says),
            Some(Happened::Fatal(says)) => {
                result = Err(Fatal(says));
                break;
            }
            Some(Happened::Error(code, says)) => {
                context.driver().explain(&KafkaError::Global(code), &says);
                told.error(code, &says);
            }
        }
        context.driver().step(&consumer);
        if looked.elapsed() >= LOOK_INTERVAL {
            looked = Instant::now();
            context.driver().look_around(&consumer);
        }
    }
    if result.is_ok() {
        context.driver().stop(&consumer);
    }
    context.driver().close();
    drop(events);
    // Leaves the group; what rebalance that brings finds nothing left to drain.
    drop(consumer);
    result
}

/// While Kafka is unavailable the consumer says so several times a second.
#[derive(Default)]
struct Told(Option<(RDKafkaErrorCode, Instant)>);

impl Told {
    fn error(&mut self, code: RDKafkaErrorCode, says: &str) {
        if self.0.is_some_and(|(last, at)| last == code && at.elapsed() < REPEAT) {
            return;
        }
        tracing::warn!(%code, says, "the consumer reports an error, and goes on by itself");
        self.0 = Some((code, Instant::now()));
    }
}
