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

use crate::config::{Secret, SettingError, parse_duration, read_password, read_secret, time_problem, twice_problem};
use crate::database_url::{self, DatabaseUrl};
use crate::error::chain;

use settings::Settings;

pub use client::{Canceller, Client};
pub use connector::Connector;
pub use error::{ConnectError, DatabaseError, HostError, describe, describe_pool};
pub use manager::Manager;
pub use server::{Comparison, Identity, Purpose, Refusal, Server, TableIdentity};
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
    #[arg(long, env = "DATABASE_URL", value_name = "URL")]
    pub database_url: Option<Secret>,
    /// File that contains the URL of the database, instead of --database-url. It is read again for each new connection
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,
    /// File that contains the password for the database, if the URL has none. Only the line end after it does not count,
    /// and nothing is percent-encoded. It is read again for each new connection
    #[arg(long, env = "DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
    /// Timeout for a connection to each host of the database. After it, the next host is tried
    #[arg(long, env = "DATABASE_CONNECT_TIMEOUT", default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub database_connect_timeout: Duration,
    /// Timeout for a statement. The database cancels a statement that needs longer
    #[arg(long, env = "DATABASE_STATEMENT_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub database_statement_timeout: Duration,
    /// Which settings give the URL.
    #[arg(skip)]
    pub flags: UrlFlags,
}

/// The flags of a URL, for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct UrlFlags {
    pub url: &'static str,
    pub url_file: &'static str,
    pub password_file: &'static str,
}

impl Default for UrlFlags {
    fn default() -> Self {
        UrlFlags { url: "--database-url", url_file: "--database-url-file", password_file: "--database-password-file" }
    }
}

impl DatabaseOptions {
    /// Returns whether a database is configured. An empty URL counts as none: it comes from an unset variable.
    pub fn is_given(&self) -> bool {
        self.url().is_some() || self.database_url_file.is_some()
    }

    fn url(&self) -> Option<&str> {
        self.database_url.as_ref().map(Secret::expose).filter(|url| !url.is_empty())
    }

    /// Returns one line for each problem of these settings.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.url_problems();
        if !self.is_given() {
            return problems;
        }
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

    /// Returns one line for each problem of the URL, of its password, and of the files that they name.
    pub fn url_problems(&self) -> Vec<String> {
        let UrlFlags { url, url_file, password_file } = self.flags;
        if !self.is_given() {
            let alone = self.database_password_file.as_ref();
            return alone.map(|_| format!("{password_file} is given without {url}")).into_iter().collect();
        }
        let file_given = self.database_url_file.is_some();
        let twice = twice_problem((url, self.url().is_some()), (url_file, file_given));
        twice.into_iter().chain(Settings::load(self).err().map(|error| chain(&error))).collect()
    }

    /// The flag that gives the URL.
    fn setting(&self) -> &'static str {
        if self.url().is_some() { self.flags.url } else { self.flags.url_file }
    }

    /// Returns the error of a URL with this problem.
    fn invalid(&self, problem: String) -> SettingError {
        SettingError::Invalid { setting: self.setting(), problem }
    }

    /// Reads the files, if some are configured, and returns the settings of the URL.
    fn read_url(&self) -> Result<DatabaseUrl, SettingError> {
        let from_file;
        let url: &str = match (self.url(), &self.database_url_file) {
            (Some(url), _) => url,
            (None, Some(file)) => {
                from_file = read_secret(file).map_err(SettingError::of_file(self.flags.url_file))?;
                &from_file
            }
            (None, None) => return Err(SettingError::Missing(self.flags.url)),
        };
        let mut url = database_url::parse(self.setting(), url)?;
        hosts::targets(&url.config).map_err(|problem| self.invalid(problem))?;
        if let Some(file) = &self.database_password_file {
            let setting = self.flags.password_file;
            if url.config.get_password().is_some() {
                let problem = format!("{} has a password too: remove one", self.setting());
                return Err(SettingError::Invalid { setting, problem });
            }
            url.config.password(read_password(file).map_err(SettingError::of_file(setting))?);
        }
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        database: DatabaseOptions,
    }

    fn options(words: &[&str]) -> DatabaseOptions {
        Command::try_parse_from([&["x"], words].concat()).expect("they have the right form").database
    }

    fn written(name: &str, content: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join(name);
        std::fs::write(&file, content).expect("it is written");
        let path = file.to_str().expect("it is text").to_owned();
        (folder, path)
    }

    #[test]
    fn password_of_a_file_is_used_as_it_is() {
        let (_folder, file) = written("password", "p@ss/w:rd %41,='\"\n");
        let given = options(&["--database-url", "postgres://app@127.0.0.1/x", "--database-password-file", &file]);
        assert_eq!(given.problems(), Vec::<String>::new());
        let password = |options: &DatabaseOptions| {
            options.read_url().expect("it is valid").config.get_password().map(|password| password.to_vec())
        };
        assert_eq!(password(&given).as_deref(), Some(b"p@ss/w:rd %41,='\"".as_slice()));
        std::fs::write(&file, "second").expect("it is written");
        assert_eq!(password(&given).as_deref(), Some(b"second".as_slice()), "it is read again");
    }

    #[test]
    fn secret_that_is_given_twice_is_a_problem() {
        let (_folder, url_file) = written("url", "postgres://app:hunter2@127.0.0.1/x");
        let (_folder, password_file) = written("password", "hunter2");
        let url = "postgres://app:hunter2@127.0.0.1/x";
        for (words, problem) in [
            (
                &["--database-url", url, "--database-url-file", &url_file][..],
                "--database-url and --database-url-file are both given: remove one",
            ),
            (
                &["--database-url", url, "--database-password-file", &password_file],
                "--database-password-file: --database-url has a password too: remove one",
            ),
            (
                &["--database-url-file", &url_file, "--database-password-file", &password_file],
                "--database-password-file: --database-url-file has a password too: remove one",
            ),
            (&["--database-password-file", &password_file], "--database-password-file is given without --database-url"),
        ] {
            assert_eq!(options(words).problems(), [problem]);
        }
    }

    #[test]
    fn debug_of_the_options_shows_no_password() {
        let options = options(&["--database-url", "postgres://app:hunter2@127.0.0.1/x"]);
        assert!(!format!("{options:?}").contains("hunter"), "{options:?}");
        let settings = Settings::load(&options).expect("it is valid");
        assert!(!format!("{settings:?}").contains("hunter"), "{settings:?}");
    }
}
