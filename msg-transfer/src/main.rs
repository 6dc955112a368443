//! msg-transfer's process: settings, logs, a runtime, and one of its commands.

use std::process::ExitCode;
use std::time::Duration;

use msg_common::{admin, config, shutdown};
use msg_transfer::config::{Command, Config};
use msg_transfer::{app, schema, session};
use tokio::net::TcpListener;

/// How long what still runs on the runtime's threads may hold up the end: a question to a Kafka that is away.
const LAST_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let config: Config = config::load();
    config.log.start();
    let runtime = tokio::runtime::Runtime::new().expect("the system has threads for us");
    let result = runtime.block_on(run(config));
    runtime.shutdown_timeout(LAST_WAIT);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), String> {
    match &config.command {
        None => serve(config).await,
        Some(Command::Migrate) => migrate(&config).await,
        Some(Command::Healthcheck) => healthcheck(&config).await,
    }
}

async fn serve(config: Config) -> Result<(), String> {
    let stop = shutdown::on_signal().map_err(|error| format!("signals: {error}"))?;
    let admin = config.admin_listen;
    let admin = TcpListener::bind(admin).await.map_err(|error| format!("--admin-listen {admin}: {error}"))?;
    app::run(config, admin, stop).await.map_err(|error| error.to_string())
}

async fn migrate(config: &Config) -> Result<(), String> {
    let pool = config.database.pool("msg-transfer", 1, &session::settings(&config.database))?;
    let applied = schema::migrate(&pool).await.map_err(|error| error.to_string())?;
    tracing::info!(?applied, version = schema::needed(), "schema is up to date");
    Ok(())
}

async fn healthcheck(config: &Config) -> Result<(), String> {
    match admin::probe(config.admin_listen, "/readyz").await {
        Ok((200, _)) => Ok(()),
        Ok((_, reasons)) => Err(reasons.trim_end().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
