//! The consumer's thread. It polls librdkafka's queues, and blocks on nothing else.

pub(crate) mod context;
pub(crate) mod events;
pub(crate) mod fetch_error;
pub(crate) mod identity;
pub(crate) mod io;
pub(crate) mod kept;
pub(crate) mod lookup;
pub(crate) mod pace;
pub(crate) mod progress;
pub(crate) mod raw;
pub(crate) mod stalls;
pub(crate) mod starts;

use msg_common::kafka::{ClientError, KafkaClient};
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_util::sync::CancellationToken;

use self::context::Context;

/// Why the consumer cannot continue.
#[derive(Debug, thiserror::Error)]
#[error("the consumer cannot continue")]
pub struct FatalError(#[source] ClientError);

/// Consumes until `stop` is cancelled. Then it drains, commits and leaves the group. Blocks its thread.
pub(crate) fn run(consumer: KafkaClient<BaseConsumer<Context>>, stop: &CancellationToken) -> Result<(), FatalError> {
    let context = consumer.client().context().clone();
    context.open(&consumer);
    let result = loop {
        match context.turn(&consumer, stop.is_cancelled()) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(FatalError(error)),
        }
    };
    context.close();
    // Leaves the group. A rebalance that this causes has no record to drain.
    drop(consumer);
    result
}
