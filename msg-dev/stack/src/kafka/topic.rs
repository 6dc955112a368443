//! Owns the description of a topic to create.

/// A topic to create.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// The topic's name.
    pub name: String,
    /// The number of partitions.
    pub partitions: i32,
    /// The number of replicas of each partition.
    pub replication: i32,
    /// The topic's settings.
    pub config: Vec<(String, String)>,
}
