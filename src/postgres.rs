//! How both services reach PostgreSQL: a pool whose sessions have time-outs, so that no statement and no peer that
//! went silent holds anything for ever.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use tokio_postgres::NoTls;

use crate::config::{parse_duration, read_secret, time_problem};
use crate::database_url;

/// Where the database is, and how long to wait for it.
#[derive(Args, Clone, Debug)]
pub struct DatabaseOptions {
    /// The database, such as postgres://user:password@host:5432/name
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// A file that holds the database's URL, instead of --database-url
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    pub database_url_file: Option<PathBuf>,
    /// How long to wait for a connection
    #[arg(long, env = "DATABASE_CONNECT_TIMEOUT", default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub database_connect_timeout: Duration,
    /// How long a statement may run
    #[arg(long, env = "DATABASE_STATEMENT_TIMEOUT", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub database_statement_timeout: Duration,
}

impl DatabaseOptions {
    /// Whether a database is configured. An empty URL is none: it is what is left of an unset variable.
    pub fn is_given(&self) -> bool {
        self.url().is_some() || self.database_url_file.is_some()
    }

    fn url(&self) -> Option<&String> {
        self.database_url.as_ref().filter(|url| !url.is_empty())
    }

    /// What is wrong with these settings.
    pub fn problems(&self) -> Vec<String> {
        if !self.is_given() {
            return Vec::new();
        }
        let mut problems: Vec<String> = self.config().err().into_iter().collect();
        // The server's statement_timeout ends at 2^31 - 1 ms.
        let day = Duration::from_secs(86_400);
        let least = Duration::from_millis(100);
        problems.extend(time_problem("--database-connect-timeout", self.database_connect_timeout, &(least..=day / 24)));
        problems.extend(time_problem(
            "--database-statement-timeout",
            self.database_statement_timeout,
            &(least..=24 * day),
        ));
        problems
    }

    /// The driver's settings. A silent peer is given up after 30 s: a failed-over server's address may simply stop
    /// answering, and the retry has to go to the new one.
    pub fn config(&self) -> Result<tokio_postgres::Config, String> {
        let url = match (self.url(), &self.database_url_file) {
            (Some(url), _) => url.clone(),
            (None, Some(file)) => read_secret(file).map_err(|error| format!("--database-url-file: {error}"))?,
            (None, None) => return Err("--database-url is missing".into()),
        };
        let setting = if self.url().is_some() { "--database-url" } else { "--database-url-file" };
        let mut config = database_url::parse(setting, &url)?;
        config
            .connect_timeout(self.database_connect_timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(30));
        Ok(config)
    }

    /// A pool of at most `size` connections, which the server knows as `name`'s; each runs `session` once when it is
    /// made. Connects only when used.
    pub fn pool(&self, name: &str, size: usize, session: &str) -> Result<Pool, String> {
        let mut config = self.config()?;
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let statement_timeout = self.database_statement_timeout.as_millis();
        let session = format!("SET statement_timeout = {statement_timeout}; {session}");
        let prepare = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let session = session.clone();
            Box::pin(async move { client.batch_execute(&session).await.map_err(HookError::Backend) })
        });
        Pool::builder(Manager::from_config(config, NoTls, recycling))
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(self.database_connect_timeout),
                create: Some(self.database_connect_timeout),
                recycle: Some(self.database_connect_timeout),
            })
            .post_create(prepare)
            .build()
            .map_err(|error| error.to_string())
    }
}
