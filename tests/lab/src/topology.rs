//! Owns the names and the numbers of what is under test.

/// The topic, the group and the database.
pub(crate) const TOPIC: &str = "msgs";
pub(crate) const GROUP: &str = "msg-transfer";
pub(crate) const DATABASE: &str = "msg";
/// Number of partitions of the topic at the start.
pub(crate) const PARTITIONS: i32 = 12;
/// Number of gateways, maximum number of transfers, and number of brokers.
pub(crate) const GATEWAYS: usize = 2;
pub(crate) const TRANSFERS: usize = 8;
pub(crate) const BROKERS: usize = 3;
