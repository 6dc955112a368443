//! Opens the connections of a pool, and lets the pool reuse one only if its server still passes the checks.

use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};

use super::client::{Canceller, Client};
use super::connector::Connector;
use super::error::{ConnectError, HostError};
use crate::error::chain;

/// The pool reuses a connection without a check if its server was checked less than this ago.
const TRUSTED: Duration = Duration::from_secs(2);

/// Opens and checks the connections of a pool.
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

    /// Returns the connector that opens the connections.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Checks whether the server of this connection still fits its purpose.
    pub async fn verify(&self, client: &Client) -> Result<(), HostError> {
        self.connector.verify(client).await
    }

    /// Returns a handle that cancels a statement of this connection.
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
        // Checking each connection to a silent server would need the whole timeout.
        if self.connector.silent_since(client.host()).is_some_and(|since| since > client.verified) {
            return Err(ReuseError::Silent);
        }
        if client.verified.elapsed() < TRUSTED {
            return Ok(());
        }
        let checked = Instant::now();
        match self.verify(client).await {
            Ok(()) => {
                client.verified = checked;
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
        // The future is large and rarely needed. Without the box, every future that uses the pool would contain it.
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
