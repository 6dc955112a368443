//! Owns the errors of requests to Kafka: the request, its topic, partition or group, and the error that the client reported.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio::task::JoinError;

use super::cause::{Causes, describe, describe_with};
use crate::partition::Partition;

/// A request to Kafka that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text names its fields")]
pub enum RequestError {
    #[error("cannot create a Kafka client")]
    Create(#[source] Box<ClientError>),
    #[error("cannot {request} of topic {topic}")]
    Topic {
        /// A verb and its object, such as `read the ID`.
        request: &'static str,
        topic: String,
        #[source]
        source: Box<ClientError>,
    },
    #[error("cannot {request} of topic {topic} partition {partition}")]
    Partition {
        request: &'static str,
        topic: String,
        partition: Partition,
        #[source]
        source: Box<ClientError>,
    },
    #[error("cannot describe group {group}")]
    Group {
        group: String,
        #[source]
        source: Box<ClientError>,
    },
}

/// The error that a client reported for a request. An error of librdkafka is not a `source`, because this error's text already
/// contains it, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text names its fields")]
pub enum ClientError {
    #[error("{}", describe(.0))]
    Kafka(KafkaError),
    /// librdkafka returned this error with a text of its own.
    #[error("{text}")]
    Event { code: RDKafkaErrorCode, text: String },
    /// The error does not name the cause that the client's callbacks received.
    #[error("{error}: {cause}")]
    Explained {
        error: Box<ClientError>,
        /// The cause, and what to do.
        cause: String,
    },
    #[error("topic {0} does not exist")]
    MissingTopic(String),
    /// This is why the group has no coordinator. librdkafka only reports a timeout.
    #[error("{}", describe_with(RDKafkaErrorCode::CoordinatorNotAvailable, .0))]
    MissingCoordinator(String),
    /// Some brokers return the ID of another topic, or none.
    #[error("{0}")]
    TopicId(&'static str),
    /// A broker leaves settings out if the user lacks the right to read them. rust-rdkafka does not pass that error on.
    #[error("the broker does not return {0}: the Kafka user lacks a right on the topic; grant it DESCRIBE_CONFIGS")]
    NotDescribed(String),
    /// A setting has a value that cannot be read.
    #[error("{name} is {value}, expected a number")]
    NotANumber { name: String, value: String },
    #[error("it has no leader; check the brokers")]
    NoLeader,
    #[error("no response in time")]
    TimedOut,
    /// These partitions have no leader, or it did not respond in time.
    #[error("no response of the leaders of partitions {0:?} in time; check the brokers")]
    Silent(Vec<Partition>),
    /// The response does not fit the request.
    #[error("the response has {0} topics, expected 1")]
    Unexpected(usize),
    /// The process stops before the request has ended.
    #[error("the process stops")]
    Stopped,
}

impl From<KafkaError> for ClientError {
    fn from(error: KafkaError) -> Self {
        ClientError::Kafka(error)
    }
}

impl From<RDKafkaErrorCode> for ClientError {
    fn from(code: RDKafkaErrorCode) -> Self {
        ClientError::Kafka(KafkaError::Global(code))
    }
}

impl From<JoinError> for ClientError {
    /// A panic ends the process, so a task that cannot be joined was cancelled.
    fn from(_: JoinError) -> Self {
        ClientError::Stopped
    }
}

impl ClientError {
    /// Adds the cause that the client's callbacks received within the last minute, if this error does not name it.
    pub fn explained(self, causes: &Causes) -> Self {
        match causes.recent() {
            // These need no further cause.
            _ if matches!(self, ClientError::MissingTopic(_) | ClientError::MissingCoordinator(_)) => self,
            Some(cause) if !self.to_string().contains(&cause) => {
                ClientError::Explained { error: Box::new(self), cause }
            }
            _ => self,
        }
    }
}

impl RequestError {
    /// The client could not be created.
    pub fn create(error: KafkaError) -> Self {
        RequestError::Create(Box::new(error.into()))
    }

    /// Returns a function that adds the topic's name to an error of the client.
    pub fn of_topic<E: Into<ClientError>>(request: &'static str, topic: &str) -> impl FnOnce(E) -> Self {
        move |source| RequestError::Topic { request, topic: topic.to_owned(), source: Box::new(source.into()) }
    }

    /// Returns a function that adds the partition to an error of the client.
    pub fn of_partition<E: Into<ClientError>>(
        request: &'static str,
        topic: &str,
        partition: Partition,
    ) -> impl FnOnce(E) -> Self {
        move |source| RequestError::Partition {
            request,
            topic: topic.to_owned(),
            partition,
            source: Box::new(source.into()),
        }
    }

    /// Returns whether the topic does not exist.
    pub fn is_missing_topic(&self) -> bool {
        matches!(self, RequestError::Topic { source, .. } if matches!(**source, ClientError::MissingTopic(_)))
    }

    /// Returns why the group has no coordinator, if that is the error.
    pub fn missing_coordinator(&self) -> Option<&str> {
        match self {
            RequestError::Topic { source, .. } | RequestError::Group { source, .. } => match &**source {
                ClientError::MissingCoordinator(detail) => Some(detail),
                _ => None,
            },
            _ => None,
        }
    }

    /// Adds the cause that the client's callbacks received within the last minute, if this error does not name it.
    pub fn explained(mut self, causes: &Causes) -> Self {
        let (RequestError::Create(source)
        | RequestError::Topic { source, .. }
        | RequestError::Partition { source, .. }
        | RequestError::Group { source, .. }) = &mut self;
        **source = std::mem::replace(&mut **source, ClientError::Stopped).explained(causes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn chain_names_request_topic_and_what_to_do() {
        let error: RequestError = RequestError::of_partition("read a record", "msgs", 3)(RDKafkaErrorCode::SSL);
        let text = chain(&error);
        assert!(text.starts_with("cannot read a record of topic msgs partition 3: "), "{text}");
        assert!(text.contains("TLS to Kafka fails; check KAFKA_SECURITY_PROTOCOL"), "{text}");
    }

    #[test]
    fn missing_topic_is_not_explained() {
        let causes = Causes::default();
        causes.note(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        let error = |source: ClientError| RequestError::of_topic("read the ID", "msgs")(source).explained(&causes);
        assert!(error(ClientError::MissingTopic("msgs".to_owned())).is_missing_topic());
        let text = chain(&error(ClientError::TimedOut));
        assert!(text.contains("no response in time: 1/1 brokers are down: no broker can be reached"), "{text}");
    }
}
