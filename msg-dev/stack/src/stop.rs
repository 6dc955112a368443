//! The signals that end a command: SIGINT (Ctrl-C) and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::StackError;

/// Receives the signals from [`StopSignals::listen`] on.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Starts to receive the signals, which then no longer end the process.
    pub fn listen() -> Result<StopSignals, StackError> {
        let listen = |kind| signal(kind).map_err(StackError::io("listen for", "signals"));
        Ok(StopSignals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
