//! librdkafka's callbacks of the clients that read or check the hints topic.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

/// The callbacks of the clients that read or check the hints topic: they only log.
pub(super) struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The next poll returns the same error, and it is handled there.
        tracing::debug!(%error, reason, "client of the hints topic reported an error");
    }
}

impl ConsumerContext for LogContext {}
