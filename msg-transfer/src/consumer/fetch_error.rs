//! What librdkafka reports of a partition that it cannot fetch, and what that means for an operator.

use std::ffi::CStr;

use machine::RecordOffset;
use machine::consumer::FetchFailure;
use machine::driver;
use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode;

use crate::metrics;

use rd::rd_kafka_resp_err_t as native;

/// An error of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchError {
    code: rd::rd_kafka_resp_err_t,
    /// The offset that it is about, where there is one.
    pub offset: Option<RecordOffset>,
    says: String,
}

impl FetchError {
    /// `says` is librdkafka's text.
    pub fn new(code: rd::rd_kafka_resp_err_t, offset: i64, says: String) -> Self {
        // Behind a damaged batch librdkafka parses bytes that are no batch, and may ask for the offset that it finds there.
        let is_any = matches!(
            code,
            native::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | native::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE
        );
        FetchError { code, offset: (offset >= 0 && !is_any).then_some(RecordOffset(offset)), says }
    }

    /// # Safety
    /// The message is librdkafka's own, and is not destroyed yet.
    pub(super) unsafe fn of(message: &rd::rd_kafka_message_t) -> Self {
        // SAFETY: the text is the message's, or static.
        let says = unsafe {
            let text = rd::rd_kafka_message_errstr(std::ptr::from_ref(message));
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        FetchError::new(message.err, message.offset, says)
    }

    /// Its name, such as `TOPIC_AUTHORIZATION_FAILED`; librdkafka's own errors start with `_`.
    pub fn name(&self) -> &'static str {
        name(self.code)
    }

    /// Counts it, and makes of it what the driver needs.
    pub(super) fn into_driver(self) -> driver::FetchError {
        metrics::fetch_failed(self.name());
        let (damaged, text) = (self.is_damage(), self.describe());
        let failure = FetchFailure { offset: self.offset, damaged, text, jitter: rand::random() };
        driver::FetchError { failure, out_of_range: self.is_out_of_range() }
    }

    /// The batch is there and cannot be read: its checksum is wrong, or it cannot be decoded.
    pub fn is_damage(&self) -> bool {
        matches!(
            self.code,
            native::RD_KAFKA_RESP_ERR__BAD_MSG
                | native::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
                | native::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED
        )
    }

    /// The record that follows is not in the log: it was deleted, or Kafka lost the log's tail.
    pub fn is_out_of_range(&self) -> bool {
        self.code == native::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
    }

    /// What is wrong, and what to do about it.
    pub fn describe(&self) -> String {
        let advice = match RDKafkaErrorCode::from(self.code) {
            _ if self.is_damage() => {
                "the batch is damaged or cannot be decoded, and nothing of it is stored: repair the broker's log \
                 (docs/operations.md, \"A damaged batch\"), then run msg-transfer resume"
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => "grant the transfer's Kafka user READ on the topic",
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                "the offset is not in the partition's log, so the start offset is resolved again"
            }
            RDKafkaErrorCode::UnsupportedCompressionType => {
                "the topic's compression.type is one that this client cannot read: change it"
            }
            _ => "see the brokers' logs",
        };
        format!("{} ({}): {advice}", self.says, self.name())
    }
}

/// The name of an error code.
pub fn name(code: rd::rd_kafka_resp_err_t) -> &'static str {
    // SAFETY: the text is static, and never null.
    let name = unsafe { CStr::from_ptr(rd::rd_kafka_err2name(code)) };
    name.to_str().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_name_and_offset_and_says_what_to_do() {
        let error = FetchError::new(native::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 7, "no".into());
        assert_eq!((error.name(), error.offset), ("TOPIC_AUTHORIZATION_FAILED", Some(RecordOffset(7))));
        assert!(error.describe().contains("READ") && !error.is_damage());
        let error = FetchError::new(native::RD_KAFKA_RESP_ERR__BAD_MSG, -1001, "checksum".into());
        assert_eq!((error.name(), error.offset, error.is_damage()), ("_BAD_MSG", None, true));
    }
}
