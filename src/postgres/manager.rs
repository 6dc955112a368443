//! Makes a pool's connections, and gives an old one out again only if its server still is what it should be.

use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};

use super::client::{Canceller, Client};
use super::connector::Connector;
use super::error::{ConnectError, HostError};
use crate::error::chain;

/// A connection whose server was looked at less than this ago is given out without another look.
const TRUSTED: Duration = Duration::from_secs(2);

/// What a pool makes its connections with.
#[derive(Debug)]
pub struct Manager {
    connector: Connector,
}

/// Why a connection is not used again.
#[derive(Debug, thiserror::Error)]
enum ReuseError {
    #[error("it is closed")]
    Closed,
    #[error("it is too old")]
    Old,
    #[error("its server did not respond over another connection")]
    Silent,
    #[error(transparent)]
    Server(HostError),
}

impl Manager {
    pub(super) fn new(connector: Connector) -> Self {
        Manager { connector }
    }

    /// What makes the connections.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Says why this connection's server is not, or no longer, what it should be.
    pub async fn verify(&self, client: &Client) -> Result<(), HostError> {
        self.connector.verify(client).await
    }

    /// What can end a statement of this connection from outside.
    pub fn canceller(&self, client: &Client) -> Canceller {
        self.connector.canceller(client)
    }

    async fn reuse(&self, client: &mut Client) -> Result<(), ReuseError> {
        if client.is_closed() {
            return Err(ReuseError::Closed);
        }
        if client.expires <= Instant::now() {
            return Err(ReuseError::Old);
        }
        // Each of them would take the whole time-out.
        if self.connector.silent_since(client.host()).is_some_and(|since| since > client.verified) {
            return Err(ReuseError::Silent);
        }
        if client.verified.elapsed() < TRUSTED {
            return Ok(());
        }
        let asked = Instant::now();
        match self.verify(client).await {
            Ok(()) => {
                client.verified = asked;
                Ok(())
            }
            Err(error) => {
                if matches!(error, HostError::Timeout(..)) {
                    self.connector.avoid(client.host());
                }
                Err(ReuseError::Server(error))
            }
        }
    }
}

impl managed::Manager for Manager {
    type Type = Client;
    type Error = ConnectError;

    async fn create(&self) -> Result<Client, ConnectError> {
        // On the heap, as it is rare and large: every future that may need a connection would hold it.
        Box::pin(self.connector.connect()).await
    }

    async fn recycle(&self, client: &mut Client, _: &Metrics) -> RecycleResult<ConnectError> {
        Box::pin(self.reuse(client)).await.map_err(|error| {
            let reason = chain(&error);
            tracing::debug!(reason, host = client.host(), "dropped a database connection");
            RecycleError::message(reason)
        })
    }
}
