//! The executable: signals, settings, logs, runtime, run.

use std::process::ExitCode;
use std::time::Duration;

use msg_common::admin::{self, AdminListener};
use msg_common::config::{self, EXIT_BAD_CONFIG};
use msg_common::error::chain;
use msg_common::{shutdown, telemetry};
use msg_gateway::app;
use msg_gateway::config::{Command, Config};

/// Each call allocates and frees memory on several threads, which the system's allocator does slowly (ADR 8).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Install them before anything that may block: a settings file may be a pipe without a writer.
    let signals = shutdown::install();
    let config: Config = config::load();
    config.log.start();
    let result = signals.map_err(app::Error::Signals).and_then(|()| {
        let runtime = runtime().map_err(app::Error::Runtime)?;
        let result = match config.command {
            Some(Command::Healthcheck) => runtime.block_on(healthcheck(&config)),
            None => runtime.block_on(serve(config)),
        };
        // Only calls into librdkafka that no task waits for are left.
        runtime.shutdown_timeout(Duration::from_millis(100));
        result
    });
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "ended");
            if matches!(error, app::Error::Listen(_)) {
                ExitCode::from(u8::try_from(EXIT_BAD_CONFIG).expect("it is 64"))
            } else {
                ExitCode::FAILURE
            }
        }
    };
    telemetry::flush();
    code
}

/// Creates the runtime. It looks for new requests and responses after each 8 steps of its tasks instead of 61: a step for
/// a large request needs milliseconds, and small calls must not wait for 61 of them.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(8).build()
}

async fn serve(config: Config) -> Result<(), app::Error> {
    let stop = shutdown::drain();
    let grpc = config::listen("--listen", config.listen).await;
    let admin = AdminListener::bind("--admin-listen", &config.admin_listen).await;
    match (grpc, admin) {
        (Ok(grpc), Ok(admin)) => app::run(config, grpc, admin, stop).await,
        (grpc, admin) => Err(app::Error::Listen(grpc.err().into_iter().chain(admin.err()).collect())),
    }
}

async fn healthcheck(config: &Config) -> Result<(), app::Error> {
    let (status, body) =
        admin::probe_service(&config.admin_listen, &config.admin_tls, "/readyz").await.map_err(app::Error::Probe)?;
    if status == 200 { Ok(()) } else { Err(app::Error::NotReady(body.trim().to_owned())) }
}
