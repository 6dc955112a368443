//! Polls the events of clients that do not read all of them: a consumer that only sends requests, and rust-rdkafka's `AdminClient`,
//! which reads only the responses to its own requests. Otherwise errors and log lines would accumulate while Kafka is unavailable.

use std::ffi::CStr;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;

/// Discards the events of a consumer that receives no records: the results of its requests are enough. Does not wait.
pub fn discard<C: ConsumerContext>(consumer: &BaseConsumer<C>) {
    while consumer.poll(Duration::ZERO).is_some() {}
}

/// Passes the events since the last call to the client's context. Does not wait.
pub fn drain<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client is alive, each event is destroyed once after its last use, and so is the reference to the queue. The
    // texts belong to the event.
    unsafe {
        let queue = rd::rd_kafka_queue_get_main(client.native_ptr());
        loop {
            let event = rd::rd_kafka_queue_poll(queue, 0);
            if event.is_null() {
                break;
            }
            match rd::rd_kafka_event_type(event) {
                rd::RD_KAFKA_EVENT_ERROR => {
                    let error = KafkaError::Global(rd::rd_kafka_event_error(event).into());
                    let text = CStr::from_ptr(rd::rd_kafka_event_error_string(event)).to_string_lossy();
                    client.context().error(error, text.trim());
                }
                rd::RD_KAFKA_EVENT_LOG => pass_log_line(event, client),
                _ => {}
            }
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_queue_destroy(queue);
    }
}

/// Passes the log line of this event to the client's callback.
///
/// # Safety
/// `event` is of the kind LOG, and outlives the call.
pub unsafe fn pass_log_line<C: ClientContext>(event: *mut rd::rd_kafka_event_t, client: &Client<C>) {
    let (mut facility, mut text, mut level) = (std::ptr::null(), std::ptr::null(), 0);
    // SAFETY: as above; both strings belong to the event, and are only read here.
    unsafe {
        if rd::rd_kafka_event_log(event, &mut facility, &mut text, &mut level) == 0 {
            let facility = CStr::from_ptr(facility).to_string_lossy();
            let text = CStr::from_ptr(text).to_string_lossy();
            client.context().log(level_of(level), facility.trim(), text.trim());
        }
    }
}

/// Returns the level of a number of syslog.
fn level_of(level: i32) -> RDKafkaLogLevel {
    match level {
        ..=0 => RDKafkaLogLevel::Emerg,
        1 => RDKafkaLogLevel::Alert,
        2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}
