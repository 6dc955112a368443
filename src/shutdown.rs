//! Owns the reaction to SIGTERM and SIGINT. A thread of its own receives the signals from the first line of `main` on and ends
//! the process, whatever the process waits for. It does so for process 1 too, for which the system has no default action. A
//! service, and a command that works in steps, gets a token that the first signal cancels instead.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// The exit code of a process that a signal ends is this plus the signal's number, as a shell reports it.
const SIGNALED: i32 = 128;

/// How long a command may continue after the first signal, to finish its current step.
const COMMAND_GRACE: Duration = Duration::from_secs(5);

static STOP: OnceLock<Stop> = OnceLock::new();

struct Stop {
    token: CancellationToken,
    /// The time from the first signal until the process ends. A service has deadlines of its own instead.
    grace: Option<Duration>,
}

/// Starts the thread that receives signals. A signal ends the process, unless [`drain`] or [`between_steps`] was called before.
pub fn install() -> io::Result<()> {
    let (ready, installed) = sync_channel(1);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let receive = async || {
            let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let _ = ready.send(Ok(()));
            serve(signals).await
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Err(error) = runtime.and_then(|runtime| runtime.block_on(receive())) {
            // `receive` returns only if the setup failed, and `install` waits for that error.
            let _ = ready.send(Err(error));
        }
    })?;
    installed.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// Returns the token of a service: the first signal cancels it, and the second one ends the process. Needs the runtime. From
/// now on SIGHUP does not end the process, whether it has files to read again or not.
pub fn drain() -> CancellationToken {
    // The handler stays when this stream of signals is dropped. Without one, the process ends if SIGHUP is sent.
    if let Err(error) = signal(SignalKind::hangup()) {
        tracing::warn!(%error, "cannot receive SIGHUP");
    }
    token(None)
}

/// Returns the token of a command that stops between two steps: the first signal cancels it. Five seconds later, or at the
/// second signal, the process ends, whatever the step waits for.
pub fn between_steps() -> CancellationToken {
    token(Some(COMMAND_GRACE))
}

fn token(grace: Option<Duration>) -> CancellationToken {
    STOP.get_or_init(|| Stop { token: CancellationToken::new(), grace }).token.clone()
}

async fn serve(mut signals: (Signal, Signal)) -> io::Result<()> {
    let first = next(&mut signals).await;
    if let Some(stop) = STOP.get() {
        tracing::info!(signal = name(first), "received signal, draining");
        stop.token.cancel();
        match stop.grace {
            None => {
                let second = next(&mut signals).await;
                tracing::warn!(signal = name(second), "received second signal, exiting without draining");
            }
            Some(grace) => {
                let _ = tokio::time::timeout(grace, next(&mut signals)).await;
                tracing::warn!("exiting in the middle of a step");
            }
        }
    }
    telemetry::flush();
    std::process::exit(SIGNALED + first.as_raw_value());
}

fn name(signal: SignalKind) -> &'static str {
    if signal == SignalKind::terminate() { "SIGTERM" } else { "SIGINT" }
}

async fn next((term, int): &mut (Signal, Signal)) -> SignalKind {
    tokio::select! {
        _ = term.recv() => SignalKind::terminate(),
        _ = int.recv() => SignalKind::interrupt(),
    }
}
