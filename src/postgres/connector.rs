//! Opens connections to the database: tries each host of the URL with a timeout of its own, and returns a connection only if
//! its server passes the checks of the purpose. No other code opens sockets to the database.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::ClientWrapper;
use rand::seq::SliceRandom;
use tokio::time::{timeout, timeout_at};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, TargetSessionAttrs};

use super::client::{Canceller, Client, MAX_AGE};
use super::error::{ConnectError, HostError};
use super::hosts::{Servers, Target, targets};
use super::server::{self, Purpose, Refusal, Server};
use super::session::{self, NEWER_SETTINGS};
use super::settings::Settings;
use super::socket::{Address, Socket};
use super::tls::{self, Established};
use super::warnings::{self, Warnings};
use super::{DatabaseOptions, pooler};
use crate::config::SettingError;
use crate::error::chain;

/// For how long a host that did not respond is tried after the others.
const AVOIDED: Duration = Duration::from_secs(60);

/// Opens connections for one purpose.
#[derive(Debug)]
pub struct Connector {
    options: DatabaseOptions,
    name: String,
    /// Statements that are run on each new connection before its server is checked.
    settings: String,
    /// Statements that are run once on each new connection after that.
    session: String,
    purpose: Purpose,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// The settings that were read last.
    settings: Settings,
    /// When a host, and an address, last did not respond.
    silent: HashMap<String, Instant>,
    /// The addresses that have no pooler in transaction mode.
    direct: HashSet<Address>,
    /// The number of addresses that the last name resolved to.
    addresses: usize,
}

impl State {
    fn avoid(&mut self, name: &str) {
        // A name may have other addresses each time, so the old ones are removed.
        self.silent.retain(|_, at| at.elapsed() < MAX_AGE);
        self.silent.insert(name.to_owned(), Instant::now());
    }
}

impl Connector {
    /// Returns a connector whose connections have the application name `name`. It does not connect yet.
    pub fn new(options: DatabaseOptions, name: &str, session: &str, purpose: Purpose) -> Result<Self, SettingError> {
        let url = Settings::load(&options)?;
        let statement_timeout = options.stall_timeout().map_or(0, |_| options.database_statement_timeout.as_millis());
        let settings = session::settings(statement_timeout);
        let session = format!("{NEWER_SETTINGS}; {session}");
        let state = State { settings: url, silent: HashMap::new(), direct: HashSet::new(), addresses: 0 };
        let state = Arc::new(Mutex::new(state));
        Ok(Connector { options, name: name.to_owned(), settings, session, purpose, state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns when a host last did not respond, or `None` if it has responded since.
    pub(super) fn silent_since(&self, name: &str) -> Option<Instant> {
        self.lock().silent.get(name).copied()
    }

    /// Lets the connector try this host or address after the others for one minute.
    pub(super) fn avoid(&self, name: &str) {
        self.lock().avoid(name);
    }

    /// Returns the timeout for one host: for the connection, the login, the checks and the session's settings together.
    pub(super) fn limit(&self) -> Duration {
        self.options.database_connect_timeout
    }

    /// Opens a connection to the first host whose server passes the checks.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let settings = self.settings().await;
        let targets = targets(&settings.url.config);
        let mut targets = targets.map_err(|problem| ConnectError::Settings(self.options.invalid(problem)))?;
        // Try the hosts that responded last time first: each silent host costs its whole timeout.
        targets.sort_by_cached_key(|target| self.is_avoided(&target.name));
        let mut failures = Vec::new();
        for target in &targets {
            match self.connect_host(&settings, target, targets.len()).await {
                Ok(client) => return Ok(client),
                Err(failed) => failures.extend(failed),
            }
        }
        Err(ConnectError::Hosts(failures))
    }

    /// Returns the settings as they are now: the files are read again for each connection. While a file is missing or
    /// invalid, it returns the last valid ones.
    async fn settings(&self) -> Settings {
        let (options, previous) = (self.options.clone(), self.lock().settings.clone());
        let read = tokio::task::spawn_blocking(move || Settings::load_again(&options, &previous));
        let read = match timeout(self.limit(), read).await {
            Ok(Ok(read)) => read,
            // The task was cancelled because the process stops, or the file system did not respond.
            Ok(Err(_)) | Err(_) => Err(SettingError::FileTimedOut { setting: self.options.flags.url_file }),
        };
        let mut state = self.lock();
        match read {
            Ok(settings) => state.settings = settings,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot read the database url again, using the previous one")
            }
        }
        let mut settings = state.settings.clone();
        if settings.url.config.get_application_name().is_none() {
            settings.url.config.application_name(&self.name);
        }
        settings
    }

    fn is_avoided(&self, name: &str) -> bool {
        self.silent_since(name).is_some_and(|at| at.elapsed() < AVOIDED)
    }

    async fn connect_host(
        &self,
        settings: &Settings,
        target: &Target,
        names: usize,
    ) -> Result<Client, Vec<(String, HostError)>> {
        let addresses = match self.resolve(&settings.url.config, target).await {
            Ok(addresses) => addresses,
            Err(error) => return Err(vec![(target.name.clone(), error)]),
        };
        self.connect_any(settings, &target.name, addresses, names).await
    }

    /// Connects to the first of a name's addresses whose server passes the checks. The URL has this number of `names`.
    async fn connect_any(
        &self,
        settings: &Settings,
        name: &str,
        mut addresses: Vec<Address>,
        names: usize,
    ) -> Result<Client, Vec<(String, HostError)>> {
        self.lock().addresses = addresses.len();
        addresses.sort_by_cached_key(|address| self.is_avoided(&address.to_string()));
        let mut servers = Servers::new(names, addresses.len());
        let mut failures = Vec::new();
        for address in addresses {
            match self.connect_address(settings, name, &address, &mut servers).await {
                Ok(client) => {
                    let mut state = self.lock();
                    state.silent.remove(name);
                    state.silent.remove(&address.to_string());
                    return Ok(client);
                }
                Err(error) => {
                    let address = address.to_string();
                    if matches!(error, HostError::Timeout(..)) {
                        self.avoid(name);
                        self.avoid(&address);
                    }
                    let host = if address == *name { address } else { format!("{name} ({address})") };
                    failures.push((host, error));
                }
            }
        }
        Err(failures)
    }

    async fn resolve(&self, config: &Config, target: &Target) -> Result<Vec<Address>, HostError> {
        let name = match &target.host {
            Host::Tcp(name) => name,
            Host::Unix(folder) => return Ok(vec![Address::Unix(folder.join(format!(".s.PGSQL.{}", target.port)))]),
        };
        let found = timeout(self.limit(), tokio::net::lookup_host((name.as_str(), target.port))).await;
        let found = found.map_err(|_| HostError::Timeout("the name was not resolved", self.limit()))?;
        let mut found: Vec<SocketAddr> = found.map_err(HostError::Name)?.collect();
        if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            found.shuffle(&mut rand::rng());
        }
        Ok(found.into_iter().map(|address| Address::Tcp { address, host: target.certified.clone() }).collect())
    }

    /// Connects to one address and checks its server, within the timeout of a host.
    async fn connect_address(
        &self,
        settings: &Settings,
        name: &str,
        address: &Address,
        servers: &mut Servers,
    ) -> Result<Client, HostError> {
        let limit = self.limit();
        let started = Instant::now();
        let client = self.log_in(settings, name, address, limit).await?;
        let left = limit.saturating_sub(started.elapsed());
        let client = timeout(left, self.prepare(&settings.url.config, client, servers)).await;
        let client =
            client.map_err(|_| HostError::Timeout("it accepted the login and did not respond to a query", limit))??;
        self.refuse_pooler(settings, address, &client).await?;
        Ok(client)
    }

    /// Opens a connection and logs in. The server is not checked yet.
    async fn log_in(
        &self,
        settings: &Settings,
        name: &str,
        address: &Address,
        limit: Duration,
    ) -> Result<Client, HostError> {
        let deadline = tokio::time::Instant::now() + limit;
        let stream = timeout_at(deadline, address.open())
            .await
            .map_err(|_| HostError::Timeout("it accepted no connection", limit))?
            .map_err(HostError::Socket)?;
        let stream = timeout_at(deadline, address.encrypt(stream, settings.tls.as_ref())).await.map_err(|_| {
            HostError::Timeout("it accepted the connection and did not complete the TLS handshake", limit)
        })??;
        let (socket, activity) = Socket::new(stream);
        let (client, connection) = timeout_at(deadline, settings.url.config.connect_raw(socket, Established))
            .await
            .map_err(|_| HostError::Timeout("it accepted the connection and did not respond to the login", limit))?
            .map_err(tls::login_error)?;
        activity.logged_in();
        let stall_timeout = self.options.stall_timeout();
        let (peer, host, state) = (address.clone(), name.to_owned(), Arc::clone(&self.state));
        let warnings = Arc::new(Warnings::default());
        let noted = Arc::clone(&warnings);
        let task = tokio::spawn(async move {
            tokio::select! {
                ended = warnings::drive(connection, &noted) => {
                    if let Err(error) = ended {
                        tracing::debug!(error = super::error::describe(&error), "database connection ended");
                    }
                }
                // Ending this task closes the connection, and fails every statement that waits for a result.
                reason = activity.until_stalled(&peer, limit, stall_timeout) => {
                    tracing::warn!(reason, "closed stalled database connection");
                    let mut state = lock(&state);
                    state.avoid(&host);
                    state.avoid(&peer.to_string());
                }
            }
        });
        Ok(Client::new(ClientWrapper::new(client, task), warnings, name.to_owned(), address.clone()))
    }

    /// Checks the server, and applies the session's settings.
    async fn prepare(&self, config: &Config, mut client: Client, servers: &mut Servers) -> Result<Client, HostError> {
        client.batch_execute(&self.settings).await.map_err(HostError::Driver)?;
        let server = Server::read(&client).await.map_err(HostError::Driver)?;
        servers.found(&server.identity);
        self.judge(config, servers.count(), server.in_recovery, server.read_only).map_err(HostError::Refused)?;
        if self.purpose != Purpose::Inspect && server.encoding != "UTF8" {
            return Err(HostError::Refused(Refusal::Encoding(server.encoding)));
        }
        let query = format!("{}; SELECT pg_backend_pid()", self.session);
        let backend = pooler::backend(&client, &query).await.map_err(HostError::Driver)?;
        if self.purpose != Purpose::Inspect && backend != server.backend {
            return Err(HostError::Refused(Refusal::Pooler(pooler::changed(&server.backend, &backend))));
        }
        client.set_server(server);
        Ok(client)
    }

    fn judge(&self, config: &Config, servers: usize, in_recovery: bool, read_only: bool) -> Result<(), Refusal> {
        let read_write = match config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => Some(true),
            TargetSessionAttrs::ReadOnly => Some(false),
            _ => None,
        };
        server::judge(self.purpose, in_recovery, read_only, read_write, servers)
    }

    /// Rejects a pooler in transaction mode. Checks each address once, because the check needs a second connection.
    async fn refuse_pooler(&self, settings: &Settings, address: &Address, client: &Client) -> Result<(), HostError> {
        if self.purpose == Purpose::Inspect || self.lock().direct.contains(address) {
            return Ok(());
        }
        match self.find_pooler(settings, address, client).await {
            Ok(None) => {
                self.lock().direct.insert(address.clone());
                Ok(())
            }
            Ok(Some(shown)) => Err(HostError::Refused(Refusal::Pooler(shown))),
            // The server may have no capacity for a second connection. The next connection repeats the check.
            Err(cause) => {
                tracing::debug!(%cause, "cannot check for a connection pooler");
                Ok(())
            }
        }
    }

    async fn find_pooler(
        &self,
        settings: &Settings,
        address: &Address,
        client: &Client,
    ) -> Result<Option<String>, HostError> {
        let other = self.log_in(settings, client.host(), address, self.limit()).await?;
        let limit = self.limit().max(Duration::from_secs(10));
        let find = async {
            other.batch_execute(&self.settings).await?;
            pooler::find(client, &other).await
        };
        let found = timeout(limit, find).await;
        found.map_err(|_| HostError::Timeout("it did not respond to two sessions", limit))?.map_err(HostError::Driver)
    }

    /// Returns the evidence that a pooler in transaction mode is between this connection and the server, if there is any.
    pub async fn pooler(&self, client: &Client) -> Result<Option<String>, ConnectError> {
        let settings = self.settings().await;
        let found = self.find_pooler(&settings, client.address(), client).await;
        let host = client.host().to_owned();
        found.map_err(|error| ConnectError::Hosts(vec![(host, error)]))
    }

    /// Checks whether the server of a connection still fits its purpose. Fails too if the server does not respond in time.
    pub(super) async fn verify(&self, client: &Client) -> Result<(), HostError> {
        let limit = self.limit();
        let state = timeout(limit, server::state(client)).await;
        let (in_recovery, read_only) = state
            .map_err(|_| HostError::Timeout("it did not respond to a query", limit))?
            .map_err(HostError::Driver)?;
        let (config, addresses) = {
            let state = self.lock();
            (state.settings.url.config.clone(), state.addresses)
        };
        // If the addresses lead to one server, the next connection finds that out.
        let servers = targets(&config).map_or(1, |targets| targets.len()).max(addresses);
        self.judge(&config, servers, in_recovery, read_only).map_err(HostError::Refused)
    }

    /// Returns a handle that cancels a statement of this connection.
    pub(super) fn canceller(&self, client: &Client) -> Canceller {
        let tls = self.lock().settings.tls.clone();
        Canceller::new(client.cancel_token(), client.address().clone(), tls, self.limit())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
