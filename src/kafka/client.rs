//! Creates the Kafka clients of a process. Each of them has the process's token, whether or not its events are polled.

use std::ops::Deref;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::producer::future_producer::FutureProducerContext;
use rdkafka::producer::{FutureProducer, Producer as _, ProducerContext};

use super::oauth::{Registration, SharedToken};
use super::polled::PolledProducer;

/// The settings of a client, and the token that it logs in with if its mechanism is OAUTHBEARER.
#[derive(Clone, Default)]
pub struct ClientSetup {
    config: ClientConfig,
    token: SharedToken,
}

impl std::fmt::Debug for ClientSetup {
    /// Shows no values: one of them is the private key. rdkafka's own implementation hides passwords only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSetup").finish_non_exhaustive()
    }
}

impl ClientSetup {
    /// Returns librdkafka's default settings for a client that logs in with this token.
    pub(super) fn new(token: SharedToken) -> Self {
        ClientSetup { config: ClientConfig::new(), token }
    }

    /// Changes a setting of librdkafka.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.config.set(key, value);
        self
    }

    /// Returns the value of a setting that was set.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.config.get(key)
    }

    /// Returns librdkafka's settings. A client that is created with them alone never has a token.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Creates a client. It has the token before it opens its first connection, and each new one as soon as it exists.
    pub fn create_with_context<C, T>(&self, context: C) -> KafkaResult<KafkaClient<T>>
    where
        C: ClientContext,
        T: FromClientConfigAndContext<C> + OwnsClient,
    {
        let client = T::from_config_and_context(&self.config, context)?;
        // SAFETY: the registration is a field of `KafkaClient` that is dropped before the client.
        let registration = unsafe { self.token.register(client.owned()) };
        Ok(KafkaClient { _registration: registration, client })
    }
}

impl From<ClientConfig> for ClientSetup {
    /// A client of these settings never has a token.
    fn from(config: ClientConfig) -> Self {
        ClientSetup { config, token: SharedToken::default() }
    }
}

/// A client that always has the last token of the process.
pub struct KafkaClient<T> {
    // Dropped first: a client that no longer exists must not get a token. So there is no access to the client except by
    // reference.
    _registration: Registration,
    client: T,
}

impl<T> Deref for KafkaClient<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.client
    }
}

/// A type that owns a client of librdkafka.
///
/// # Safety
/// The client must exist until the value is dropped.
pub unsafe trait OwnsClient {
    /// The callbacks of the client.
    type Context: ClientContext + 'static;

    /// Returns the client.
    fn owned(&self) -> &Client<Self::Context>;
}

// SAFETY: the client is a field of a consumer.
unsafe impl<C: ConsumerContext + 'static> OwnsClient for BaseConsumer<C> {
    type Context = C;

    fn owned(&self) -> &Client<C> {
        self.client()
    }
}

// SAFETY: the client is a field of it.
unsafe impl<C: ClientContext + 'static> OwnsClient for AdminClient<C> {
    type Context = C;

    fn owned(&self) -> &Client<C> {
        self.inner()
    }
}

// SAFETY: it owns a share of the producer, and the client is a field of that.
unsafe impl<C: ProducerContext + 'static> OwnsClient for PolledProducer<C> {
    type Context = C;

    fn owned(&self) -> &Client<C> {
        self.client()
    }
}

// SAFETY: it owns a share of the producer, and the client is a field of that.
unsafe impl<C: ClientContext + 'static> OwnsClient for FutureProducer<C> {
    type Context = FutureProducerContext<C>;

    fn owned(&self) -> &Client<FutureProducerContext<C>> {
        self.client()
    }
}
