//! A connection, with what is known of its server.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::ClientWrapper;
use tokio_postgres::{CancelToken, Error, NoTls};

use super::error::HostError;
use super::server::Server;
use super::socket::{Address, Socket};
use super::warnings::Warnings;

/// A pooled connection is used for at most this long. What moved behind a name or a proxy is found after it at the latest.
const MAX_AGE: Duration = Duration::from_secs(300);

/// A connection to a server that was what it should be when it was made.
#[derive(Debug)]
pub struct Client {
    wrapper: ClientWrapper,
    warnings: Arc<Warnings>,
    /// Of the URL, for messages.
    name: String,
    address: Address,
    server: Option<Server>,
    /// When its server was last known to be what it should be.
    pub(super) verified: Instant,
    /// When it is too old to be used from the pool again.
    pub(super) expires: Instant,
}

impl Client {
    pub(super) fn new(wrapper: ClientWrapper, warnings: Arc<Warnings>, name: String, address: Address) -> Self {
        let now = Instant::now();
        // Those that were made together must not all go together.
        let expires = now + MAX_AGE.mul_f64(0.8 + 0.2 * rand::random::<f64>());
        Client { wrapper, warnings, name, address, server: None, verified: now, expires }
    }

    pub(super) fn set_server(&mut self, server: Server) {
        self.server = Some(server);
        self.verified = Instant::now();
    }

    /// Its server, as it was when the connection was made.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it is read before a connection is given away")
    }

    /// Carries out what commits, and returns the last WARNING that the server sent meanwhile. With a warning it is committed
    /// here, and perhaps not on a standby, or not to be seen yet. Nothing else may be under way on this connection.
    pub async fn commit<T>(
        &self,
        commit: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Option<String>), Error> {
        let before = self.warnings.count();
        // The connection's task reads a warning before the answer that comes after it.
        let answer = commit.await?;
        Ok((answer, self.warnings.since(before)))
    }

    /// The name and port of its host in the URL.
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

/// Ends the statement that a connection's server is busy with.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    address: Address,
    limit: Duration,
}

impl Canceller {
    pub(super) fn new(token: CancelToken, address: Address, limit: Duration) -> Self {
        Canceller { token, address, limit }
    }

    /// Sends the request, over a connection of its own. Whether it comes in time is not known.
    pub async fn cancel(self) -> Result<(), HostError> {
        let send = async {
            let (socket, _) = Socket::open(&self.address).await.map_err(HostError::Socket)?;
            self.token.cancel_query_raw(socket, NoTls).await.map_err(HostError::Driver)
        };
        let sent = tokio::time::timeout(self.limit, send).await;
        sent.unwrap_or(Err(HostError::Timeout("it did not respond to a cancel request", self.limit)))
    }
}
