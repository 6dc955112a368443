//! Owns the description of a topic that is created.

/// A topic to create.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: i32,
    /// How many replicas each has.
    pub replication: i32,
    /// Its settings.
    pub config: Vec<(String, String)>,
}
