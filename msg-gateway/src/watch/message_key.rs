//! The key of a message whose row is awaited.

use std::time::SystemTime;

use msg_common::hint::record_hash;
use uuid::Uuid;

/// The inbox, ID and Kafka position of a message whose row is awaited.
#[derive(Clone, Debug)]
pub(crate) struct MessageKey {
    pub(crate) recv_id: String,
    pub(crate) msg_id: Uuid,
    pub(crate) send_time: SystemTime,
    pub(crate) partition: i32,
    /// `None` if Kafka confirmed the record without its offset.
    pub(crate) offset: Option<i64>,
}

impl MessageKey {
    /// Returns the send time in milliseconds since 1970.
    pub(crate) fn send_time_ms(&self) -> i64 {
        let since_epoch = self.send_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }

    /// Returns the hash of its record.
    pub(crate) fn hash(&self) -> u64 {
        record_hash(self.msg_id, self.send_time_ms())
    }
}
