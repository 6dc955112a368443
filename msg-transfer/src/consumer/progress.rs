//! The progress rows: the next offset of each partition. They are in the database of the messages, and are read
//! whenever a start offset is resolved.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use machine::consumer::start::Lost;
use machine::driver::ProgressRow;
use machine::error::ClassifiedError;
use machine::reference_connection::{Next, Query, ReferenceConnection};
use machine::{ConnectionNumber, LeaderEpoch, NextOffset, Partition, Progress, Reason, RecordOffset};
use msg_common::postgres::{Comparison, DatabaseError, HostError, Identity, Object, Pool, Server};
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::citus::{self, KnownWorkers, Worker};
use crate::lane::sql::{self, ServerKind};
use crate::session::{self, Committed};
use crate::{db_error, metrics};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The interval at which the workers of a Citus are compared with the known ones. Each new connection of a lane does so
/// as well.
const WORKERS_INTERVAL: Duration = Duration::from_secs(10);

const CLOSED: &str = "the reference connection was closed; the start offsets will be resolved again";

/// Reads and writes the progress rows over the reference connection. No pooler may be used between the transfer and the
/// server: it would hide that the server changed.
#[derive(Clone, Debug)]
pub(crate) struct ProgressStore {
    pool: Pool,
    connection: Arc<Mutex<Connection>>,
}

#[derive(Debug)]
struct Connection {
    pool: Pool,
    reference: ReferenceConnection,
    client: Option<Object>,
    topic_id: Uuid,
    /// The time of the last `resume` of each partition, as read with its start offset.
    resumed: HashMap<Partition, Option<SystemTime>>,
    kind: ServerKind,
    /// It outlives the connections: a worker that is unavailable is compared when it is available again.
    workers: KnownWorkers,
    workers_read: Option<Instant>,
}

/// The progress rows and dead letters of some partitions.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The number of the reference connection that the rows were read over.
    pub connection_number: ConnectionNumber,
    pub rows: Vec<(Partition, Progress)>,
    /// The offsets of the dead letters that count for the limit.
    pub dead: HashMap<Partition, Vec<RecordOffset>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    /// The rows are durable, and so is everything that was committed before.
    Durable,
    /// The COMMIT had this warning: after a failover, the new primary may not have the rows.
    Warned(String),
}

impl ProgressStore {
    /// Creates a store that connects with the first `load`.
    pub(crate) fn new(pool: Pool, kind: ServerKind) -> Self {
        let connection = Connection {
            pool: pool.clone(),
            reference: ReferenceConnection::default(),
            client: None,
            topic_id: Uuid::nil(),
            resumed: HashMap::new(),
            kind,
            workers: KnownWorkers::default(),
            workers_read: None,
        };
        ProgressStore { pool, connection: Arc::new(Mutex::new(connection)) }
    }

    /// Reads the rows of these partitions, and their dead letters of the last `window` offsets.
    pub(crate) async fn load(
        &self,
        topic_id: Uuid,
        partitions: &[Partition],
        window: i64,
    ) -> Result<Loaded, ClassifiedError> {
        let mut connection = self.connection.lock().await;
        if connection.reference.next(&Query::Load) == Next::Connect {
            connection.client = Some(session::fresh(&self.pool).await.map_err(|error| db_error::of_pool(&error))?);
            connection.reference.connected();
            if connection.kind == ServerKind::Citus {
                let workers = connection.query(&Query::Load, citus::readable_workers).await?;
                // Nothing was stored yet under this reference connection, so a change does not close it.
                connection.report_changes(&workers);
            }
        }
        let (rows, dead) = connection
            .query(&Query::Load, async |client| {
                let statement = client.prepare_cached(sql::LOAD_PROGRESS).await?;
                let rows = client.query(&statement, &[&topic_id, &partitions]).await?;
                let statement = client.prepare_cached(sql::LOAD_DEAD_LETTERS).await?;
                let not_counted = Reason::ALL.into_iter().filter(|reason| !reason.counts());
                let not_counted: Vec<&str> = not_counted.map(Reason::name).collect();
                let dead = client.query(&statement, &[&topic_id, &partitions, &window, &not_counted]).await?;
                Ok((rows, dead))
            })
            .await?;
        connection.topic_id = topic_id;
        connection.resumed.extend(partitions.iter().map(|partition| (*partition, None)));
        connection.resumed.extend(rows.iter().map(|row| (row.get::<_, Partition>(0), row.get(2))));
        let mut loaded =
            Loaded { connection_number: connection.reference.number(), rows: Vec::new(), dead: HashMap::new() };
        let progress = |row: &tokio_postgres::Row| Progress {
            next: NextOffset(row.get(1)),
            leader_epoch: row.get::<_, Option<i32>>(3).map_or(LeaderEpoch::UNKNOWN, LeaderEpoch),
        };
        loaded.rows.extend(rows.iter().map(|row| (row.get::<_, Partition>(0), progress(row))));
        for row in dead {
            loaded.dead.entry(row.get(0)).or_default().push(RecordOffset(row.get(1)));
        }
        Ok(loaded)
    }

    /// Returns the partitions that an operator has resumed since their start offset was read.
    pub(crate) async fn resumed(&self, partitions: &[Partition]) -> Result<Vec<Partition>, DatabaseError> {
        let (topic_id, known) = {
            let connection = self.connection.lock().await;
            (connection.topic_id, connection.resumed.clone())
        };
        let client = self.pool.get().await?;
        let query = async {
            let statement = client.prepare_cached(sql::LOAD_PROGRESS).await?;
            client.query(&statement, &[&topic_id, &partitions]).await
        };
        let error = match tokio::time::timeout(TIMEOUT, query).await {
            Ok(Ok(rows)) => return Ok(changed(&rows, &known)),
            Ok(Err(error)) => error.into(),
            Err(_) => DatabaseError::TimedOut(TIMEOUT),
        };
        session::disconnect(client);
        Err(error)
    }

    /// Reads the identities of the workers of a Citus over a new connection of a lane. Empty if this role may not.
    pub(crate) async fn workers(&self, client: &Object) -> Result<Vec<Worker>, ClassifiedError> {
        match tokio::time::timeout(TIMEOUT, citus::permitted_workers(client)).await {
            Ok(workers) => workers.map_err(|error| db_error::of(&error)),
            Err(_) => Err(db_error::transient("the workers did not respond in time")),
        }
    }

    /// Returns whether a new connection leads to the server that the start offsets were read from: the reference
    /// connection with this number is still open, both connections lead to the same server, and the `workers` are those
    /// that were known. Fails if they lead to two servers that both accept writes: nothing may be stored in a second
    /// primary. Fails too if it is not known which server one of them leads to.
    pub(crate) async fn is_same(
        &self,
        connection_number: ConnectionNumber,
        server: &Server,
        workers: &[Worker],
    ) -> Result<bool, ClassifiedError> {
        let mut connection = self.connection.lock().await;
        let query = Query::IsAlive(connection_number);
        if !connection.check(&query).await || !connection.know_as_much_as(&query, &server.identity).await {
            return Ok(false);
        }
        let Some(reference) = &connection.client else { return Ok(false) };
        let (expected, found) = (&reference.server().identity, &server.identity);
        match expected.compare(found) {
            Comparison::Same => Ok(connection.keep_if_same(&query, workers)),
            Comparison::Different => Err(db_error::transient(&format!(
                "a new connection leads to another server ({found}) than the one that the start offsets were read \
                 from ({expected} at {}), and both accept writes: nothing is stored in the other one; stop the server \
                 that is not the primary",
                reference.host()
            ))),
            Comparison::Unknown => Err(db_error::transient(&format!(
                "it is not known whether a new connection ({found}) leads to the server that the start offsets were \
                 read from ({expected} at {}): this role must be able to read pg_postmaster_start_time()",
                reference.host()
            ))),
        }
    }

    /// Returns false if the reference connection was closed: then start offsets have to be resolved again.
    pub(crate) async fn check(&self) -> bool {
        let mut connection = self.connection.lock().await;
        connection.check(&Query::Check).await
    }

    /// Writes the rows in one statement. After an error, start offsets have to be resolved again.
    pub(crate) async fn save(&self, rows: &[ProgressRow]) -> Result<Saved, ClassifiedError> {
        let mut connection = self.connection.lock().await;
        let query = Query::Save(rows.iter().map(|row| row.connection_number).collect());
        if connection.reference.next(&query) != Next::Send {
            return Err(db_error::transient(CLOSED));
        }
        let topic_ids: Vec<Uuid> = rows.iter().map(|row| row.topic_id).collect();
        let partitions: Vec<Partition> = rows.iter().map(|row| row.partition).collect();
        let offsets: Vec<i64> = rows.iter().map(|row| row.progress.next.0).collect();
        let epochs: Vec<Option<i32>> = rows.iter().map(|row| column(row.progress.leader_epoch)).collect();
        let save = async |client: &Object| {
            let statement = client.prepare_cached(sql::SAVE_PROGRESS).await?;
            client.commit(client.execute(&statement, &[&topic_ids, &partitions, &offsets, &epochs])).await
        };
        let (_, warning) = connection.query(&query, save).await?;
        Ok(warning.map_or(Saved::Durable, |warning| {
            session::warned(Committed::Progress, &warning);
            Saved::Warned(warning)
        }))
    }

    /// Lowers the row of a partition, if it is still the row that was read with the start offset. After an error, the
    /// start offset has to be resolved again.
    pub(crate) async fn lower(
        &self,
        topic_id: Uuid,
        connection_number: ConnectionNumber,
        partition: Partition,
        lost: &Lost,
    ) -> Result<(), ClassifiedError> {
        let mut connection = self.connection.lock().await;
        let query = Query::Save(vec![connection_number]);
        if connection.reference.next(&query) != Next::Send {
            return Err(db_error::transient(CLOSED));
        }
        let (row, lowered) = (column(lost.row.leader_epoch), column(lost.lowered.leader_epoch));
        let lower = async |client: &Object| {
            let statement = client.prepare_cached(sql::LOWER_PROGRESS).await?;
            let parameters: [&(dyn ToSql + Sync); 6] =
                [&topic_id, &partition, &lost.row.next.0, &row, &lost.lowered.next.0, &lowered];
            client.execute(&statement, &parameters).await
        };
        match connection.query(&query, lower).await? {
            0 => Err(db_error::transient("the progress row has changed since it was read")),
            _ => Ok(()),
        }
    }
}

/// Returns the value of the column: NULL if the leader epoch is not known.
fn column(leader_epoch: LeaderEpoch) -> Option<i32> {
    leader_epoch.is_known().then_some(leader_epoch.0)
}

/// Returns the partitions whose `resumed_at` differs from the known one.
fn changed(rows: &[tokio_postgres::Row], known: &HashMap<Partition, Option<SystemTime>>) -> Vec<Partition> {
    let current = rows.iter().map(|row| (row.get::<_, Partition>(0), row.get::<_, Option<SystemTime>>(2)));
    current.filter(|(partition, at)| known.get(partition).is_some_and(|known| known != at)).map(|(p, _)| p).collect()
}

impl Connection {
    async fn check(&mut self, query: &Query) -> bool {
        match self.reference.next(query) {
            Next::Known(same) => same,
            Next::Send | Next::Connect => {
                let pool = self.pool.clone();
                let with_workers = *query == Query::Check && self.workers_due();
                // A server that was demoted keeps its connections, and is no longer the primary.
                let verify = async |client: &Object| {
                    pool.manager().verify(client).await?;
                    match with_workers {
                        true => citus::readable_workers(client).await.map_err(HostError::Driver),
                        false => Ok(Vec::new()),
                    }
                };
                match self.query_with(query, verify, db_error::of_host).await {
                    Ok(workers) => self.keep_if_same(query, &workers),
                    Err(ClassifiedError { text: error, .. }) => {
                        tracing::warn!(error, "lost the reference connection, start offsets will be resolved again");
                        false
                    }
                }
            }
        }
    }

    /// Reads the identity of the reference connection's server again if a new connection could read a part of its own
    /// that was not known here: the right to it may have been granted in between. Returns false if the reference
    /// connection was closed.
    async fn know_as_much_as(&mut self, query: &Query, found: &Identity) -> bool {
        let known = self.client.as_ref().is_none_or(|client| !client.server().identity.knows_less_than(found));
        if known {
            return true;
        }
        match self.query(query, async |client| client.read_identity().await).await {
            Ok(identity) => {
                if let Some(client) = &mut self.client {
                    client.set_identity(identity);
                }
                true
            }
            Err(ClassifiedError { text: error, .. }) => {
                tracing::warn!(error, "lost the reference connection, start offsets will be resolved again");
                false
            }
        }
    }

    /// Returns whether the workers have to be read again, and then counts them as read.
    fn workers_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.kind == ServerKind::Citus && self.workers_read.is_none_or(|at| now - at >= WORKERS_INTERVAL);
        if due {
            self.workers_read = Some(now);
        }
        due
    }

    /// Returns whether the workers of a Citus are the known ones. If not, closes the connection: all start offsets have
    /// to be resolved again.
    fn keep_if_same(&mut self, query: &Query, workers: &[Worker]) -> bool {
        if !self.report_changes(workers) {
            return true;
        }
        if let Some(client) = self.client.take() {
            session::disconnect(client);
        }
        self.reference.completed(query, false);
        false
    }

    /// Logs and counts each worker that is another server than before. Returns false if there is none.
    fn report_changes(&mut self, workers: &[Worker]) -> bool {
        let changes = self.workers.update(workers);
        for change in &changes {
            metrics::worker_changed(&change.worker);
            tracing::error!(
                %change,
                "detected a changed worker, all start offsets are resolved again; unless it has every row that it had, \
                 follow docs/citus.md, A worker is lost"
            );
        }
        !changes.is_empty()
    }

    async fn query<T>(
        &mut self,
        query: &Query,
        send: impl AsyncFnOnce(&Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, ClassifiedError> {
        self.query_with(query, send, db_error::of).await
    }

    /// Sends a query. After an error or a timeout, the connection is closed and removed from the pool.
    async fn query_with<T, E>(
        &mut self,
        query: &Query,
        send: impl AsyncFnOnce(&Object) -> Result<T, E>,
        failed: impl FnOnce(&E) -> ClassifiedError,
    ) -> Result<T, ClassifiedError> {
        // Removed for the duration of the query: if this future is dropped, the connection is closed.
        let Some(client) = self.client.take() else {
            self.reference.completed(query, false);
            return Err(db_error::transient(CLOSED));
        };
        let error = match tokio::time::timeout(TIMEOUT, send(&client)).await {
            Ok(Ok(result)) => {
                self.client = Some(client);
                self.reference.completed(query, true);
                return Ok(result);
            }
            Ok(Err(error)) => failed(&error),
            Err(_) => db_error::transient("the database did not respond in time"),
        };
        session::disconnect(client);
        self.reference.completed(query, false);
        Err(error)
    }
}
