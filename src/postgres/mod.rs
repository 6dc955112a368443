//! Owns the connections of both services to PostgreSQL: opens them, checks their servers, and closes them when a server
//! stalls, so that neither a statement nor a silent server blocks a task indefinitely.

mod client;
mod connector;
mod error;
mod hosts;
mod manager;
mod pooler;
mod server;
mod session;
mod settings;
mod socket;
mod tls;
mod warnings;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use deadpool_postgres::{Runtime, Timeouts};

use crate::config::{SettingError, parse_duration, read_secret, time_problem};
use crate::database_url::{self, DatabaseUrl};
use crate::error::chain;

use settings::Settings;

pub use client::{Canceller, Client};
pub use connector::Connector;
pub use error::{ConnectError, DatabaseError, HostError, describe, describe_pool};
pub use manager::Manager;
pub use server::{Comparison, Identity, Purpose, Refusal, Server};
pub use tls::TlsFailure;

/// A pool of connections that fit one [`Purpose`].
pub type Pool = deadpool::managed::Pool<Manager>;
/// A connection of a pool.
pub type Object = deadpool::managed::Object<Manager>;
/// Why a pool returns no connection.
pub type PoolError = deadpool::managed::PoolError<ConnectError>;

/// The URL of the database, and its timeouts.
#[derive(Args, Clone, Debug)]
pub struct DatabaseOptions {
    /// URL of the database, such as postgres://user:password@host:5432/name. Beyond loopback, connections use TLS and verify
    /// the server; sslrootcert=FILE in the URL gives its CA, and sslmode=disable turns TLS off
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// File that contains the URL of the database, instead of --database-url
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    pub database_url_file: Option<PathBuf>,
    /// Timeout for a connection to each host of the database. After it, the next host is tried
    #[arg(long, env = "DATABASE_CONNECT_TIMEOUT", default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub database_connect_timeout: Duration,
    /// Timeout for a statement. The database cancels a statement that needs longer
    #[arg(long, env = "DATABASE_STATEMENT_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub database_statement_timeout: Duration,
}

impl DatabaseOptions {
    /// Returns whether a database is configured. An empty URL counts as none: it comes from an unset variable.
    pub fn is_given(&self) -> bool {
        self.url().is_some() || self.database_url_file.is_some()
    }

    fn url(&self) -> Option<&String> {
        self.database_url.as_ref().filter(|url| !url.is_empty())
    }

    /// Returns one line for each problem of these settings.
    pub fn problems(&self) -> Vec<String> {
        if !self.is_given() {
            return Vec::new();
        }
        let mut problems = Vec::from_iter(self.url_problem());
        // The maximum of the server's statement_timeout is 2^31 - 1 ms.
        let day = Duration::from_secs(86_400);
        let min = Duration::from_millis(100);
        problems.extend(time_problem("--database-connect-timeout", self.database_connect_timeout, &(min..=day / 24)));
        problems.extend(time_problem(
            "--database-statement-timeout",
            self.database_statement_timeout,
            &(min..=24 * day),
        ));
        problems
    }

    /// Returns the problem of the URL or of a file that it names.
    pub fn url_problem(&self) -> Option<String> {
        Settings::load(self).err().map(|error| chain(&error))
    }

    /// The flag that gives the URL.
    fn setting(&self) -> &'static str {
        if self.url().is_some() { "--database-url" } else { "--database-url-file" }
    }

    /// Reads the file, if one is configured, and returns the settings of the URL.
    fn read_url(&self) -> Result<DatabaseUrl, SettingError> {
        let url = match (self.url(), &self.database_url_file) {
            (Some(url), _) => url.clone(),
            (None, Some(file)) => read_secret(file).map_err(SettingError::of_file("--database-url-file"))?,
            (None, None) => return Err(SettingError::Missing("--database-url")),
        };
        let url = database_url::parse(self.setting(), &url)?;
        hosts::check(&url.config)?;
        Ok(url)
    }

    /// Logs a warning if connections leave this machine without TLS. Services call it once, when they start.
    pub fn warn_if_exposed(&self) {
        if let Ok(url) = self.read_url()
            && url.is_exposed()
        {
            let hosts = hosts::names(&url.config);
            tracing::warn!(
                hosts,
                "connections to the database leave this machine without TLS: sslmode=disable in its URL"
            );
        }
    }

    /// Returns the same options without a statement timeout.
    pub fn without_statement_timeout(&self) -> Self {
        DatabaseOptions { database_statement_timeout: Duration::MAX, ..self.clone() }
    }

    /// Returns for how long a statement may wait for a result before its connection is closed: the server's own timeout has
    /// not worked then. `None` if statements have no timeout.
    fn stall_timeout(&self) -> Option<Duration> {
        self.database_statement_timeout.checked_mul(2)
    }

    /// Returns a pool of up to `size` connections with the application name `name`. Each connection runs `session` when it
    /// is opened. The pool connects when it is first used.
    pub fn pool(&self, name: &str, size: usize, session: &str, purpose: Purpose) -> Result<Pool, SettingError> {
        let connector = Connector::new(self.clone(), name, session, purpose)?;
        // The connector and the manager have timeouts of their own, one for each host.
        let timeouts = Timeouts { wait: Some(self.database_connect_timeout), create: None, recycle: None };
        let pool = Pool::builder(Manager::new(connector)).max_size(size).runtime(Runtime::Tokio1).timeouts(timeouts);
        Ok(pool.build().expect("timeouts need a runtime, and it is given"))
    }
}
