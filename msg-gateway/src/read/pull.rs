//! PullMsgs: one page of an inbox, bounded by count and by bytes.

use std::sync::LazyLock;
use std::time::SystemTime;

use msg_common::limits::check_id;
use msg_common::proto::{Order, PullMsgsRequest, PullMsgsResponse, StoredMsg};
use msg_common::table::{self, ReadError};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::read::database::{Connection, Database, failure};
use crate::read::invalid;
use crate::read::page_token::Scope;
use crate::status::Failure;

const DEFAULT_PAGE: i32 = 100;
const MAX_PAGE: i32 = 1000;

/// Maximum bytes of a page as the statement counts them. Clients accept 4 MiB unless they are configured otherwise,
/// and the rest is for the bytes that the statement does not count.
const PAGE_BYTES: i64 = 15 << 18;
/// Maximum bytes of a page of more than one message in memory: as rows, and then as a buffer that grew while it was
/// encoded.
pub(crate) const MAX_BYTES: usize = 2 * PAGE_BYTES as usize;

// $1 recv_id, $2 the lowest seq, $3 the highest, $4 one more than the page size, $5 maximum bytes, $6 without content.
// The additional row shows whether there is more. The first row is always returned: otherwise a large message would
// end the reading.
static ASCENDING: LazyLock<String> = LazyLock::new(|| {
    const CONTENT: &str = "CASE WHEN $6 THEN NULL ELSE m.content END";
    let (msg, msg_names, msg_bytes) = (table::select_msg(CONTENT), table::msg_names(), table::msg_bytes(CONTENT));
    format!(
        "
SELECT seq, msg_id, {msg_names}, send_time, stored_time, found
FROM (
    SELECT page.*, count(*) OVER () AS found, row_number() OVER (ORDER BY seq) AS number,
        sum(bytes) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) AS bytes_so_far
    FROM (
        SELECT m.seq, m.msg_id, {msg}, m.send_time, m.stored_time, 256 + {msg_bytes} AS bytes
        FROM messages m
        WHERE m.recv_id = $1 AND m.seq >= $2 AND m.seq <= $3
        ORDER BY seq
        LIMIT $4
    ) page
) counted
WHERE number = 1 OR (number < $4 AND bytes_so_far <= $5)
ORDER BY seq"
    )
});

/// Selects a page in descending order, over the same index.
static DESCENDING: LazyLock<String> = LazyLock::new(|| ASCENDING.replace("ORDER BY seq", "ORDER BY seq DESC"));

/// The range of an inbox to read, and where the page starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    recv_id: String,
    from_seq: i64,
    to_seq: i64,
    descending: bool,
    omit_content: bool,
    /// The `seq` at which this page starts.
    next_seq: i64,
    page_size: i32,
}

impl Query {
    /// Returns the query, or every rule that the request breaks.
    pub fn of(request: PullMsgsRequest, max_id_bytes: usize) -> Result<Self, Failure> {
        let mut violations: Vec<_> = check_id("recv_id", &request.recv_id, max_id_bytes).into_iter().collect();
        if request.from_seq < 0 {
            violations.push(invalid("from_seq", "must not be negative"));
        }
        if request.to_seq < 0 {
            violations.push(invalid("to_seq", "must not be negative"));
        } else if request.to_seq > 0 && request.to_seq < request.from_seq {
            violations.push(invalid("to_seq", "must not be below from_seq"));
        }
        if request.page_size < 0 {
            violations.push(invalid("page_size", "must not be negative"));
        }
        let order = Order::try_from(request.order);
        if order.is_err() {
            violations.push(invalid("order", format!("{} is not an Order", request.order)));
        }
        let page_size = if request.page_size == 0 { DEFAULT_PAGE } else { request.page_size.min(MAX_PAGE) };
        let from_seq = request.from_seq.max(1);
        let to_seq = if request.to_seq == 0 { i64::MAX } else { request.to_seq };
        let descending = order == Ok(Order::Descending);
        let mut query = Query {
            recv_id: request.recv_id,
            from_seq,
            to_seq,
            descending,
            omit_content: request.omit_content,
            next_seq: if descending { to_seq } else { from_seq },
            page_size,
        };
        if !request.page_token.is_empty() {
            match query.scope().next_seq(&request.page_token) {
                Some(next_seq) => query.next_seq = next_seq,
                None => violations.push(invalid("page_token", "is not one of this request's")),
            }
        }
        if !violations.is_empty() {
            return Err(Failure::Invalid(violations));
        }
        Ok(query)
    }

    /// Returns the query of a page of up to `page_size` messages after `after_seq`.
    pub(crate) fn after(recv_id: String, after_seq: i64, page_size: i32, omit_content: bool) -> Self {
        let from_seq = after_seq.saturating_add(1);
        let (to_seq, next_seq) = (i64::MAX, from_seq);
        Query { recv_id, from_seq, to_seq, descending: false, omit_content, next_seq, page_size }
    }

    /// Returns the statement, and the range that is left to read.
    fn page(&self) -> (&'static str, i64, i64) {
        if self.descending {
            (&DESCENDING, self.from_seq, self.next_seq)
        } else {
            (&ASCENDING, self.next_seq, self.to_seq)
        }
    }

    /// Returns the token of the page after this message.
    fn token_after(&self, seq: i64) -> String {
        self.scope().token(if self.descending { seq - 1 } else { seq + 1 })
    }

    fn scope(&self) -> Scope<'_> {
        Scope {
            recv_id: &self.recv_id,
            from_seq: self.from_seq,
            to_seq: self.to_seq,
            descending: self.descending,
            omit_content: self.omit_content,
        }
    }
}

pub(crate) async fn read(database: &Database, query: Query) -> Result<PullMsgsResponse, Failure> {
    let connection = database.connection().await?;
    let (msgs, more) = page(&connection, &query, PAGE_BYTES).await?;
    connection.done();
    let next_page_token = match msgs.last() {
        Some(last) if more => query.token_after(last.seq),
        _ => String::new(),
    };
    Ok(PullMsgsResponse { msgs, next_page_token })
}

/// Returns the rows of one page, up to `bytes` and at least one, and whether there are more.
pub(crate) async fn page(
    connection: &Connection,
    query: &Query,
    bytes: i64,
) -> Result<(Vec<StoredMsg>, bool), Failure> {
    let rows = rows(connection, query, bytes).await.map_err(|error| failure(&error))?;
    let found: i64 = rows.first().map_or(Ok(0), |row| row.try_get("found")).map_err(|error| failure(&error))?;
    let msgs = rows.iter().map(|row| stored_msg(row, &query.recv_id)).collect::<Result<Vec<_>, _>>()?;
    let more = usize::try_from(found).is_ok_and(|found| found > msgs.len());
    Ok((msgs, more))
}

async fn rows(connection: &Connection, query: &Query, bytes: i64) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (statement, lowest, highest) = query.page();
    let statement = connection.prepare_cached(statement).await?;
    let limit = i64::from(query.page_size) + 1;
    connection.query(&statement, &[&query.recv_id, &lowest, &highest, &limit, &bytes, &query.omit_content]).await
}

/// Decodes the message of a row.
pub(crate) fn stored_msg(row: &Row, recv_id: &str) -> Result<StoredMsg, Failure> {
    let msg = table::read_msg(row, recv_id).map_err(|error| unreadable(&error))?;
    let msg_id: Uuid = get(row, "msg_id")?;
    let (send_time, stored_time): (SystemTime, SystemTime) = (get(row, "send_time")?, get(row, "stored_time")?);
    Ok(StoredMsg {
        msg: Some(msg),
        msg_id: msg_id.to_string(),
        seq: get(row, "seq")?,
        send_time: Some(send_time.into()),
        stored_time: Some(stored_time.into()),
    })
}

/// Returns the error for a row that does not hold a message.
pub(crate) fn unreadable(error: &ReadError) -> Failure {
    tracing::error!(%error, "cannot decode a row");
    unexpected_value()
}

/// Reads a column of a row. Fails if it has another type.
pub(crate) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, Failure> {
    row.try_get(column).map_err(|error| {
        tracing::error!(column, %error, "cannot decode a column");
        unexpected_value()
    })
}

fn unexpected_value() -> Failure {
    Failure::Internal("a stored message cannot be read; the gateway's log says why".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PullMsgsRequest {
        PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() }
    }

    fn fields(request: PullMsgsRequest) -> Vec<String> {
        match Query::of(request, 8) {
            Err(Failure::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_fields_have_defaults() {
        let query = Query::of(request(), 8).expect("it is good");
        assert_eq!((query.from_seq, query.to_seq, query.page_size), (1, i64::MAX, 100));
        let large = PullMsgsRequest { page_size: 5000, ..request() };
        assert_eq!(Query::of(large, 8).expect("it is good").page_size, 1000);
    }

    #[test]
    fn all_invalid_fields_are_reported_together() {
        let bad = PullMsgsRequest {
            recv_id: String::new(),
            from_seq: -1,
            to_seq: -1,
            order: 9,
            page_size: -1,
            page_token: "x".into(),
            omit_content: false,
        };
        assert_eq!(fields(bad), ["recv_id", "from_seq", "to_seq", "page_size", "order", "page_token"]);
        assert_eq!(fields(PullMsgsRequest { from_seq: 5, to_seq: 4, ..request() }), ["to_seq"]);
    }

    #[test]
    fn token_continues_after_its_page_for_the_same_request_only() {
        let token = Query::of(request(), 8).expect("it is good").scope().token(42);
        let next = PullMsgsRequest { page_token: token, page_size: 7, ..request() };
        assert_eq!(Query::of(next.clone(), 8).expect("it is good").next_seq, 42);
        assert_eq!(fields(PullMsgsRequest { recv_id: "eve".into(), ..next.clone() }), ["page_token"]);
        assert_eq!(fields(PullMsgsRequest { from_seq: 3, ..next.clone() }), ["page_token"]);
        assert_eq!(fields(PullMsgsRequest { order: Order::Descending.into(), ..next.clone() }), ["page_token"]);
        assert_eq!(fields(PullMsgsRequest { omit_content: true, ..next }), ["page_token"]);
    }

    #[test]
    fn descending_order_starts_at_the_end() {
        let descending = PullMsgsRequest { order: Order::Descending.into(), from_seq: 3, to_seq: 50, ..request() };
        let query = Query::of(descending.clone(), 8).expect("it is good");
        assert_eq!(query.page(), (DESCENDING.as_str(), 3, 50));
        let next = PullMsgsRequest { page_token: query.token_after(42), ..descending };
        assert_eq!(Query::of(next, 8).expect("it is good").page(), (DESCENDING.as_str(), 3, 41));
        assert_eq!(DESCENDING.matches("ORDER BY seq").count(), DESCENDING.matches("ORDER BY seq DESC").count());
    }
}
