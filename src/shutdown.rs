//! When to stop: the first SIGTERM or SIGINT asks for a drain, the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that was told twice to stop, as a shell would report a SIGTERM.
const FORCED: i32 = 128 + 15;

/// A token that the first SIGTERM or SIGINT cancels.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if stop.is_cancelled() {
                tracing::warn!("told twice to stop, ending without the drain");
                std::process::exit(FORCED);
            }
            tracing::info!("told to stop, draining");
            stop.cancel();
        }
    });
    Ok(token)
}
