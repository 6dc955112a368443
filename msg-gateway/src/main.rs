//! The executable: settings, logs, runtime, run.

use std::process::ExitCode;
use std::time::Duration;

use msg_common::{admin, shutdown};
use msg_gateway::app;
use msg_gateway::config::{Command, Config};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let config: Config = msg_common::config::load();
    config.log.start();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = match config.command {
        Some(Command::Healthcheck) => runtime.block_on(healthcheck(&config)),
        None => runtime.block_on(serve(config)),
    };
    // What is left are calls into librdkafka that nobody waits for any more.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "ended");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), app::Error> {
    let bind = |setting, address| async move {
        TcpListener::bind(address).await.map_err(|source| app::Error::Listen { setting, address, source })
    };
    let grpc = bind("--listen", config.listen).await?;
    let admin = bind("--admin-listen", config.admin_listen).await?;
    let stop = shutdown::on_signal().map_err(app::Error::Signals)?;
    app::run(config, grpc, admin, stop).await
}

async fn healthcheck(config: &Config) -> Result<(), app::Error> {
    let (status, body) = admin::probe(config.admin_listen, "/readyz").await.map_err(app::Error::Probe)?;
    if status == 200 { Ok(()) } else { Err(app::Error::NotReady(body.trim().to_owned())) }
}
