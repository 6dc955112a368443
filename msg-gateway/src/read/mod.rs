//! Reads stored messages. Only GetMsgStatus also queries Kafka. Sends never use the database.

mod completed;
pub(crate) mod database;
pub(crate) mod kafka;
pub mod max_seqs;
pub mod page_token;
pub mod pull;
mod rights;
pub mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::histogram;
use msg_common::admin::Readiness;
use msg_common::config::SettingError;
use msg_common::limits::Violation;
use msg_common::partition::Partition;
use msg_common::postgres::Purpose;
use msg_common::proto::{
    GetMaxSeqsRequest, GetMaxSeqsResponse, GetMsgStatusRequest, GetMsgStatusResponse, PullMsgsRequest, PullMsgsResponse,
};
use prost::Message;
use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::{Budget, Budgets};
use crate::config::Config;
use crate::metrics::READ_SECONDS;
use crate::read::database::{Database, SESSION};
use crate::read::kafka::Topic;
use crate::read::rights::Table;
use crate::response_permit::{ResponsePermit, SMALL_RESPONSE};
use crate::send::deadline::Timing;
use crate::status::Failure;

/// Why the reads could not start.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The settings of the database cannot be used.
    #[error(transparent)]
    Database(#[from] SettingError),
    /// librdkafka rejected the settings of the client that reads the topic.
    #[error("kafka client")]
    Kafka(#[from] KafkaError),
}

pub(crate) struct Reader {
    sources: Option<Sources>,
    timing: Timing,
    budgets: Arc<Budgets>,
    /// Maximum bytes of a page in memory.
    page_bytes: usize,
    max_id_bytes: usize,
    partitions: Partition,
}

/// The database, its replica, and the topic.
struct Sources {
    primary: Database,
    replica: Option<Database>,
    topic: Topic,
}

impl Sources {
    fn new(config: &Config, budgets: &Budgets) -> Result<Self, ReadError> {
        let database = |options, purpose| Database::new(options, config.read_connections, SESSION, purpose);
        let replica = config.replica.database(&config.database);
        for options in [Some(&config.database), replica.as_ref()].into_iter().flatten() {
            options.warn_if_exposed();
        }
        Ok(Sources {
            primary: database(&config.database, Purpose::ReadPrimary)?,
            replica: replica.as_ref().map(|replica| database(replica, Purpose::ReadReplica)).transpose()?,
            topic: Topic::new(&config.kafka, budgets.kafka_requests.clone())?,
        })
    }

    /// Returns the database to read pages from, which may be behind.
    fn pages(&self) -> &Database {
        self.replica.as_ref().unwrap_or(&self.primary)
    }
}

/// The data that a read needs from the head of its request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// When the head of the request arrived.
    pub(crate) arrival: Instant,
    pub(crate) timeout: Option<Duration>,
}

/// Returns the timeout of reads: the database's own timeouts, unless the caller's deadline is earlier.
pub(crate) fn timing(config: &Config) -> Timing {
    let database = &config.database;
    Timing {
        max_wait: 2 * database.database_connect_timeout + database.database_statement_timeout,
        margin: config.send.deadline_margin,
        shortest: Duration::ZERO,
    }
}

impl Reader {
    /// Creates a reader of the configured database. It connects at the first read.
    pub(crate) fn new(config: &Config, timing: Timing, budgets: Arc<Budgets>) -> Result<Self, ReadError> {
        let sources = if config.database.is_given() {
            Some(Sources::new(config, &budgets)?)
        } else {
            tracing::info!("no database is configured, reads are rejected");
            None
        };
        Ok(Reader {
            sources,
            timing,
            budgets,
            page_bytes: pull::MAX_BYTES.max(2 * config.limits.max_record_bytes()),
            max_id_bytes: config.limits.max_id_bytes,
            partitions: config.send.topic_partitions,
        })
    }

    /// Starts the tasks that make the gateway not ready while a database can never be used without an operator.
    pub(crate) fn watch_databases(&self, tasks: &TaskTracker, readiness: &Readiness, stop: &CancellationToken) {
        let Some(Sources { primary, replica, .. }) = &self.sources else { return };
        tasks.spawn(primary.clone().watch("database", Table::ALL, readiness.clone(), stop.clone()));
        if let Some(replica) = replica.clone() {
            tasks.spawn(replica.watch("replica", Table::OF_PAGES, readiness.clone(), stop.clone()));
        }
    }

    pub(crate) async fn pull(
        &self,
        request: PullMsgsRequest,
        call: Call,
    ) -> Result<(PullMsgsResponse, Arc<ResponsePermit>), Failure> {
        let query = pull::Query::of(request, self.max_id_bytes)?;
        self.respond("PullMsgs", &self.budgets.reads, self.page_bytes, call, |sources, _| {
            pull::read(sources.pages(), query)
        })
        .await
    }

    pub(crate) async fn max_seqs(
        &self,
        request: GetMaxSeqsRequest,
        call: Call,
    ) -> Result<(GetMaxSeqsResponse, Arc<ResponsePermit>), Failure> {
        max_seqs::check(&request.recv_ids, self.max_id_bytes)?;
        let bytes = max_seqs::response_bytes(&request.recv_ids);
        self.respond("GetMaxSeqs", &self.budgets.reads, bytes, call, |sources, _| {
            max_seqs::read(sources.pages(), request.recv_ids)
        })
        .await
    }

    pub(crate) async fn msg_status(
        &self,
        request: GetMsgStatusRequest,
        call: Call,
    ) -> Result<(GetMsgStatusResponse, Arc<ResponsePermit>), Failure> {
        let arrival = call.arrival;
        let query = status::Query::of(request, self.max_id_bytes, self.partitions)?;
        // The primary, because a replica may be behind: a stored message would not be found there.
        self.respond("GetMsgStatus", &self.budgets.statuses, 0, call, |sources, respond_by| {
            status::read(&sources.primary, &sources.topic, query, arrival, respond_by)
        })
        .await
    }

    /// Reads within the budget. `bytes` is the maximum that the response needs in memory.
    async fn respond<'a, T: Message, F>(
        &'a self,
        method: &'static str,
        budget: &Arc<Budget>,
        bytes: usize,
        call: Call,
        read: impl FnOnce(&'a Sources, Instant) -> F,
    ) -> Result<(T, Arc<ResponsePermit>), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let sources = self.sources.as_ref().ok_or(Failure::NoDatabase)?;
        let respond_by = self.timing.respond_by(call.arrival, call.timeout, Instant::now())?;
        let permit = budget.acquire_by(1, respond_by).await?;
        let mut memory = match bytes {
            0..SMALL_RESPONSE => None,
            bytes => Some(self.budgets.responses.acquire_by(bytes, respond_by).await?),
        };
        let result = tokio::time::timeout_at(respond_by.into(), read(sources, respond_by)).await;
        histogram!(READ_SECONDS, "method" => method).record(call.arrival.elapsed());
        let response = result
            .unwrap_or_else(|_| Err(Failure::DatabaseUnavailable("the database has not responded in time".into())))?;
        if let Some(memory) = &mut memory {
            // A buffer that grows while a response is encoded has up to twice its size.
            memory.shrink(2 * response.encoded_len());
        }
        Ok((response, ResponsePermit::new(std::iter::once(permit).chain(memory))))
    }
}

fn invalid(field: &str, description: impl Into<String>) -> Violation {
    Violation { field: field.to_owned(), description: description.into() }
}
