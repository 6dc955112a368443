//! Opens connections to the database: tries each host of the URL with a timeout of its own, and returns a connection only if
//! its server passes the checks of the purpose. No other code opens sockets to the database.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::ClientWrapper;
use rand::seq::SliceRandom;
use tokio::time::timeout;
use tokio_postgres::config::{Host, LoadBalanceHosts, TargetSessionAttrs};
use tokio_postgres::{Config, NoTls};

use super::client::{Canceller, Client};
use super::error::{ConnectError, HostError};
use super::server::{self, Purpose, Refusal, Server};
use super::socket::{Address, Socket};
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
    /// Statements that are run once on each new connection.
    session: String,
    purpose: Purpose,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The settings that were read last.
    config: Option<Config>,
    /// When a host last did not respond.
    silent: HashMap<String, Instant>,
    /// The addresses that have no pooler in transaction mode.
    direct: HashSet<Address>,
}

/// A host of the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// The name and port in the URL, for messages.
    name: String,
    host: Host,
    port: u16,
}

impl Connector {
    /// Returns a connector whose connections have the application name `name`. It does not connect yet.
    pub fn new(options: DatabaseOptions, name: &str, session: &str, purpose: Purpose) -> Result<Self, SettingError> {
        let config = Some(options.config()?);
        // 0 is no timeout.
        let statement_timeout = options.stall_timeout().map_or(0, |_| options.database_statement_timeout.as_millis());
        let session = format!("SET statement_timeout = {statement_timeout}; {session}");
        let state = Arc::new(Mutex::new(State { config, ..State::default() }));
        Ok(Connector { options, name: name.to_owned(), session, purpose, state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns when a host last did not respond, or `None` if it has responded since.
    pub(super) fn silent_since(&self, name: &str) -> Option<Instant> {
        self.lock().silent.get(name).copied()
    }

    /// Lets the connector try this host after the others for one minute.
    pub(super) fn avoid(&self, name: &str) {
        self.lock().silent.insert(name.to_owned(), Instant::now());
    }

    /// Returns the timeout for one host: for the connection, the login, the checks and the session's settings together.
    pub(super) fn limit(&self) -> Duration {
        self.options.database_connect_timeout
    }

    /// Opens a connection to the first host whose server passes the checks.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let config = self.config().await;
        let mut targets = targets(&config).map_err(ConnectError::Settings)?;
        // Try the hosts that responded last time first: each silent host costs its whole timeout.
        targets.sort_by_cached_key(|target| self.is_avoided(&target.name));
        let mut failures = Vec::new();
        for target in &targets {
            match self.connect_host(&config, target, targets.len()).await {
                Ok(client) => return Ok(client),
                Err(failed) => failures.extend(failed),
            }
        }
        Err(ConnectError::Hosts(failures))
    }

    /// Returns the settings as they are now: a file is read again for each connection. While the file is missing or invalid,
    /// it returns the last valid ones.
    async fn config(&self) -> Config {
        let options = self.options.clone();
        let read = tokio::task::spawn_blocking(move || options.config());
        let read = match timeout(self.limit(), read).await {
            Ok(Ok(read)) => read,
            // The task was cancelled because the process stops, or the file system did not respond.
            Ok(Err(_)) | Err(_) => Err(SettingError::FileTimedOut { setting: "--database-url-file" }),
        };
        let mut state = self.lock();
        match read {
            Ok(config) => state.config = Some(config),
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot read the database url again, using the previous one")
            }
        }
        let mut config = state.config.clone().expect("`new` has read it");
        if config.get_application_name().is_none() {
            config.application_name(&self.name);
        }
        config
    }

    fn is_avoided(&self, name: &str) -> bool {
        self.silent_since(name).is_some_and(|at| at.elapsed() < AVOIDED)
    }

    async fn connect_host(
        &self,
        config: &Config,
        target: &Target,
        hosts: usize,
    ) -> Result<Client, Vec<(String, HostError)>> {
        let addresses = match self.resolve(config, target).await {
            Ok(addresses) => addresses,
            Err(error) => return Err(vec![(target.name.clone(), error)]),
        };
        let mut failures = Vec::new();
        for address in addresses {
            match self.connect_address(config, &target.name, &address, hosts).await {
                Ok(client) => {
                    self.lock().silent.remove(&target.name);
                    return Ok(client);
                }
                Err(error) => {
                    if matches!(error, HostError::Timeout(..)) {
                        self.avoid(&target.name);
                    }
                    let address = address.to_string();
                    let name = &target.name;
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
        Ok(found.into_iter().map(Address::Tcp).collect())
    }

    /// Connects to one address and checks its server, within the timeout of a host.
    async fn connect_address(
        &self,
        config: &Config,
        name: &str,
        address: &Address,
        hosts: usize,
    ) -> Result<Client, HostError> {
        let limit = self.limit();
        let started = Instant::now();
        let client = self.log_in(config, name, address, limit).await?;
        let left = limit.saturating_sub(started.elapsed());
        let client = timeout(left, self.prepare(config, client, hosts)).await;
        let client =
            client.map_err(|_| HostError::Timeout("it accepted the login and did not respond to a query", limit))??;
        self.refuse_pooler(config, address, &client).await?;
        Ok(client)
    }

    /// Opens a connection and logs in. The server is not checked yet.
    async fn log_in(
        &self,
        config: &Config,
        name: &str,
        address: &Address,
        limit: Duration,
    ) -> Result<Client, HostError> {
        let started = Instant::now();
        let (socket, activity) = timeout(limit, Socket::open(address))
            .await
            .map_err(|_| HostError::Timeout("it accepted no connection", limit))?
            .map_err(HostError::Socket)?;
        let left = limit.saturating_sub(started.elapsed());
        let (client, connection) = timeout(left, config.connect_raw(socket, NoTls))
            .await
            .map_err(|_| HostError::Timeout("it accepted the connection and did not respond to the login", limit))?
            .map_err(HostError::Driver)?;
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
                    lock(&state).silent.insert(host, Instant::now());
                }
            }
        });
        Ok(Client::new(ClientWrapper::new(client, task), warnings, name.to_owned(), address.clone()))
    }

    /// Checks the server, and then applies the session's settings.
    async fn prepare(&self, config: &Config, mut client: Client, hosts: usize) -> Result<Client, HostError> {
        let server = Server::read(&client).await.map_err(HostError::Driver)?;
        self.judge(config, hosts, server.in_recovery, server.read_only).map_err(HostError::Refused)?;
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

    fn judge(&self, config: &Config, hosts: usize, in_recovery: bool, read_only: bool) -> Result<(), Refusal> {
        let read_write = match config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => Some(true),
            TargetSessionAttrs::ReadOnly => Some(false),
            _ => None,
        };
        server::judge(self.purpose, in_recovery, read_only, read_write, hosts)
    }

    /// Rejects a pooler in transaction mode. Checks each address once, because the check needs a second connection.
    async fn refuse_pooler(&self, config: &Config, address: &Address, client: &Client) -> Result<(), HostError> {
        if self.purpose == Purpose::Inspect || self.lock().direct.contains(address) {
            return Ok(());
        }
        match self.find_pooler(config, address, client).await {
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
        config: &Config,
        address: &Address,
        client: &Client,
    ) -> Result<Option<String>, HostError> {
        let other = self.log_in(config, client.host(), address, self.limit()).await?;
        let limit = self.limit().max(Duration::from_secs(10));
        let found = timeout(limit, pooler::find(client, &other)).await;
        found.map_err(|_| HostError::Timeout("it did not respond to two sessions", limit))?.map_err(HostError::Driver)
    }

    /// Returns the evidence that a pooler in transaction mode is between this connection and the server, if there is any.
    pub async fn pooler(&self, client: &Client) -> Result<Option<String>, ConnectError> {
        let config = self.config().await;
        let found = self.find_pooler(&config, client.address(), client).await;
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
        let config = self.lock().config.clone().expect("`new` has read it");
        let hosts = targets(&config).map_or(1, |targets| targets.len());
        self.judge(&config, hosts, in_recovery, read_only).map_err(HostError::Refused)
    }

    /// Returns a handle that cancels a statement of this connection.
    pub(super) fn canceller(&self, client: &Client) -> Canceller {
        Canceller::new(client.cancel_token(), client.address().clone(), self.limit())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the hosts of a URL.
pub(super) fn check(config: &Config) -> Result<(), SettingError> {
    targets(config).map(drop)
}

/// Returns the hosts of a URL, in its order or, if the URL says so, in a random order.
fn targets(config: &Config) -> Result<Vec<Target>, SettingError> {
    let invalid = |problem| Err(SettingError::Invalid { setting: "--database-url", problem });
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return invalid("it names no host".to_owned());
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return invalid(format!("{} hosts, and {} in hostaddr", hosts.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return invalid(format!("{count} hosts, and {} ports", ports.len()));
    }
    let target = |i: usize| {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        // Connections use the address; messages use the name.
        let host = addresses.get(i).map_or_else(|| hosts[i].clone(), |address| Host::Tcp(address.to_string()));
        let name = match hosts.get(i).unwrap_or(&host) {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(folder) => folder.join(format!(".s.PGSQL.{port}")).display().to_string(),
        };
        Target { name, host, port }
    };
    let mut targets: Vec<Target> = (0..count).map(target).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        targets.shuffle(&mut rand::rng());
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(url: &str) -> Option<Vec<String>> {
        let config: Config = url.parse().expect("a valid URL");
        Some(targets(&config).ok()?.into_iter().map(|target| target.name).collect())
    }

    #[test]
    fn hosts_and_ports_of_a_url_are_paired() {
        assert_eq!(names("postgres://u@a,b:6/x").as_deref(), Some(&["a:5432".to_owned(), "b:6".to_owned()][..]));
        assert_eq!(names("host=a,b port=7 user=u").as_deref(), Some(&["a:7".to_owned(), "b:7".to_owned()][..]));
        assert_eq!(names("postgres://u@[::1]:5/x").as_deref(), Some(&["[::1]:5".to_owned()][..]));
        assert_eq!(names("host=/run/x user=u").as_deref(), Some(&["/run/x/.s.PGSQL.5432".to_owned()][..]));
        assert!(names("user=u").is_none(), "no host");
        assert!(names("host=a,b,c port=1,2 user=u").is_none(), "too few ports");
    }
}
