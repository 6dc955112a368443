//! The consumer's thread. It polls librdkafka's queues, and blocks on nothing else.

pub mod context;
pub mod events;
pub mod fetch_error;
pub mod identity;
pub mod io;
pub mod kept;
pub mod lookup;
pub mod progress;
pub mod raw;
pub mod stalls;
pub mod starts;

use msg_common::kafka::ClientError;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_util::sync::CancellationToken;

use self::context::Context;

/// Why the consumer cannot continue.
#[derive(Debug, thiserror::Error)]
#[error("the consumer cannot continue")]
pub struct FatalError(#[source] ClientError);

/// Consumes until `stop` is cancelled. Then it drains, commits and leaves the group. Blocks its thread.
pub fn run(consumer: BaseConsumer<Context>, stop: &CancellationToken) -> Result<(), FatalError> {
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
