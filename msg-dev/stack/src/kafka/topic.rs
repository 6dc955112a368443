//! Owns the description of a topic to create.

#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct TopicSpec {
    pub name: String,
    pub partitions: i32,
    pub replication: i32,
    pub config: Vec<(String, String)>,
}
