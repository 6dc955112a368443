//! msg-transfer's process: settings, logs, a runtime, and one of its commands.

use std::process::ExitCode;

use msg_common::{admin, config, shutdown};
use msg_transfer::config::{Command, Config};
use msg_transfer::{app, schema, session};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = config::load();
    config.log.start();
    let result = match &config.command {
        None => serve(config).await,
        Some(Command::Migrate) => migrate(&config).await,
        Some(Command::Healthcheck) => healthcheck(&config).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "failed");
            ExitCode::FAILURE
        }
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
