//! The error of a partition that librdkafka cannot fetch, and what an operator has to do.

use std::ffi::CStr;

use machine::RecordOffset;
use machine::driver;
use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode;

use crate::metrics;

use rd::rd_kafka_resp_err_t as native;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchError {
    code: rd::rd_kafka_resp_err_t,
    pub offset: Option<RecordOffset>,
    text: String,
}

impl FetchError {
    /// Creates an error. `text` is librdkafka's.
    pub(crate) fn new(code: rd::rd_kafka_resp_err_t, offset: i64, text: String) -> Self {
        // After a damaged batch librdkafka parses bytes that are no batch, and may request the offset that it reads
        // there.
        let is_any = matches!(
            code,
            native::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | native::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE
        );
        FetchError { code, offset: (offset >= 0 && !is_any).then_some(RecordOffset(offset)), text }
    }

    /// # Safety
    /// The message is librdkafka's own, and is not destroyed yet.
    pub(super) unsafe fn of(message: &rd::rd_kafka_message_t) -> Self {
        // SAFETY: the text is the message's, or static.
        let text = unsafe {
            let string = rd::rd_kafka_message_errstr(std::ptr::from_ref(message));
            if string.is_null() { String::new() } else { CStr::from_ptr(string).to_string_lossy().into_owned() }
        };
        FetchError::new(message.err, message.offset, text)
    }

    /// Returns the name of the error's code, such as `TOPIC_AUTHORIZATION_FAILED`; librdkafka's own errors start with
    /// `_`.
    pub(crate) fn name(&self) -> &'static str {
        name(self.code)
    }

    /// Counts the error, and converts it for the driver.
    pub(super) fn into_driver(self) -> driver::FailedFetch {
        metrics::fetch_failed(self.name());
        let (damaged, text) = (self.is_damage(), self.describe());
        let error = machine::consumer::FetchError { offset: self.offset, damaged, text, jitter: rand::random() };
        driver::FailedFetch { error, out_of_range: self.is_out_of_range() }
    }

    /// Returns whether the batch exists and cannot be read: its checksum is wrong, or it cannot be decoded.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(
            self.code,
            native::RD_KAFKA_RESP_ERR__BAD_MSG
                | native::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
                | native::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED
        )
    }

    /// Returns whether the next record is not in the log: it was deleted, or Kafka lost the tail of the log.
    pub(crate) fn is_out_of_range(&self) -> bool {
        self.code == native::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
    }

    /// Returns what happened, and what an operator has to do.
    pub(crate) fn describe(&self) -> String {
        let advice = match RDKafkaErrorCode::from(self.code) {
            _ if self.is_damage() => {
                "the batch is damaged or cannot be decoded, so none of its records is stored: repair the broker's log \
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
        format!("{} ({}): {advice}", self.text, self.name())
    }
}

pub(crate) fn name(code: rd::rd_kafka_resp_err_t) -> &'static str {
    // SAFETY: the text is static, and never null.
    let name = unsafe { CStr::from_ptr(rd::rd_kafka_err2name(code)) };
    name.to_str().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetch_error_has_name_offset_and_advice() {
        let error = FetchError::new(native::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 7, "no".into());
        assert_eq!((error.name(), error.offset), ("TOPIC_AUTHORIZATION_FAILED", Some(RecordOffset(7))));
        assert!(error.describe().contains("READ") && !error.is_damage());
        let error = FetchError::new(native::RD_KAFKA_RESP_ERR__BAD_MSG, -1001, "checksum".into());
        assert_eq!((error.name(), error.offset, error.is_damage()), ("_BAD_MSG", None, true));
    }
}
