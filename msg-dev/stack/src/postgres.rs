//! Owns the local PostgreSQL server: initdb creates it once; it runs as a child process with durable settings, and can
//! be stopped, killed, frozen and started again on the same address and data.

mod standby;
mod tls;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::error::StackError;
use super::logs;
use super::ports::Port;
use super::process::{POLL, Process, Signal, Spec};
use super::user;
use msg_fetch::PostgresHome;

/// A start needs half a second; recovery after a kill under load needs longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A fast shutdown writes a checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// The timeout for a server at a given URL, and for one attempt to connect.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// After a crash the server does not start while backends of its predecessor are still ending.
const RETRY_FOR: Duration = Duration::from_secs(15);

/// A PostgreSQL server: a child of this process, or a server at a given URL.
#[derive(Debug)]
pub struct Postgres {
    /// The database of `url("postgres")` if the server is a child of this process, else the given database.
    base_url: String,
    server: Option<Server>,
}

#[derive(Debug)]
struct Server {
    home: PostgresHome,
    data: PathBuf,
    logs: PathBuf,
    port: Port,
    process: Mutex<Option<Process>>,
}

impl Postgres {
    /// Reserves the port of a server and starts no process: [`Postgres::url`] is valid, and connections are refused
    /// until [`Postgres::start`]. The data of an earlier run in `folder` stays.
    pub fn reserve(home: PostgresHome, folder: &Path, logs: &Path) -> Result<Postgres, StackError> {
        let port = Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"))?;
        let base_url = format!("postgres://postgres@{port}/postgres");
        let server = Server { home, data: folder.join("data"), logs: logs.to_owned(), port, process: Mutex::new(None) };
        Ok(Postgres { base_url, server: Some(server) })
    }

    /// The folder of the server's data, if the server is a child of this process.
    pub fn data(&self) -> Option<&Path> {
        self.server.as_ref().map(|server| server.data.as_path())
    }

    /// Uses a server at this URL; it is no child of this process.
    pub fn external(url: impl Into<String>) -> Postgres {
        Postgres { base_url: url.into(), server: None }
    }

    /// Whether the server is a child of this process.
    pub fn is_ours(&self) -> bool {
        self.server.is_some()
    }

    pub fn url(&self, database: &str) -> String {
        with_database(&self.base_url, database)
    }

    /// Host and port of the server, as they are in its URL.
    pub fn host(&self) -> String {
        let (_, rest) = self.base_url.split_once("://").unwrap_or(("", &self.base_url));
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
        rest.split_once('/').map_or(rest, |(host, _)| host).to_owned()
    }

    /// The given URL, or the URL of the database `postgres` if the server is a child of this process.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The first process of the server, if it was started.
    pub fn process(&self) -> Option<Process> {
        self.server.as_ref()?.process().clone()
    }

    /// Creates the data folder if it does not exist, starts the server, and waits until it responds to a query.
    pub async fn start(&self) -> Result<(), StackError> {
        let Some(server) = &self.server else { return self.wait_for_response().await };
        if server.process().as_ref().is_some_and(|process| process.exit_status().is_none()) {
            return Ok(());
        }
        server.prepare().await?;
        let began = Instant::now();
        loop {
            let process = server.spawn()?;
            let ready = process.until_ready(READY_WITHIN, async || responds(&self.base_url).await).await;
            let retry = matches!(&ready, Err(StackError::Died { tail, .. }) if still_in_use(tail));
            if !retry || began.elapsed() > RETRY_FOR {
                return ready;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops the server with a fast shutdown: it rolls open transactions back and closes connections.
    pub async fn stop(&self) {
        if let Some(process) = self.process() {
            process.stop(STOP_WITHIN).await;
        }
    }

    /// Sends SIGKILL to every process of the server, as a crash would. After [`Postgres::start`] all committed rows are
    /// there.
    pub async fn kill(&self) {
        if let Some(process) = self.process() {
            process.signal_tree(Signal::Kill);
            process.wait().await;
        }
    }

    /// Freezes every process of the server: connections stay open, and the server does not respond.
    pub fn freeze(&self) -> bool {
        self.process().is_some_and(|process| process.signal_tree(Signal::Stop))
    }

    /// Resumes every process of a frozen server; returns false if the server does not run.
    pub fn thaw(&self) -> bool {
        self.process().is_some_and(|process| process.signal_tree(Signal::Cont))
    }

    pub async fn create_database(&self, name: &str) -> Result<String, StackError> {
        let client = self.connect(&self.base_url).await?;
        let created = client.batch_execute(&format!("CREATE DATABASE {}", quoted(name))).await;
        created.map_err(|source| StackError::Database { doing: "create a database", source })?;
        Ok(self.url(name))
    }

    /// Creates a database if it does not exist, and returns its URL.
    pub async fn ensure_database(&self, name: &str) -> Result<String, StackError> {
        let client = self.connect(&self.base_url).await?;
        let found = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await;
        match found.map_err(|source| StackError::Database { doing: "find a database", source })? {
            Some(_) => Ok(self.url(name)),
            None => self.create_database(name).await,
        }
    }

    /// Connects to a database by its URL. The connection ends when the client is dropped.
    pub async fn connect(&self, url: &str) -> Result<Client, StackError> {
        connect(url).await.map_err(|source| StackError::Database { doing: "connect", source })
    }

    async fn wait_for_response(&self) -> Result<(), StackError> {
        let polling = async {
            while !responds(&self.base_url).await {
                tokio::time::sleep(POLL).await;
            }
        };
        // Do not name the URL: it may hold a password.
        let address = "the given URL".to_owned();
        let no_response = |_| StackError::NoResponse { name: "postgresql", address, waited: RESPONSE_TIMEOUT };
        tokio::time::timeout(RESPONSE_TIMEOUT, polling).await.map_err(no_response)
    }
}

impl Server {
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the data folder, once. A folder that initdb did not finish is removed and created again.
    async fn prepare(&self) -> Result<(), StackError> {
        let done = self.data.with_file_name("initdb.done");
        if done.exists() {
            return Ok(());
        }
        if self.data.exists() {
            fs::remove_dir_all(&self.data).map_err(StackError::io("remove", &self.data))?;
        }
        fs::create_dir_all(&self.data).map_err(StackError::io("create", &self.data))?;
        if let Some(owner) = user::unprivileged() {
            owner.check_reaches(&self.data)?;
            owner.check_reaches(&self.home.bin.join("postgres"))?;
            owner.make_private(&self.data)?;
        }
        let data = self.data.display().to_string();
        // Trust every connection: only loopback is open, and only the developer uses this machine's loopback.
        let args = ["-D", &data, "-U", "postgres", "-A", "trust", "--encoding=UTF8", "--locale=C.UTF-8"];
        let process = Process::spawn(self.spec("initdb", "initdb", args.iter().copied().map(str::to_owned)))?;
        let status = process.wait().await;
        if !status.success() {
            let output = logs::tail(process.log());
            return Err(StackError::Program { program: "initdb".to_owned(), status, output });
        }
        fs::write(&done, "").map_err(StackError::io("write", done))
    }

    fn spawn(&self) -> Result<Process, StackError> {
        let settings = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.number().to_string()),
            ("unix_socket_directories", String::new()),
            // Every lane of every transfer of every concurrent test has a connection.
            ("max_connections", "300".to_owned()),
            ("shared_buffers", "256MB".to_owned()),
            ("max_wal_size", "4GB".to_owned()),
            // As on a server in production: the tests and benchmarks rely on durable rows.
            ("fsync", "on".to_owned()),
            ("full_page_writes", "on".to_owned()),
            ("synchronous_commit", "on".to_owned()),
        ];
        let mut args = vec!["-D".to_owned(), self.data.display().to_string()];
        for (key, value) in settings {
            args.extend(["-c".to_owned(), format!("{key}={value}")]);
        }
        let process = Process::spawn(self.spec("postgresql", "postgres", args.into_iter()))?;
        *self.process() = Some(process.clone());
        Ok(process)
    }

    fn spec(&self, name: &str, program: &str, args: impl Iterator<Item = String>) -> Spec {
        Spec {
            name: name.to_owned(),
            program: self.home.bin.join(program),
            args: args.map(Into::into).collect(),
            env: Vec::new(),
            log: self.logs.join(format!("{name}.log")),
            owner: user::unprivileged(),
            stop: Signal::Int,
        }
    }
}

/// Whether the log of a server that ended at its start says that its predecessor still holds the data folder.
fn still_in_use(tail: &str) -> bool {
    tail.contains("is still in use") || tail.contains("postmaster.pid\" already exists")
}

async fn responds(url: &str) -> bool {
    let query = async { connect(url).await?.simple_query("SELECT 1").await };
    matches!(tokio::time::timeout(Duration::from_secs(2), query).await, Ok(Ok(_)))
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.connect_timeout(RESPONSE_TIMEOUT);
    let (client, connection) = config.connect(NoTls).await?;
    // The caller's request reports the same error.
    tokio::spawn(connection);
    Ok(client)
}

/// Returns the same URL with another database. In the form with `key=value` words the last one of a key counts, so the
/// database is appended.
fn with_database(url: &str, database: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return format!("{url} dbname={database}") };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{scheme}://{host}/{database}{query}")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_gets_another_database() {
        for (url, wanted) in [
            ("postgres://postgres@127.0.0.1:5432/postgres", "postgres://postgres@127.0.0.1:5432/x"),
            ("postgresql://u:p@h", "postgresql://u:p@h/x"),
            ("postgres://u@h/a?sslmode=disable", "postgres://u@h/x?sslmode=disable"),
            ("host=h user=u dbname=a", "host=h user=u dbname=a dbname=x"),
        ] {
            assert_eq!(with_database(url, "x"), wanted);
            let parsed: tokio_postgres::Config = wanted.parse().expect("a valid URL");
            assert_eq!(parsed.get_dbname(), Some("x"));
        }
    }

    #[test]
    fn host_is_read_from_a_url() {
        for (url, wanted) in [("postgres://u:p@h:5432/x?a=b", "h:5432"), ("postgres://h", "h")] {
            assert_eq!(Postgres::external(url).host(), wanted);
        }
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
