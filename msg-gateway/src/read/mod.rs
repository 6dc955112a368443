//! Reading what is stored. Reads never touch Kafka, and sends never touch the database.

pub mod database;
pub mod max_seqs;
pub mod page_token;
pub mod pull;

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::histogram;
use msg_common::limits::Violation;
use msg_common::proto::{GetMaxSeqsRequest, GetMaxSeqsResponse, PullMsgsRequest, PullMsgsResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::metrics::READ_SECONDS;
use crate::read::database::Database;
use crate::send::deadline::Timing;
use crate::status::Failure;

/// Most reads at a time, from their begin until their answer is sent. An answer has up to 4 MiB.
const MAX_READS: usize = 32;

/// Answers reads.
pub struct Reader {
    database: Option<Database>,
    timing: Timing,
    max_id_bytes: usize,
    reads: Arc<Semaphore>,
}

/// A read's place among the others. It goes with the answer until that is sent: callers that ask and do not
/// read must not fill the memory.
pub type Place = Arc<OwnedSemaphorePermit>;

/// How long reads may take: what the database's own time-outs allow, unless the caller's deadline is shorter.
pub fn timing(config: &Config) -> Timing {
    let database = &config.database;
    Timing {
        max_wait: 2 * database.database_connect_timeout + database.database_statement_timeout,
        margin: config.send.deadline_margin,
        shortest: Duration::ZERO,
    }
}

impl Reader {
    /// Reads from the database that is configured. Connects when it is first used.
    pub fn new(config: &Config, timing: Timing) -> Result<Self, String> {
        let database = if config.database.is_given() {
            Some(Database::new(&config.database, config.read_connections)?)
        } else {
            tracing::info!("no database is configured: reads are refused");
            None
        };
        let max_id_bytes = config.limits.max_id_bytes;
        Ok(Reader { database, timing, max_id_bytes, reads: Arc::new(Semaphore::new(MAX_READS)) })
    }

    /// A page of an inbox.
    pub async fn pull(
        &self,
        request: PullMsgsRequest,
        arrival: Instant,
        timeout: Option<Duration>,
    ) -> Result<(PullMsgsResponse, Place), Failure> {
        let query = pull::Query::of(request, self.max_id_bytes)?;
        let read = |database| pull::read(database, query);
        self.answer("PullMsgs", arrival, timeout, read).await
    }

    /// How far inboxes reach.
    pub async fn max_seqs(
        &self,
        request: GetMaxSeqsRequest,
        arrival: Instant,
        timeout: Option<Duration>,
    ) -> Result<(GetMaxSeqsResponse, Place), Failure> {
        max_seqs::check(&request.recv_ids, self.max_id_bytes)?;
        let read = |database| max_seqs::read(database, request.recv_ids);
        self.answer("GetMaxSeqs", arrival, timeout, read).await
    }

    async fn answer<'a, T, F>(
        &'a self,
        method: &'static str,
        arrival: Instant,
        timeout: Option<Duration>,
        read: impl FnOnce(&'a Database) -> F,
    ) -> Result<(T, Place), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let database = self.database.as_ref().ok_or(Failure::NoDatabase)?;
        let answer_by = self.timing.answer_by(arrival, timeout, Instant::now())?;
        let reading = async {
            let place = self.reads.clone().acquire_owned().await.expect("the semaphore is never closed");
            Ok((read(database).await?, Arc::new(place)))
        };
        let result = tokio::time::timeout_at(answer_by.into(), reading).await;
        histogram!(READ_SECONDS, "method" => method).record(arrival.elapsed());
        result.unwrap_or_else(|_| Err(Failure::DatabaseUnavailable("the database did not answer in time".into())))
    }
}

fn invalid(field: &str, description: impl Into<String>) -> Violation {
    Violation { field: field.to_owned(), description: description.into() }
}
