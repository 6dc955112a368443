//! msg-transfer's process: settings, logs, a runtime, and one of its commands.

use std::process::ExitCode;
use std::time::Duration;

use msg_common::{config, shutdown};
use msg_transfer::config::Config;
use msg_transfer::{app, commands};
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
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error, "failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<ExitCode, String> {
    match config.command.clone() {
        None => serve(config).await.map(|()| ExitCode::SUCCESS),
        Some(command) => commands::run(&config, &command).await,
    }
}

async fn serve(config: Config) -> Result<(), String> {
    let stop = shutdown::on_signal().map_err(|error| format!("signals: {error}"))?;
    let admin = config.admin_listen;
    let admin = TcpListener::bind(admin).await.map_err(|error| format!("--admin-listen {admin}: {error}"))?;
    app::run(config, admin, stop).await.map_err(|error| error.to_string())
}
