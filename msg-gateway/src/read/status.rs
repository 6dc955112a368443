//! GetMsgStatus: the state of one message. It reads how far the partition is completed, and after that the row. In the
//! other order, a message that is stored in between would not be found.

use std::time::{Instant, SystemTime};

use msg_common::limits::check_id;
use msg_common::partition::{Partition, partition_for};
use msg_common::proto::{DeadLetter, DeadLetterReason, GetMsgStatusRequest, GetMsgStatusResponse, MsgState};
use tokio_postgres::Error;
use uuid::Uuid;

use crate::read::completed::{Completed, Log, POLL_INTERVAL, completed};
use crate::read::database::{Connection, Database, failure};
use crate::read::invalid;
use crate::read::kafka::Topic;
use crate::status::Failure;

const ROW: &str = "SELECT seq, stored_time FROM messages WHERE recv_id = $1 AND msg_id = $2";

/// The dead letter of the requested record, or else the newest one with the same ID.
const LETTER: &str = "
SELECT reason, detail, first_seen, replayed_at IS NOT NULL, (kafka_partition = $3 AND kafka_offset = $4) IS TRUE
FROM dead_letters WHERE recv_id = $1 AND msg_id = $2 ORDER BY 5 DESC, first_seen DESC, kafka_offset DESC LIMIT 1";

/// Every record below this offset is a row or a dead letter.
const NEXT_OFFSET: &str = "SELECT next_offset FROM progress WHERE topic_id = $1 AND kafka_partition = $2";

/// The inbox, ID and Kafka position of the requested message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    recv_id: String,
    msg_id: Uuid,
    partition: Partition,
    offset: Option<i64>,
}

impl Query {
    /// Checks the request. `partitions` is the pinned count.
    pub fn of(request: GetMsgStatusRequest, max_id_bytes: usize, partitions: Partition) -> Result<Self, Failure> {
        let mut violations: Vec<_> = check_id("recv_id", &request.recv_id, max_id_bytes).into_iter().collect();
        let msg_id = Uuid::try_parse(&request.msg_id);
        if msg_id.is_err() {
            violations.push(invalid("msg_id", "must be a UUID in its text form"));
        }
        if let Some(partition) = request.partition
            && !(0..partitions).contains(&partition)
        {
            violations.push(invalid("partition", format!("is {partition}; there are 0 to {}", partitions - 1)));
        }
        if request.offset.is_some_and(|offset| offset < 0) {
            violations.push(invalid("offset", "must not be negative"));
        }
        // A placement may have no offset, so a request may have a partition and no offset.
        if request.partition.is_none() && request.offset.is_some() {
            violations.push(invalid("partition", "must be given where offset is"));
        }
        let Some(msg_id) = msg_id.ok().filter(|_| violations.is_empty()) else {
            return Err(Failure::Invalid(violations));
        };
        let partition = request.partition.unwrap_or_else(|| partition_for(request.recv_id.as_bytes(), partitions));
        Ok(Query { recv_id: request.recv_id, msg_id, partition, offset: request.offset })
    }
}

/// Finds the state of the message until `respond_by`. `database` is the primary.
pub(crate) async fn read(
    database: &Database,
    topic: &Topic,
    query: Query,
    arrival: Instant,
    respond_by: Instant,
) -> Result<GetMsgStatusResponse, Failure> {
    // A row is final, so Kafka need not be queried.
    let connection = database.connection().await?;
    let rows = query_rows(&connection, &query).await.map_err(|error| failure(&error))?;
    connection.done();
    if let Some(state) = rows.state(&query) {
        return Ok(rows.response(state, 0));
    }
    let mut topic_id = before_deadline(topic.id(arrival, false), respond_by).await?;
    // The record of a replayed dead letter has another offset.
    let offset = query.offset.filter(|_| !rows.letter.as_ref().is_some_and(|letter| letter.matches_position));
    loop {
        let partition = StatusLog { database, topic, topic_id, query: &query, respond_by };
        let completed = match offset {
            // Kafka confirmed the record at this offset, so records that are not committed do not matter.
            Some(offset) => match offset - partition.next().await? {
                ahead @ 0.. => Completed::Ahead(ahead),
                _ => Completed::All,
            },
            None => completed(&partition).await?,
        };
        // Query after that, so that a record that was completed in between is found.
        let connection = database.connection().await?;
        let rows = query_rows(&connection, &query).await.map_err(|error| failure(&error))?;
        connection.done();
        if let Some(state) = rows.state(&query) {
            return Ok(rows.response(state, 0));
        }
        if let Completed::Ahead(ahead) = completed {
            return Ok(rows.response(MsgState::Pending, ahead));
        }
        // A recreated topic has other offsets than the progress row that was read.
        let now = before_deadline(topic.id(arrival, true), respond_by).await?;
        if now == topic_id {
            let state = if rows.letter.is_some() { MsgState::DeadLettered } else { MsgState::NotFound };
            return Ok(rows.response(state, 0));
        }
        topic_id = now;
    }
}

/// The partition of the message, as Kafka and the progress row have it.
struct StatusLog<'a> {
    database: &'a Database,
    topic: &'a Topic,
    topic_id: Uuid,
    query: &'a Query,
    respond_by: Instant,
}

impl Log for StatusLog<'_> {
    async fn committed(&self) -> Result<(i64, i64), Failure> {
        before_deadline(self.topic.ends(self.query.partition), self.respond_by).await
    }

    async fn ends_before(&self, offset: i64) -> Result<bool, Failure> {
        let confirmed = before_deadline(self.topic.ends_before(self.query.partition, offset), self.respond_by).await;
        // An error means: not confirmed.
        Ok(confirmed.unwrap_or(false))
    }

    async fn next(&self) -> Result<i64, Failure> {
        let connection = self.database.connection().await?;
        let next =
            next_offset(&connection, self.topic_id, self.query.partition).await.map_err(|error| failure(&error))?;
        connection.done();
        Ok(next)
    }

    async fn is_found(&self) -> Result<bool, Failure> {
        let connection = self.database.connection().await?;
        let rows = query_rows(&connection, self.query).await.map_err(|error| failure(&error))?;
        connection.done();
        Ok(rows.state(self.query).is_some())
    }

    async fn pause(&self) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits for a response of Kafka until `by`. After that, the error names Kafka as the cause.
async fn before_deadline<T>(response: impl Future<Output = Result<T, Failure>>, by: Instant) -> Result<T, Failure> {
    let late = |_| Failure::KafkaUnavailable("kafka has not responded in time".into());
    tokio::time::timeout_at(by.into(), response).await.map_err(late)?
}

/// The rows of a message in the tables.
struct StatusRows {
    row: Option<(i64, SystemTime)>,
    letter: Option<Letter>,
}

struct Letter {
    dead_letter: DeadLetter,
    replayed: bool,
    /// Whether it is the dead letter of the requested record.
    matches_position: bool,
}

impl StatusRows {
    /// Returns the final state: a row, or a dead letter that was sent again neither by the operator nor by the caller.
    /// A record at another position may still be stored.
    fn state(&self, query: &Query) -> Option<MsgState> {
        match (&self.row, &self.letter) {
            (Some(_), _) => Some(MsgState::Stored),
            (None, Some(letter)) if !letter.replayed && (letter.matches_position || query.offset.is_none()) => {
                Some(MsgState::DeadLettered)
            }
            (None, _) => None,
        }
    }

    fn response(self, state: MsgState, records_ahead: i64) -> GetMsgStatusResponse {
        GetMsgStatusResponse {
            state: state.into(),
            seq: self.row.map_or(0, |(seq, _)| seq),
            stored_time: self.row.map(|(_, time)| time.into()),
            dead_letter: self.letter.map(|letter| letter.dead_letter),
            records_ahead,
        }
    }
}

/// Reads the dead letter before the row. A conflict is dead-lettered after the first message is stored, so if the
/// letter is found, the row is found too.
async fn query_rows(connection: &Connection, query: &Query) -> Result<StatusRows, Error> {
    let statement = connection.prepare_cached(LETTER).await?;
    let Query { recv_id, msg_id, partition, offset } = query;
    let letter = connection.query_opt(&statement, &[recv_id, msg_id, partition, offset]).await?;
    let statement = connection.prepare_cached(ROW).await?;
    let row = connection.query_opt(&statement, &[&query.recv_id, &query.msg_id]).await?;
    let row = row.map(|row| Ok::<_, Error>((row.try_get(0)?, row.try_get(1)?))).transpose()?;
    let letter = letter.map(|letter| {
        let first_seen: SystemTime = letter.try_get(2)?;
        let reason = reason(letter.try_get(0)?).into();
        let dead_letter = DeadLetter { reason, detail: letter.try_get(1)?, first_seen: Some(first_seen.into()) };
        Ok::<_, Error>(Letter { dead_letter, replayed: letter.try_get(3)?, matches_position: letter.try_get(4)? })
    });
    Ok(StatusRows { row, letter: letter.transpose()? })
}

/// Returns 0 if no record is completed yet.
async fn next_offset(connection: &Connection, topic_id: Uuid, partition: Partition) -> Result<i64, Error> {
    let statement = connection.prepare_cached(NEXT_OFFSET).await?;
    let row = connection.query_opt(&statement, &[&topic_id, &partition]).await?;
    row.map_or(Ok(0), |row| row.try_get(0))
}

/// Parses a reason as the transfer writes it: without the prefix of the contract.
fn reason(name: &str) -> DeadLetterReason {
    DeadLetterReason::from_str_name(&format!("DEAD_LETTER_REASON_{name}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "146a196a-2269-8b20-b0b2-fa09eec689b4";

    fn request() -> GetMsgStatusRequest {
        GetMsgStatusRequest { recv_id: "bob".into(), msg_id: ID.into(), ..GetMsgStatusRequest::default() }
    }

    fn fields(request: GetMsgStatusRequest) -> Vec<String> {
        match Query::of(request, 8, 4) {
            Err(Failure::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn request_names_a_placement_or_only_the_inbox() {
        let query = Query::of(request(), 8, 4).expect("it is good");
        assert_eq!((query.partition, query.offset), (partition_for(b"bob", 4), None));
        let placed = GetMsgStatusRequest { partition: Some(3), offset: Some(0), ..request() };
        let query = Query::of(placed, 8, 4).expect("it is good");
        assert_eq!((query.partition, query.offset), (3, Some(0)));
        let without_offset = GetMsgStatusRequest { partition: Some(3), ..request() };
        let query = Query::of(without_offset, 8, 4).expect("it is good");
        assert_eq!((query.partition, query.offset), (3, None));
    }

    #[test]
    fn all_invalid_fields_are_reported_together() {
        let bad = |msg_id: &str, partition, offset| {
            fields(GetMsgStatusRequest { msg_id: msg_id.into(), partition, offset, ..request() })
        };
        assert_eq!(bad("x", Some(4), Some(-1)), ["msg_id", "partition", "offset"]);
        assert_eq!(bad("", Some(-1), None), ["msg_id", "partition"]);
        assert_eq!(bad(ID, None, Some(1)), ["partition"]);
        assert_eq!(fields(GetMsgStatusRequest::default()), ["recv_id", "msg_id"]);
    }

    #[test]
    fn each_reason_has_its_name() {
        assert_eq!(reason("IDEMPOTENCY_CONFLICT"), DeadLetterReason::IdempotencyConflict);
        assert_eq!(reason("SOMETHING_NEW"), DeadLetterReason::Unspecified);
    }
}
