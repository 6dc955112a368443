//! msg-transfer's process: signals, settings, logs, a runtime, and one of its commands.

use std::process::ExitCode;
use std::time::Duration;

use msg_common::config::{self, EXIT_BAD_CONFIG};
use msg_common::{shutdown, telemetry};
use msg_transfer::config::Config;
use msg_transfer::{app, commands};

/// How long what still runs on the runtime's threads may hold up the end: a question to a Kafka that is away.
const LAST_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Before anything that may wait: a settings file may be a pipe that nobody writes to.
    let signals = shutdown::install();
    let config: Config = config::load();
    config.log.start();
    let result = signals.map_err(|error| Failure::Other(format!("signals: {error}"))).and_then(|()| {
        let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::Other(format!("runtime: {error}")))?;
        let result = runtime.block_on(run(config));
        runtime.shutdown_timeout(LAST_WAIT);
        result
    });
    let code = match result {
        Ok(code) => code,
        Err(Failure::Setting(error)) => {
            tracing::error!(error, "bad setting");
            ExitCode::from(u8::try_from(EXIT_BAD_CONFIG).expect("it is 64"))
        }
        Err(Failure::Other(error)) => {
            tracing::error!(error, "failed");
            ExitCode::FAILURE
        }
    };
    telemetry::flush();
    code
}

/// Why the process failed.
enum Failure {
    /// A setting that turned out to be of no use.
    Setting(String),
    /// Anything else.
    Other(String),
}

async fn run(config: Config) -> Result<ExitCode, Failure> {
    match config.command.clone() {
        None => serve(config).await.map(|()| ExitCode::SUCCESS),
        Some(command) => commands::run(&config, &command).await.map_err(Failure::Other),
    }
}

async fn serve(config: Config) -> Result<(), Failure> {
    let stop = shutdown::drain();
    let admin = config::listen("--admin-listen", config.admin_listen).await.map_err(Failure::Setting)?;
    app::run(config, admin, stop).await.map_err(|error| Failure::Other(error.to_string()))
}
