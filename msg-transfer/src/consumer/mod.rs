//! The consumer's thread: it polls, and never blocks on anything but Kafka's own queues.

pub mod context;
pub mod driver;
pub mod identity;
pub mod lookup;
pub mod progress;
pub mod raw;
pub mod stalls;
pub mod starts;

use std::time::{Duration, Instant};

use machine::Partition;
use rdkafka::Message;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;

use self::context::Context;

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
    context.driver().open(&consumer);
    let mut looked = Instant::now();
    let mut told: Option<(KafkaError, Instant)> = None;
    let mut result = Ok(());
    while !stop.is_cancelled() {
        // Events only: records have a queue of their own. Rebalances run inside this call.
        match consumer.poll(Duration::ZERO) {
            None => {}
            Some(Ok(record)) => {
                // Fetched before its partition's queue was taken over, so the ledger does not know it: once more.
                let (partition, offset) = (record.partition(), record.offset());
                tracing::error!(partition, offset, "a record came by the queue of events, fetching again");
                context.driver().restart(&consumer);
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                result = Err(Fatal(code.to_string()));
                break;
            }
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                // It does not say which partition: each start is resolved again, and the expired one is found.
                tracing::warn!("an offset is out of range, resolving the starts again");
                context.driver().restart(&consumer);
            }
            Some(Err(error)) => {
                // While Kafka is away it says so several times a second.
                let repeated = told.as_ref().is_some_and(|(last, at)| *last == error && at.elapsed() < REPEAT);
                if !repeated {
                    tracing::warn!(%error, "the consumer reports an error, and goes on by itself");
                    told = Some((error, Instant::now()));
                }
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
    // Leaves the group; what rebalance that brings finds nothing left to drain.
    drop(consumer);
    result
}

/// The end of a partition as the last fetch saw it, without asking.
fn cached_end(consumer: &BaseConsumer<Context>, topic: &str, partition: Partition) -> Option<i64> {
    let topic = std::ffi::CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive and the two places are ours.
    let code = unsafe {
        let rk = consumer.client().native_ptr();
        rd::rd_kafka_get_watermark_offsets(rk, topic.as_ptr(), partition, &mut low, &mut high)
    };
    (code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}
