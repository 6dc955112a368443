//! The process: signals, settings, logs, a runtime, and the service or one of the commands.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use msg_common::admin::AdminListener;
use msg_common::config::{self, EXIT_BAD_CONFIG, SettingError};
use msg_common::error::chain;
use msg_common::{shutdown, telemetry};
use msg_transfer::cli::Cli;
use msg_transfer::commands::CommandError;
use msg_transfer::config::Config;
use msg_transfer::{app, commands};

/// Each record allocates and frees memory on several threads, which the system's allocator does slowly (ADR 8).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the exit waits for threads that still run, such as a request to a broker that is unavailable.
const THREADS_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Before anything that may wait: a settings file may be a pipe without a writer.
    let signals = shutdown::install();
    let cli: Cli = config::load();
    cli.config.log.start();
    let result = signals.map_err(ProcessError::Signals).and_then(|()| {
        let runtime = tokio::runtime::Runtime::new().map_err(ProcessError::Runtime)?;
        let result = runtime.block_on(run(cli));
        runtime.shutdown_timeout(THREADS_TIMEOUT);
        result
    });
    let code = match result {
        Ok(code) => code,
        Err(error @ ProcessError::Setting(_)) => {
            tracing::error!(error = chain(&error), "bad setting");
            ExitCode::from(u8::try_from(EXIT_BAD_CONFIG).expect("it is 64"))
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "failed");
            ExitCode::FAILURE
        }
    };
    telemetry::flush();
    code
}

#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("signals")]
    Signals(#[source] io::Error),
    #[error("runtime")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Service(#[from] app::Error),
    #[error(transparent)]
    Command(#[from] CommandError),
}

async fn run(cli: Cli) -> Result<ExitCode, ProcessError> {
    match cli.command {
        None => serve(cli.config).await.map(|()| ExitCode::SUCCESS),
        Some(command) => Ok(commands::run(&cli.config, &command).await?),
    }
}

async fn serve(config: Config) -> Result<(), ProcessError> {
    let stop = shutdown::drain();
    let admin = AdminListener::bind("--admin-listen", &config.admin_listen).await?;
    Ok(app::run(config, admin, stop).await?)
}
