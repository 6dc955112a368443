//! Owns the local PostgreSQL server: made once with initdb, run as a child process with durable settings, and stopped,
//! killed, frozen and started again on its own address and data.

mod standby;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::error::StackError;
use super::fetch::PostgresHome;
use super::logs;
use super::ports::Port;
use super::process::{POLL, Process, Signal, Spec};
use super::user;

/// A start takes half a second; recovery after a kill under load takes longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A fast shutdown writes a checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long an address from outside is asked, and for one attempt to connect.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// After a crash the server refuses to start while backends of its predecessor still end.
const RETRY_FOR: Duration = Duration::from_secs(15);

/// A PostgreSQL server: ours, or one at a URL that was given.
#[derive(Debug)]
pub struct Postgres {
    /// The database of `url("postgres")` when the server is ours; any when it is somebody else's.
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
    /// Takes the port of a server and starts nothing: [`Postgres::url`] is valid, and refuses connections until
    /// [`Postgres::start`]. Data of an earlier run in `folder` is kept.
    pub fn reserve(home: PostgresHome, folder: &Path, logs: &Path) -> Result<Postgres, StackError> {
        let port = Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"))?;
        let base_url = format!("postgres://postgres@{port}/postgres");
        let server = Server { home, data: folder.join("data"), logs: logs.to_owned(), port, process: Mutex::new(None) };
        Ok(Postgres { base_url, server: Some(server) })
    }

    /// The folder of the server's data, when it is ours.
    pub fn data(&self) -> Option<&Path> {
        self.server.as_ref().map(|server| server.data.as_path())
    }

    /// A server that somebody else runs.
    pub fn external(url: impl Into<String>) -> Postgres {
        Postgres { base_url: url.into(), server: None }
    }

    /// Whether the server is a child of ours.
    pub fn is_ours(&self) -> bool {
        self.server.is_some()
    }

    /// The URL of a database on this server.
    pub fn url(&self, database: &str) -> String {
        with_database(&self.base_url, database)
    }

    /// Host and port of the server, as a URL has them.
    pub fn host(&self) -> String {
        let (_, rest) = self.base_url.split_once("://").unwrap_or(("", &self.base_url));
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
        rest.split_once('/').map_or(rest, |(host, _)| host).to_owned()
    }

    /// The URL as it was given; of the database `postgres` when the server is ours.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The server's first process, if it was started.
    pub fn process(&self) -> Option<Process> {
        self.server.as_ref()?.process().clone()
    }

    /// Starts the server, making its data folder first where there is none, and waits until it answers a query.
    pub async fn start(&self) -> Result<(), StackError> {
        let Some(server) = &self.server else { return self.wait_for_answer().await };
        if server.process().as_ref().is_some_and(|process| process.exit_status().is_none()) {
            return Ok(());
        }
        server.prepare().await?;
        let began = Instant::now();
        loop {
            let process = server.spawn()?;
            let ready = process.until_ready(READY_WITHIN, async || answers(&self.base_url).await).await;
            let retry = matches!(&ready, Err(StackError::Died { tail, .. }) if still_in_use(tail));
            if !retry || began.elapsed() > RETRY_FOR {
                return ready;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Fast shutdown: open transactions are rolled back, connections closed.
    pub async fn stop(&self) {
        if let Some(process) = self.process() {
            process.stop(STOP_WITHIN).await;
        }
    }

    /// SIGKILL to every process of the server: a crash. What was committed is there after [`Postgres::start`].
    pub async fn kill(&self) {
        if let Some(process) = self.process() {
            process.signal_tree(Signal::Kill);
            process.wait().await;
        }
    }

    /// Freezes every process of the server: connections stay open and nothing answers.
    pub fn freeze(&self) -> bool {
        self.process().is_some_and(|process| process.signal_tree(Signal::Stop))
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) -> bool {
        self.process().is_some_and(|process| process.signal_tree(Signal::Cont))
    }

    /// Creates a database and gives its URL.
    pub async fn create_database(&self, name: &str) -> Result<String, StackError> {
        let client = self.connect(&self.base_url).await?;
        let created = client.batch_execute(&format!("CREATE DATABASE {}", quoted(name))).await;
        created.map_err(|source| StackError::Database { doing: "create a database", source })?;
        Ok(self.url(name))
    }

    /// Creates a database where there is none of the name, and gives its URL.
    pub async fn ensure_database(&self, name: &str) -> Result<String, StackError> {
        let client = self.connect(&self.base_url).await?;
        let found = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await;
        match found.map_err(|source| StackError::Database { doing: "look for a database", source })? {
            Some(_) => Ok(self.url(name)),
            None => self.create_database(name).await,
        }
    }

    /// A client of a database by its URL; its connection ends when the client is dropped.
    pub async fn connect(&self, url: &str) -> Result<Client, StackError> {
        connect(url).await.map_err(|source| StackError::Database { doing: "connect", source })
    }

    async fn wait_for_answer(&self) -> Result<(), StackError> {
        let asking = async {
            while !answers(&self.base_url).await {
                tokio::time::sleep(POLL).await;
            }
        };
        // The URL may hold a password.
        let address = "the given URL".to_owned();
        let no_answer = |_| StackError::NoAnswer { name: "postgresql", address, waited: ANSWER_WITHIN };
        tokio::time::timeout(ANSWER_WITHIN, asking).await.map_err(no_answer)
    }
}

impl Server {
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the data folder, once. A folder that initdb did not finish is made anew.
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
            owner.take(&self.data)?;
        }
        let data = self.data.display().to_string();
        // Trust: whoever can open a loopback connection here is the developer. Nothing listens beyond loopback.
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
            // Every lane of every transfer of every test that runs at the same time has one.
            ("max_connections", "300".to_owned()),
            ("shared_buffers", "256MB".to_owned()),
            ("max_wal_size", "4GB".to_owned()),
            // As a server that keeps data: what the services promise is measured on this.
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

/// Whether a server that ended at its start says that its predecessor is not quite gone.
fn still_in_use(tail: &str) -> bool {
    tail.contains("is still in use") || tail.contains("postmaster.pid\" already exists")
}

async fn answers(url: &str) -> bool {
    let asking = async { connect(url).await?.simple_query("SELECT 1").await };
    matches!(tokio::time::timeout(Duration::from_secs(2), asking).await, Ok(Ok(_)))
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.connect_timeout(ANSWER_WITHIN);
    let (client, connection) = config.connect(NoTls).await?;
    // Its error is also the error of the request that fails.
    tokio::spawn(connection);
    Ok(client)
}

/// The same URL with another database; also for the form with `key=value` words, in which the last one counts.
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
    fn the_database_of_a_url_is_replaced() {
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
    fn host_of_a_url_is_found() {
        for (url, wanted) in [("postgres://u:p@h:5432/x?a=b", "h:5432"), ("postgres://h", "h")] {
            assert_eq!(Postgres::external(url).host(), wanted);
        }
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
