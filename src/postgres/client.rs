//! Owns a connection to the database, with the state of its server.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::ClientWrapper;
use tokio_postgres::{CancelToken, Error};

use super::error::HostError;
use super::server::{Identity, Server};
use super::socket::{Address, Socket};
use super::tls::{Established, Tls};
use super::warnings::Warnings;

/// Maximum age of a pooled connection. If a name or a proxy leads to another server, the pool connects to that server after
/// this time at the latest.
pub(super) const MAX_AGE: Duration = Duration::from_secs(300);

/// A connection to a server that passed the checks of its purpose.
#[derive(Debug)]
pub struct Client {
    wrapper: ClientWrapper,
    warnings: Arc<Warnings>,
    /// The host's name in the URL, for messages.
    name: String,
    address: Address,
    server: Option<Server>,
    /// When its server last passed the checks.
    pub(super) verified: Instant,
    /// When the pool closes it instead of using it again.
    pub(super) expires: Instant,
}

impl Client {
    pub(super) fn new(wrapper: ClientWrapper, warnings: Arc<Warnings>, name: String, address: Address) -> Self {
        let now = Instant::now();
        // The random part spreads the expiry of connections that were opened together.
        let expires = now + MAX_AGE.mul_f64(0.8 + 0.2 * rand::random::<f64>());
        Client { wrapper, warnings, name, address, server: None, verified: now, expires }
    }

    pub(super) fn set_server(&mut self, server: Server) {
        self.server = Some(server);
        self.verified = Instant::now();
    }

    /// Returns the state of its server when the connection was opened.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the connector sets it before it returns the connection")
    }

    /// Reads the identity of its server again. A right to read it may have been granted or revoked since the connection was
    /// opened.
    pub async fn read_identity(&self) -> Result<Identity, Error> {
        Ok(Server::read(self).await?.identity)
    }

    /// Replaces the identity of its server.
    pub fn set_identity(&mut self, identity: Identity) {
        if let Some(server) = &mut self.server {
            server.identity = identity;
        }
    }

    /// Awaits a COMMIT, and returns its result and the last WARNING that the server sent meanwhile. After a warning, the
    /// transaction is committed on this server, but a standby may lack it, or its rows may not be visible yet. No other
    /// statement may be in flight on this connection.
    pub async fn commit<T>(
        &self,
        commit: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Option<String>), Error> {
        let before = self.warnings.count();
        // The server sends the warning before the result, and the connection's task reads them in this order.
        let result = commit.await?;
        Ok((result, self.warnings.since(before)))
    }

    /// Returns the name and port of its host in the URL.
    pub fn host(&self) -> &str {
        &self.name
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl Deref for Client {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.wrapper
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut ClientWrapper {
        &mut self.wrapper
    }
}

/// Cancels the statement that a connection's server executes.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    address: Address,
    tls: Option<Tls>,
    limit: Duration,
}

impl Canceller {
    pub(super) fn new(token: CancelToken, address: Address, tls: Option<Tls>, limit: Duration) -> Self {
        Canceller { token, address, tls, limit }
    }

    /// Sends the cancel request over a connection of its own. The server may have finished the statement before.
    pub async fn cancel(self) -> Result<(), HostError> {
        let send = async {
            let stream = self.address.open().await.map_err(HostError::Socket)?;
            let (socket, _) = Socket::new(self.address.encrypt(stream, self.tls.as_ref()).await?);
            self.token.cancel_query_raw(socket, Established).await.map_err(HostError::Driver)
        };
        let sent = tokio::time::timeout(self.limit, send).await;
        sent.unwrap_or(Err(HostError::Timeout("it did not respond to a cancel request", self.limit)))
    }
}
