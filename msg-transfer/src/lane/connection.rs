//! A lane's connection: carries out what the lane's machine asks of the database, one request at a time.

use std::time::Duration;

use futures_util::future::try_join_all;
use machine::ConnectionNumber;
use machine::lane::{Entry, Failure, Request, Response};
use msg_common::postgres::{DatabaseOptions, Object, Pool};

use super::decoded::DecodedRecord;
use super::sql::{Begin, ServerKind};
use super::{letters, sql, statements};
use crate::citus::{self, Worker};
use crate::consumer::progress::ProgressStore;
use crate::failure;
use crate::session::{self, Committed};

/// One connection at a time. Never back into the pool with a transaction open, or in an unknown state.
#[derive(Debug)]
pub struct Connection {
    pool: Pool,
    progress: ProgressStore,
    topic: String,
    /// How long one request may go unanswered. Above the server's own time-outs.
    patience: Duration,
    begin: Begin,
    kind: ServerKind,
    client: Option<Object>,
}

impl Connection {
    /// Not connected yet.
    pub fn new(
        pool: Pool,
        progress: ProgressStore,
        topic: String,
        database: &DatabaseOptions,
        kind: ServerKind,
    ) -> Self {
        let patience = 2 * database.database_statement_timeout;
        let begin = Begin::new(session::lock_timeout(database), database.database_statement_timeout, kind);
        Connection { pool, progress, topic, patience, begin, kind, client: None }
    }

    /// Carries it out.
    pub async fn carry_out(&mut self, request: &Request, entries: &[Entry<DecodedRecord>]) -> Response {
        match request {
            Request::Connect(connection_number) => self.connect(*connection_number).await,
            Request::Disconnect => {
                self.disconnect();
                Response::Ok
            }
            _ => match tokio::time::timeout(self.patience, self.ask(request, entries)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => Response::Failed(failure::of(&error)),
                Err(_) => Response::Failed(failure::lost("the database did not answer in time")),
            },
        }
    }

    async fn connect(&mut self, connection_number: ConnectionNumber) -> Response {
        self.disconnect();
        let client = match session::fresh(&self.pool).await {
            Ok(client) => client,
            Err(error) => return Response::Failed(failure::of_pool(&error)),
        };
        // Asked after the connection is there: what lives now, lived when it was made.
        let same = match self.workers(&client).await {
            Ok(workers) => self.progress.is_same(connection_number, client.server(), &workers).await,
            Err(failure) => Err(failure),
        };
        if matches!(same, Ok(true)) {
            self.client = Some(client);
            return Response::Ok;
        }
        // It was never used, and may lead to the wrong server.
        session::disconnect(client);
        same.map_or_else(Response::Failed, |_| Response::Stale)
    }

    /// Which servers the workers of a Citus are; none on one server. An error if one does not respond.
    async fn workers(&self, client: &Object) -> Result<Vec<Worker>, Failure> {
        if self.kind == ServerKind::Single {
            return Ok(Vec::new());
        }
        let workers = self.progress.workers(client).await?;
        citus::unavailable(&workers).map_or(Ok(workers), |error| Err(failure::transient(&error)))
    }

    /// Closes it, and out of the pool.
    pub fn disconnect(&mut self) {
        if let Some(client) = self.client.take() {
            session::disconnect(client);
        }
    }

    async fn ask(
        &self,
        request: &Request,
        entries: &[Entry<DecodedRecord>],
    ) -> Result<Response, tokio_postgres::Error> {
        let client = self.client.as_ref().expect("the machine connects first");
        let statement = match request {
            Request::LastSeqs(asked) => {
                return Ok(Response::Seqs(statements::last_seqs(client, entries, asked).await?));
            }
            Request::Guard(heads) => {
                return Ok(Response::Count(statements::count_predecessors(client, entries, heads, self.kind).await?));
            }
            Request::Insert(numbered) => {
                return Ok(Response::Count(statements::insert_messages(client, entries, numbered, self.kind).await?));
            }
            Request::Canary(beside) => {
                return Ok(Response::Count(statements::insert_canary(client, entries, *beside, self.kind).await?));
            }
            Request::FindStored(asked) => {
                return Ok(Response::Found(statements::find_stored(client, entries, asked, self.kind).await?));
            }
            Request::InsertDeadLetters(dead) => {
                letters::insert_dead_letters(client, &self.topic, entries, dead).await?;
                return Ok(Response::Ok);
            }
            Request::Begin => return begin(client, &self.begin.full, None).await,
            Request::BeginRetry => return begin(client, &self.begin.short, None).await,
            Request::BeginBisection => return begin(client, &self.begin.full, Some(sql::AFTER_BEGIN_BISECTION)).await,
            Request::BeginSearch => return begin(client, &self.begin.short, Some(sql::AFTER_BEGIN_BISECTION)).await,
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
                unreachable!("not the database's")
            }
        };
        client.batch_execute(statement).await?;
        Ok(Response::Ok)
    }
}

/// All sent before the first answer is awaited.
async fn begin(client: &Object, parts: &[String], then: Option<&str>) -> Result<Response, tokio_postgres::Error> {
    let parts = parts.iter().map(String::as_str).chain(then);
    try_join_all(parts.map(|part| client.batch_execute(part))).await?;
    Ok(Response::Ok)
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.disconnect();
    }
}
