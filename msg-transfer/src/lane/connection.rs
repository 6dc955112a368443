//! A lane's connection: carries out the requests of the lane's machine to the database, one at a time.

use std::time::Duration;

use futures_util::future::try_join_all;
use machine::ConnectionNumber;
use machine::error::ClassifiedError;
use machine::lane::{Entry, Request, Response};
use msg_common::postgres::{DatabaseOptions, Object, Pool};
use tokio_postgres::SimpleQueryMessage;

use super::decoded::DecodedRecord;
use super::sql::{Begin, ServerKind};
use super::{letters, sql, statements};
use crate::citus::{self, Worker};
use crate::consumer::progress::ProgressStore;
use crate::db_error;
use crate::hints::Stored;
use crate::session::{self, Committed};

/// Has at most one connection. It never returns a connection to the pool with an open transaction or in an unknown
/// state.
#[derive(Debug)]
pub(crate) struct Connection {
    pool: Pool,
    progress: ProgressStore,
    topic: String,
    /// The timeout of one request. It is above the server's own timeouts.
    timeout: Duration,
    begin: Begin,
    kind: ServerKind,
    client: Option<Object>,
    /// The `stored_time` of the rows of the current transaction, or of the last one, in microseconds since 1970. `None` on
    /// Citus.
    stored_time_us: Option<i64>,
}

impl Connection {
    /// Creates a connection, which is not connected yet.
    pub(crate) fn new(
        pool: Pool,
        progress: ProgressStore,
        topic: String,
        database: &DatabaseOptions,
        kind: ServerKind,
    ) -> Self {
        let timeout = 2 * database.database_statement_timeout;
        let begin = Begin::new(session::lock_timeout(database), database.database_statement_timeout, kind);
        Connection { pool, progress, topic, timeout, begin, kind, client: None, stored_time_us: None }
    }

    /// Carries out a request. An error or a timeout is a response, too.
    pub(crate) async fn carry_out(&mut self, request: &Request, entries: &[Entry<DecodedRecord>]) -> Response {
        match request {
            Request::Connect(connection_number) => self.connect(*connection_number).await,
            Request::Disconnect => {
                self.disconnect();
                Response::Ok
            }
            _ => match tokio::time::timeout(self.timeout, self.execute(request, entries)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => Response::Failed(db_error::of(&error)),
                Err(_) => Response::Failed(db_error::lost("the database did not respond in time")),
            },
        }
    }

    async fn connect(&mut self, connection_number: ConnectionNumber) -> Response {
        self.disconnect();
        let client = match session::fresh(&self.pool).await {
            Ok(client) => client,
            Err(error) => return Response::Failed(db_error::of_pool(&error)),
        };
        // Compared after connecting: if the reference connection is open now, it was open when this connection was
        // opened.
        let same = match self.workers(&client).await {
            Ok(workers) => self.progress.is_same(connection_number, client.server(), &workers).await,
            Err(error) => Err(error),
        };
        if matches!(same, Ok(true)) {
            self.client = Some(client);
            return Response::Ok;
        }
        // The connection was not used yet, and may lead to another server.
        session::disconnect(client);
        same.map_or_else(Response::Failed, |_| Response::Stale)
    }

    /// Reads which servers the workers of a Citus are; none on a single server. Fails if a worker does not respond.
    async fn workers(&self, client: &Object) -> Result<Vec<Worker>, ClassifiedError> {
        if self.kind == ServerKind::Single {
            return Ok(Vec::new());
        }
        let workers = self.progress.workers(client).await?;
        citus::unavailable(&workers).map_or(Ok(workers), |error| Err(db_error::transient(&error)))
    }

    /// Closes the connection, and removes it from the pool.
    pub(crate) fn disconnect(&mut self) {
        if let Some(client) = self.client.take() {
            session::disconnect(client);
        }
    }

    /// Returns where and when the last transaction stored its rows, after its COMMIT. `None` on Citus, whose rows may not be
    /// visible yet.
    pub(crate) fn stored(&self) -> Option<Stored> {
        Some(Stored { table: self.client.as_ref()?.server().table()?, time_us: self.stored_time_us? })
    }

    async fn execute(
        &mut self,
        request: &Request,
        entries: &[Entry<DecodedRecord>],
    ) -> Result<Response, tokio_postgres::Error> {
        let client = self.client.as_ref().expect("the machine connects first");
        let statement = match request {
            Request::LastSeqs(wanted) => return statements::last_seqs(client, entries, wanted, self.kind).await,
            Request::Guard(heads) => {
                return Ok(Response::Count(statements::count_predecessors(client, entries, heads, self.kind).await?));
            }
            Request::Insert(numbered) => {
                return Ok(Response::Count(statements::insert_messages(client, entries, numbered, self.kind).await?));
            }
            Request::InsertNew(numbered) => {
                return Ok(Response::Count(statements::copy_messages(client, entries, numbered).await?));
            }
            Request::Canary(row) => {
                return Ok(Response::Count(statements::insert_canary(client, entries, *row, self.kind).await?));
            }
            Request::FindStored(wanted) => {
                return Ok(Response::Found(statements::find_stored(client, entries, wanted, self.kind).await?));
            }
            Request::InsertDeadLetters(dead) => {
                return Ok(match letters::insert_dead_letters(client, &self.topic, entries, dead).await {
                    Ok(failed) if failed.is_empty() => Response::Ok,
                    Ok(failed) => Response::FailedFor(failed),
                    Err(error) => Response::Failed(error),
                });
            }
            Request::Begin | Request::BeginRetry | Request::BeginBisection | Request::BeginSearch => {
                let is_short = matches!(request, Request::BeginRetry | Request::BeginSearch);
                let is_bisection = matches!(request, Request::BeginBisection | Request::BeginSearch);
                let parts = if is_short { &self.begin.short } else { &self.begin.full };
                let then = is_bisection.then_some(sql::AFTER_BEGIN_BISECTION);
                self.stored_time_us = begin(client, parts, then).await?;
                return Ok(Response::Ok);
            }
            Request::Commit => {
                let ((), warning) = client.commit(client.batch_execute("COMMIT")).await?;
                return Ok(warning.map_or(Response::Ok, |warning| {
                    session::warned(Committed::Batch, &warning);
                    Response::Warned
                }));
            }
            Request::Rollback => "ROLLBACK",
            Request::MoveSavepoint => sql::MOVE_SAVEPOINT,
            Request::RollbackToSavepoint => sql::ROLLBACK_TO_SAVEPOINT,
            Request::Done(_)
            | Request::ApproveDeadLetters(_)
            | Request::Wait(_)
            | Request::Connect(_)
            | Request::Disconnect => {
                unreachable!("the database does not execute this request")
            }
        };
        client.batch_execute(statement).await?;
        Ok(Response::Ok)
    }
}

/// Sends all parts of a BEGIN before it awaits the first result. Returns the `stored_time` of the transaction's rows, if a
/// part reads it.
async fn begin(client: &Object, parts: &[String], then: Option<&str>) -> Result<Option<i64>, tokio_postgres::Error> {
    let parts = parts.iter().map(String::as_str).chain(then);
    let results = try_join_all(parts.map(|part| client.simple_query(part))).await?;
    let mut rows = results.iter().flatten().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(rows.next().and_then(|time| time.parse().ok()))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.disconnect();
    }
}
