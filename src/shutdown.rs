//! When to stop. Signals are received by a thread of their own from the first line of `main` on: SIGTERM and SIGINT end the process
//! whatever it waits for, and as process 1 too, for which the system has no default action. A service, and a command that changes
//! something step by step, asks to be notified by the first signal instead.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// A process that a signal ended exits with this plus the signal's number, as a shell would report it.
const SIGNALED: i32 = 128;

/// How long a command may still run after the first signal, for the step that it is in.
const COMMAND_GRACE: Duration = Duration::from_secs(5);

static STOP: OnceLock<Stop> = OnceLock::new();

struct Stop {
    token: CancellationToken,
    /// Afterwards the process ends at once; a service has deadlines of its own.
    grace: Option<Duration>,
}

/// Receives signals from now on: each ends the process, unless [`drain`] or [`between_steps`] was called before it.
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
            // Comes back only with an error of the set-up, for which `install` waits.
            let _ = ready.send(Err(error));
        }
    })?;
    installed.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// A service's token: the first signal cancels it, and the second one ends the process.
pub fn drain() -> CancellationToken {
    token(None)
}

/// The token of a command that stops between two steps: the first signal cancels it, and five seconds later, or at the second
/// signal, the process ends whatever the step waits for.
pub fn between_steps() -> CancellationToken {
    token(Some(COMMAND_GRACE))
}

fn token(grace: Option<Duration>) -> CancellationToken {
    STOP.get_or_init(|| Stop { token: CancellationToken::new(), grace }).token.clone()
}

async fn serve(mut signals: (Signal, Signal)) -> io::Result<()> {
    let first = next(&mut signals).await;
    if let Some(stop) = STOP.get() {
        tracing::info!("told to stop, draining");
        stop.token.cancel();
        match stop.grace {
            None => {
                next(&mut signals).await;
                tracing::warn!("told twice to stop, ending without the drain");
            }
            Some(grace) => {
                let _ = tokio::time::timeout(grace, next(&mut signals)).await;
                tracing::warn!("ending in the middle of a step");
            }
        }
    }
    telemetry::flush();
    std::process::exit(SIGNALED + first.as_raw_value());
}

async fn next((term, int): &mut (Signal, Signal)) -> SignalKind {
    tokio::select! {
        _ = term.recv() => SignalKind::terminate(),
        _ = int.recv() => SignalKind::interrupt(),
    }
}
