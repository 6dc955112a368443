//! The warnings of a connection's server. A COMMIT that is answered OK with one is not what it should be, and nothing else says so.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{AsyncMessage, Connection, Error};

/// How many there were, and the last one.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<(u64, String)>);

impl Warnings {
    fn lock(&self) -> MutexGuard<'_, (u64, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> u64 {
        self.lock().0
    }

    /// The last one, if there were more than this.
    pub(super) fn since(&self, count: u64) -> Option<String> {
        let warnings = self.lock();
        (warnings.0 > count).then(|| warnings.1.clone())
    }

    fn note(&self, notice: &DbError) {
        // Of the severity as the protocol has it: the other one is in the server's language. Without it (a pooler made the
        // message) it may be a warning.
        if notice.parsed_severity().is_none_or(|severity| severity == Severity::Warning) {
            let mut warnings = self.lock();
            warnings.0 += 1;
            warnings.1 = format!("{} ({})", notice.message(), notice.code().code());
        }
    }
}

/// What a connection's task does: carries messages to and from the server until the connection ends.
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
