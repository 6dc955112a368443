//! The SQL of the lanes and the progress rows. Statements that insert or compare messages are built from the columns in
//! `msg_common::table`.

use std::sync::LazyLock;
use std::time::Duration;

use msg_common::table;

/// The statements that begin a transaction. They set the timeouts within it, so that they also reach the workers of a
/// Citus.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    /// The statements before a batch.
    pub full: Vec<String>,
    /// For an attempt that must not use up the lane's time, such as that of a blocked inbox.
    pub short: Vec<String>,
}

/// Reads the time that `stored_time` has in each row of the transaction, in microseconds since 1970. Its default is
/// `now()`, which is when the transaction began. On Citus the rows' worker may compute it.
const STORED_TIME: &str = "SELECT (extract(epoch FROM now()) * 1000000)::bigint";

/// The maximum lock timeout of a short transaction.
const SHORT_LOCK_TIMEOUT: Duration = Duration::from_millis(500);

impl Begin {
    /// Builds the statements with these timeouts, and with short ones.
    ///
    /// Citus sends the whole text that contains a SET LOCAL to the workers. With a BEGIN and a LOCK TABLE in the text,
    /// the workers would execute those, too, and wait for each other. So for Citus each statement is sent by itself.
    pub(crate) fn new(lock_timeout: Duration, statement_timeout: Duration, kind: ServerKind) -> Self {
        // A tenth of the timeout, but at least 1 s, so that a server under load does not exceed it.
        let short = (statement_timeout / 10).max(Duration::from_secs(1).min(statement_timeout / 2));
        let begin = |lock: Duration, statement: Duration| {
            let (lock, statement) = (lock.as_millis().max(1), statement.as_millis().max(1));
            let parts = [
                "BEGIN".to_owned(),
                format!("SET LOCAL lock_timeout = {lock}"),
                format!("SET LOCAL statement_timeout = {statement}"),
            ];
            match kind {
                ServerKind::Single => vec![format!("{}; {STORED_TIME}", parts.join("; "))],
                ServerKind::Citus => parts.to_vec(),
            }
        };
        Begin {
            full: begin(lock_timeout, statement_timeout),
            short: begin(lock_timeout.min(SHORT_LOCK_TIMEOUT), short),
        }
    }
}

/// The kind of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// One server: the command tag of an insert counts the rows that were inserted.
    Single,
    /// Citus: if a statement with ON CONFLICT passes through the coordinator, the tag counts the selected rows. The
    /// returned rows are right, and cost more. A join has to name the inboxes, otherwise Citus sends it to all shards.
    Citus,
}

/// Begins a bisection: deferred constraints are checked immediately. The lock is the one that an insert acquires. It is
/// acquired before the savepoint, so that rolling back to the savepoint keeps it: with a migration between the canary
/// row and a record, the record would seem to be the cause.
pub(crate) const AFTER_BEGIN_BISECTION: &str =
    "LOCK TABLE messages IN ROW EXCLUSIVE MODE; SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT bisection";

/// Keeps the rows that were written since the savepoint, until the end of the bisection. There is one savepoint at a
/// time: they do not nest.
pub(crate) const MOVE_SAVEPOINT: &str = "RELEASE SAVEPOINT bisection; SAVEPOINT bisection";

/// Removes the rows that were written since the savepoint.
pub(crate) const ROLLBACK_TO_SAVEPOINT: &str = "ROLLBACK TO SAVEPOINT bisection";

/// Counts which of these inboxes and `seq` are rows.
macro_rules! count_present {
    ($filter:literal) => {
        concat!(
            "
    SELECT count(*) FROM unnest($1::text[], $2::bigint[]) AS t (recv_id, seq)
    JOIN messages m ON m.recv_id = t.recv_id AND m.seq = t.seq",
            $filter
        )
    };
}

/// Counts which of these inboxes and `seq` are rows.
pub(crate) const COUNT_PRESENT: &str = count_present!("");

/// `COUNT_PRESENT` for Citus, where `recv_id` selects the shards.
pub(crate) const COUNT_PRESENT_CITUS: &str = count_present!(" AND m.recv_id = ANY ($1)");

/// Reads the last `seq` of each of these inboxes, 0 for an empty one, as one array in the order of the inboxes. Each is
/// one descent of the index, from its end: `max … GROUP BY` would read a hot inbox as a whole. A distributed table
/// rejects this statement.
pub(crate) const LAST_SEQS: &str = "
    SELECT coalesce(array_agg(coalesce((SELECT m.seq FROM messages m WHERE m.recv_id = t.recv_id
                                        ORDER BY m.seq DESC LIMIT 1), 0) ORDER BY t.number), '{}')
    FROM unnest($1::text[]) WITH ORDINALITY AS t (recv_id, number)";

/// Inserts rows; the command tag counts them.
pub static INSERT_MESSAGES: LazyLock<String> = LazyLock::new(table::insert_sql);

/// Inserts rows, and returns one for each.
pub static INSERT_MESSAGES_RETURNING: LazyLock<String> =
    LazyLock::new(|| format!("{} RETURNING seq", *INSERT_MESSAGES));

/// Copies rows, and fails if the ID or the `seq` of one is in the table. Faster than an INSERT: it looks for no conflict
/// first, writes fewer WAL records, and keeps no second copy of the rows.
pub(crate) static COPY_MESSAGES: LazyLock<String> = LazyLock::new(table::copy_sql);

/// Finds rows with the IDs of these records, and whether each holds the same message.
pub(crate) static FIND_STORED: LazyLock<String> = LazyLock::new(table::find_stored_sql);

/// `FIND_STORED` for Citus, where `recv_id` selects the shards.
pub(crate) static FIND_STORED_CITUS: LazyLock<String> =
    LazyLock::new(|| format!("{} AND m.recv_id = ANY ($2)", *FIND_STORED));

/// Inserts dead letters. One that exists stays as it is; an earlier version did not write its leader epoch. If Kafka
/// lost the tail of its log, another record has the same offset, with a leader epoch of its own.
pub(crate) const INSERT_DEAD_LETTERS: &str = "
    INSERT INTO dead_letters (topic, topic_id, kafka_partition, kafka_offset, leader_epoch, recv_id, msg_id, key, value,
                              headers, reason, detail)
    SELECT $1, t.topic_id, t.kafka_partition, t.kafka_offset, t.leader_epoch, t.recv_id, t.msg_id, t.key, t.value,
           t.headers, t.reason, t.detail
    FROM unnest($2::uuid[], $3::integer[], $4::bigint[], $5::integer[], $6::text[], $7::uuid[], $8::bytea[],
                $9::bytea[], $10::bytea[], $11::text[], $12::text[])
         AS t (topic_id, kafka_partition, kafka_offset, leader_epoch, recv_id, msg_id, key, value, headers, reason,
               detail)
    LEFT JOIN dead_letters d ON d.topic_id = t.topic_id AND d.kafka_partition = t.kafka_partition
                            AND d.kafka_offset = t.kafka_offset AND d.leader_epoch = -1
                            AND d.key IS NOT DISTINCT FROM t.key AND d.value IS NOT DISTINCT FROM t.value
                            AND d.headers = t.headers
    WHERE d.topic_id IS NULL
    ON CONFLICT (topic_id, kafka_partition, kafka_offset, leader_epoch) DO NOTHING";

/// Counts which of these positions have a dead letter: one with this leader epoch, or one of an earlier version.
pub(crate) const COUNT_DEAD_LETTERS: &str = "
    SELECT count(*)
    FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::integer[])
         AS t (topic_id, kafka_partition, kafka_offset, leader_epoch)
    WHERE EXISTS (SELECT FROM dead_letters d
                  WHERE d.topic_id = t.topic_id AND d.kafka_partition = t.kafka_partition
                    AND d.kafka_offset = t.kafka_offset AND d.leader_epoch IN (t.leader_epoch, -1))";

/// Writes progress rows, and never lowers one: a process that lost a partition, and has not detected it yet, may be
/// late. A higher leader epoch is later, also at a lower offset: Kafka lost the tail in between
/// (`Progress::may_follow`).
pub(crate) const SAVE_PROGRESS: &str = "
    INSERT INTO progress (topic_id, kafka_partition, next_offset, leader_epoch)
    SELECT topic_id, kafka_partition, next_offset, leader_epoch
    FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::integer[])
         AS t (topic_id, kafka_partition, next_offset, leader_epoch)
    ORDER BY topic_id, kafka_partition
    ON CONFLICT (topic_id, kafka_partition) DO UPDATE
    SET next_offset = EXCLUDED.next_offset, leader_epoch = EXCLUDED.leader_epoch, updated_at = now()
    WHERE CASE WHEN EXCLUDED.leader_epoch IS NOT NULL AND progress.leader_epoch IS NOT NULL
               THEN (EXCLUDED.leader_epoch, EXCLUDED.next_offset) >= (progress.leader_epoch, progress.next_offset)
               ELSE EXCLUDED.next_offset >= progress.next_offset END";

/// Lowers a progress row after Kafka lost the tail of the log, if the row is still the one that was read.
pub(crate) const LOWER_PROGRESS: &str = "
    UPDATE progress SET next_offset = $5, leader_epoch = $6, updated_at = now()
    WHERE topic_id = $1 AND kafka_partition = $2
      AND next_offset = $3 AND leader_epoch IS NOT DISTINCT FROM $4::integer";

/// Reads the progress rows of a topic.
pub(crate) const LOAD_PROGRESS: &str = "
    SELECT kafka_partition, next_offset, resumed_at, leader_epoch FROM progress WHERE topic_id = $1 AND kafka_partition = ANY($2)";

/// Reads the dead letters of the last $3 offsets that count for the limit: not those from before the last `resume`, nor
/// those of a log's tail that Kafka lost.
pub(crate) const LOAD_DEAD_LETTERS: &str = "
    SELECT d.kafka_partition, d.kafka_offset
    FROM progress p
    JOIN dead_letters d ON d.topic_id = p.topic_id AND d.kafka_partition = p.kafka_partition
                       AND d.kafka_offset >= p.next_offset - $3
    WHERE p.topic_id = $1 AND p.kafka_partition = ANY($2)
      AND d.first_seen > coalesce(p.resumed_at, '-infinity') AND d.reason <> ALL($4)
      AND (d.kafka_offset < p.next_offset OR p.leader_epoch IS NULL OR d.leader_epoch = -1
           OR d.leader_epoch >= p.leader_epoch)";
