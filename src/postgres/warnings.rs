//! Counts the warnings of a connection's server. A COMMIT that returns OK with a warning may be incomplete, and only the warning
//! says so.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{AsyncMessage, Connection, Error};

/// The number of warnings, and the last one.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<(u64, String)>);

impl Warnings {
    fn lock(&self) -> MutexGuard<'_, (u64, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> u64 {
        self.lock().0
    }

    /// Returns the last warning, if there were more than `count`.
    pub(super) fn since(&self, count: u64) -> Option<String> {
        let warnings = self.lock();
        (warnings.0 > count).then(|| warnings.1.clone())
    }

    fn note(&self, notice: &DbError) {
        // Use the severity that is not translated to the server's language. A notice without it, which a pooler made, may be
        // a warning.
        if notice.parsed_severity().is_none_or(|severity| severity == Severity::Warning) {
            let mut warnings = self.lock();
            warnings.0 += 1;
            warnings.1 = format!("{} ({})", notice.message(), notice.code().code());
        }
    }
}

/// Runs the task of a connection: carries messages to and from the server until the connection ends.
pub(super) async fn drive<S, T>(mut connection: Connection<S, T>, warnings: &Warnings) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message? {
            warnings.note(&notice);
        }
    }
    Ok(())
}
