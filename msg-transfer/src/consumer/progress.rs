//! The progress rows: how far each partition is stored, said by the database itself, and read again at each start.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use machine::consumer::start::Lost;
use machine::driver::ProgressRow;
use machine::keeper::{Ask, Keeper, Next};
use machine::lane::Failure;
use machine::{Generation, LeaderEpoch, NextOffset, Partition, Progress, Reason, RecordOffset};
use msg_common::postgres::{Cause, Object, Pool, Server};
use msg_common::repeat::Repeats;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::citus::{self, KnownWorkers, Worker};
use crate::lane::sql::{self, ServerKind};
use crate::session::{self, Committed};
use crate::{failure, metrics};

/// How long one statement may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often the workers of a Citus are compared with what they were. A lane's new connection does so as well.
const WORKERS_INTERVAL: Duration = Duration::from_secs(10);

static WORKERS_NOT_KNOWN: Repeats = Repeats::new();

const GONE: &str = "the connection that the starts were read over is gone";

/// Reads and writes the rows, on one connection at a time, as long as that shows that the server is the same. (A pooler
/// between us and the server would hide another one.)
#[derive(Clone, Debug)]
pub struct ProgressKeeper {
    pool: Pool,
    connection: Arc<Mutex<Connection>>,
}

#[derive(Debug)]
struct Connection {
    pool: Pool,
    keeper: Keeper,
    client: Option<Object>,
    topic_id: Uuid,
    /// When somebody last said that a partition may go on, as its start was read.
    resumed: HashMap<Partition, Option<SystemTime>>,
    kind: ServerKind,
    /// Over all connections: what is known of a worker that is away is compared when it is back.
    workers: KnownWorkers,
    workers_read: Option<Instant>,
}

/// What the database has of some partitions.
#[derive(Debug)]
pub struct Loaded {
    /// The connection that it was read over.
    pub generation: Generation,
    /// How far each is stored, where there is a row.
    pub rows: Vec<(Partition, Progress)>,
    /// The dead letters that count for the limit.
    pub dead: HashMap<Partition, Vec<RecordOffset>>,
}

/// How the rows were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// They are, and so is everything that was committed before.
    Durable,
    /// With this warning: the server has them, and one that takes over from it may have an earlier state.
    Warned(String),
}

impl ProgressKeeper {
    /// Connects when first asked.
    pub fn new(pool: Pool, kind: ServerKind) -> Self {
        let connection = Connection {
            pool: pool.clone(),
            keeper: Keeper::default(),
            client: None,
            topic_id: Uuid::nil(),
            resumed: HashMap::new(),
            kind,
            workers: KnownWorkers::default(),
            workers_read: None,
        };
        ProgressKeeper { pool, connection: Arc::new(Mutex::new(connection)) }
    }

    /// What the database has of these partitions; dead letters as far back as `window` offsets.
    pub async fn load(&self, topic_id: Uuid, partitions: &[Partition], window: i64) -> Result<Loaded, Failure> {
        let mut connection = self.connection.lock().await;
        if connection.keeper.next(&Ask::Load) == Next::Connect {
            connection.client = Some(session::fresh(&self.pool).await.map_err(|error| failure::of_pool(&error))?);
            connection.keeper.connected();
            if connection.kind == ServerKind::Citus {
                let workers = connection.ask(&Ask::Load, known_workers).await?;
                // Nothing is stored yet of what starts over this connection, which stays good.
                connection.report_changes(&workers);
            }
        }
        let (rows, dead) = connection
            .ask(&Ask::Load, async |client| {
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
        let mut loaded = Loaded { generation: connection.keeper.generation(), rows: Vec::new(), dead: HashMap::new() };
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

    /// Those of these partitions of which somebody has said, since their start was read, that they may go on.
    pub async fn resumed(&self, partitions: &[Partition]) -> Result<Vec<Partition>, String> {
        let (topic_id, known) = {
            let connection = self.connection.lock().await;
            (connection.topic_id, connection.resumed.clone())
        };
        let client = self.pool.get().await.map_err(|error| failure::of_pool(&error).text)?;
        let ask = async {
            let statement = client.prepare_cached(sql::LOAD_PROGRESS).await?;
            client.query(&statement, &[&topic_id, &partitions]).await
        };
        let error = match tokio::time::timeout(TIMEOUT, ask).await {
            Ok(Ok(rows)) => return Ok(changed(&rows, &known)),
            Ok(Err(error)) => failure::describe(&error),
            Err(_) => "the database did not answer in time".to_owned(),
        };
        drop(Object::take(client));
        Err(error)
    }

    /// Reads over a lane's new connection which servers the workers of a Citus are. Empty if this role may not.
    pub async fn workers(&self, client: &Object) -> Result<Vec<Worker>, Failure> {
        match tokio::time::timeout(TIMEOUT, citus::workers(client)).await {
            Ok(Ok(workers)) => Ok(workers),
            Ok(Err(error)) if is_denied(&error) => Ok(not_known(&error)),
            Ok(Err(error)) => Err(failure::of(&error)),
            Err(_) => Err(failure::transient("the workers did not respond in time")),
        }
    }

    /// Whether a connection that was made now leads to the server that the starts of this generation were read from: the
    /// connection that they were read over still lives, both are of the same server, and the `workers` are those that were
    /// known. An error says that the servers are not the same, although both take writes: nothing may be stored in a second
    /// primary.
    pub async fn is_same(&self, generation: Generation, server: &Server, workers: &[Worker]) -> Result<bool, Failure> {
        let mut connection = self.connection.lock().await;
        if !connection.look(&Ask::IsAlive(generation)).await {
            return Ok(false);
        }
        let Some(reference) = &connection.client else { return Ok(false) };
        let (expected, found) = (&reference.server().identity, &server.identity);
        if expected == found {
            return Ok(connection.keep_if_same(&Ask::IsAlive(generation), workers));
        }
        Err(failure::transient(&format!(
            "a new connection leads to another server ({found}) than the one that the starts were read from ({expected} at \
             {}), and both take writes: nothing is stored in the other one; stop the server that is not the primary",
            reference.host()
        )))
    }

    /// Looks at the connection. False when there was one and it is gone: starts have to be read again.
    pub async fn check(&self) -> bool {
        let mut connection = self.connection.lock().await;
        connection.look(&Ask::Check).await
    }

    /// Writes the rows in one statement. An error means that starts have to be read again.
    pub async fn save(&self, rows: &[ProgressRow]) -> Result<Saved, Failure> {
        let mut connection = self.connection.lock().await;
        let ask = Ask::Save(rows.iter().map(|row| row.generation).collect());
        if connection.keeper.next(&ask) != Next::Send {
            return Err(failure::transient(GONE));
        }
        let topic_ids: Vec<Uuid> = rows.iter().map(|row| row.topic_id).collect();
        let partitions: Vec<Partition> = rows.iter().map(|row| row.partition).collect();
        let offsets: Vec<i64> = rows.iter().map(|row| row.progress.next.0).collect();
        let epochs: Vec<Option<i32>> = rows.iter().map(|row| column(row.progress.leader_epoch)).collect();
        let save = async |client: &Object| {
            let statement = client.prepare_cached(sql::SAVE_PROGRESS).await?;
            client.commit(client.execute(&statement, &[&topic_ids, &partitions, &offsets, &epochs])).await
        };
        let (_, warning) = connection.ask(&ask, save).await?;
        Ok(warning.map_or(Saved::Durable, |warning| {
            session::warned(Committed::Progress, &warning);
            Saved::Warned(warning)
        }))
    }

    /// Puts the row of a partition down, if it is still the one that the start was read from. An error means that the start has
    /// to be read again.
    pub async fn lower(
        &self,
        topic_id: Uuid,
        generation: Generation,
        partition: Partition,
        lost: &Lost,
    ) -> Result<(), Failure> {
        let mut connection = self.connection.lock().await;
        let ask = Ask::Save(vec![generation]);
        if connection.keeper.next(&ask) != Next::Send {
            return Err(failure::transient(GONE));
        }
        let (row, lowered) = (column(lost.row.leader_epoch), column(lost.lowered.leader_epoch));
        let lower = async |client: &Object| {
            let statement = client.prepare_cached(sql::LOWER_PROGRESS).await?;
            let parameters: [&(dyn ToSql + Sync); 6] =
                [&topic_id, &partition, &lost.row.next.0, &row, &lost.lowered.next.0, &lowered];
            client.execute(&statement, &parameters).await
        };
        match connection.ask(&ask, lower).await? {
            0 => Err(failure::transient("the progress row has changed since it was read")),
            _ => Ok(()),
        }
    }
}

/// Null where it is not known.
fn column(leader_epoch: LeaderEpoch) -> Option<i32> {
    leader_epoch.is_known().then_some(leader_epoch.0)
}

/// The partitions of which something else is said now than was known.
fn changed(rows: &[tokio_postgres::Row], known: &HashMap<Partition, Option<SystemTime>>) -> Vec<Partition> {
    let now = rows.iter().map(|row| (row.get::<_, Partition>(0), row.get::<_, Option<SystemTime>>(2)));
    now.filter(|(partition, at)| known.get(partition).is_some_and(|known| known != at)).map(|(p, _)| p).collect()
}

fn is_denied(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

/// Reads the workers over the keeper's connection, which is good even if they cannot be read: one that is away is reported
/// where something is to be stored in it.
async fn known_workers(client: &Object) -> Result<Vec<Worker>, tokio_postgres::Error> {
    match citus::workers(client).await {
        Err(error) if error.as_db_error().is_some() => Ok(not_known(&error)),
        read => read,
    }
}

fn not_known(error: &tokio_postgres::Error) -> Vec<Worker> {
    let error = failure::describe(error);
    if let Some(repeated) = WORKERS_NOT_KNOWN.occurred(&error) {
        tracing::warn!(error, repeated, "not known whether the workers are the same servers; see docs/rights.md");
    }
    Vec::new()
}

impl Connection {
    async fn look(&mut self, ask: &Ask) -> bool {
        match self.keeper.next(ask) {
            Next::Answer(answer) => answer,
            Next::Send | Next::Connect => {
                let pool = self.pool.clone();
                let with_workers = *ask == Ask::Check && self.workers_due();
                // A server that was demoted and stays up has not lost its connections, and has lost its say.
                let verify = async |client: &Object| {
                    pool.manager().verify(client).await?;
                    match with_workers {
                        true => known_workers(client).await.map_err(Cause::Driver),
                        false => Ok(Vec::new()),
                    }
                };
                match self.ask_for(ask, verify, failure::of_cause).await {
                    Ok(workers) => self.keep_if_same(ask, &workers),
                    Err(Failure { text: error, .. }) => {
                        tracing::warn!(error, "the connection that the starts were read over is gone");
                        false
                    }
                }
            }
        }
    }

    /// Whether the workers were not read for a while.
    fn workers_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.kind == ServerKind::Citus && self.workers_read.is_none_or(|at| now - at >= WORKERS_INTERVAL);
        if due {
            self.workers_read = Some(now);
        }
        due
    }

    /// Whether the workers of a Citus are those that were known. If not, the connection is closed: all starts have to be read
    /// again.
    fn keep_if_same(&mut self, ask: &Ask, workers: &[Worker]) -> bool {
        if !self.report_changes(workers) {
            return true;
        }
        if let Some(client) = self.client.take() {
            drop(Object::take(client));
        }
        self.keeper.answered(ask, false);
        false
    }

    /// Logs and counts each worker that is another server than before. False where there is none.
    fn report_changes(&mut self, workers: &[Worker]) -> bool {
        let changes = self.workers.update(workers);
        for change in &changes {
            metrics::worker_changed(&change.worker);
            tracing::error!(
                %change,
                "a worker has changed, all partitions start again; unless it has every row that it had, follow docs/citus.md, \
                 A worker is lost"
            );
        }
        !changes.is_empty()
    }

    async fn ask<T>(
        &mut self,
        ask: &Ask,
        send: impl AsyncFnOnce(&Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failure> {
        self.ask_for(ask, send, failure::of).await
    }

    /// After an error, or no answer in time, the connection is closed and leaves the pool.
    async fn ask_for<T, E>(
        &mut self,
        ask: &Ask,
        send: impl AsyncFnOnce(&Object) -> Result<T, E>,
        failed: impl FnOnce(&E) -> Failure,
    ) -> Result<T, Failure> {
        // Taken out meanwhile: whoever is interrupted here has lost it.
        let Some(client) = self.client.take() else {
            self.keeper.answered(ask, false);
            return Err(failure::transient(GONE));
        };
        let error = match tokio::time::timeout(TIMEOUT, send(&client)).await {
            Ok(Ok(answer)) => {
                self.client = Some(client);
                self.keeper.answered(ask, true);
                return Ok(answer);
            }
            Ok(Err(error)) => failed(&error),
            Err(_) => failure::transient("the database did not answer in time"),
        };
        drop(Object::take(client));
        self.keeper.answered(ask, false);
        Err(error)
    }
}
