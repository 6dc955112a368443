//! The limit of the transfer: its own INSERT statement on four connections, with prepared rows and nothing else. Also
//! in the form for Citus, which returns each row, and as COPY.

use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::try_join_all;
use msg_common::proto::{Msg, SessionType};
use msg_common::record::Record;
use msg_common::table::{self, StoredAt};
use msg_transfer::lane::sql::{INSERT_MESSAGES, INSERT_MESSAGES_RETURNING};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::{Error, Load};

const CONNECTIONS: usize = 4;
/// Maximum number of rows of a statement.
const BATCH: usize = 2000;
/// Maximum bytes of their bodies, as the transfer has it.
const BATCH_BYTES: usize = 8 << 20;

/// How the rows are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statement {
    Insert,
    /// The form for Citus.
    InsertReturning,
    /// COPY in its binary form, which skips no duplicate.
    Copy,
}

/// What COPY writes; the other columns have their defaults.
const COPY: &str = "COPY messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content, \
                    send_time, kafka_partition, kafka_offset) FROM STDIN BINARY";
const COPY_TYPES: [Type; 11] = [
    Type::TEXT,
    Type::INT8,
    Type::UUID,
    Type::TEXT,
    Type::TEXT,
    Type::INT2,
    Type::TEXT,
    Type::BYTEA,
    Type::TIMESTAMPTZ,
    Type::INT4,
    Type::INT8,
];

impl Statement {
    fn sql(self) -> &'static str {
        match self {
            Statement::Insert => &INSERT_MESSAGES,
            Statement::InsertReturning => &INSERT_MESSAGES_RETURNING,
            Statement::Copy => COPY,
        }
    }
}

/// Opens the connections. They stay open until the cost is read: what ended before has no wake-ups.
pub(crate) async fn connect(url: &str) -> Result<Vec<Client>, Error> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        clients.push(client);
    }
    Ok(clients)
}

/// Inserts the load's rows into the `messages` of an empty schema. Returns how long that took.
pub(crate) async fn run(clients: &[Client], load: &Load, statement: Statement) -> Result<Duration, Error> {
    let started = Instant::now();
    let each = clients.iter().enumerate().map(|(number, client)| insert(client, number, load, statement));
    try_join_all(each).await?;
    Ok(started.elapsed())
}

/// Inserts the rows of this connection's inboxes. No two connections write to the same inbox.
async fn insert(client: &Client, number: usize, load: &Load, statement: Statement) -> Result<(), Error> {
    let prepared = client.prepare(statement.sql()).await?;
    let mut mine = (0..load.messages).filter(|n| load.inbox_number(*n) % CONNECTIONS == number);
    let most = load.within(BATCH_BYTES, BATCH);
    let body = bytes::Bytes::from(load.random_body());
    let mut last = std::collections::HashMap::<String, i64>::new();
    loop {
        let mut inboxes: Vec<(String, usize)> = mine.by_ref().take(most).map(|n| (load.inbox(n), n)).collect();
        if inboxes.is_empty() {
            return Ok(());
        }
        inboxes.sort();
        let stored_at: Vec<StoredAt> = inboxes
            .iter()
            .map(|(inbox, n)| {
                let seq = last.entry(inbox.clone()).or_default();
                *seq += 1;
                StoredAt { seq: *seq, partition: 0, offset: *n as i64 }
            })
            .collect();
        let record = |(inbox, n): &(String, usize)| Record {
            msg: Msg {
                recv_id: inbox.clone(),
                send_id: "sender".into(),
                client_msg_id: n.to_string(),
                session_type: SessionType::Single.into(),
                content_type: "text/plain".into(),
                content: body.clone(),
                ..Msg::default()
            },
            msg_id: Uuid::from_u128(rand::random()),
            send_time_ms: 1_700_000_000_000,
        };
        let records: Vec<Record> = inboxes.iter().map(record).collect();
        if statement == Statement::Copy {
            copy(client, &prepared, &records, &stored_at).await?;
            continue;
        }
        let values = table::insert_values(&records.iter().collect::<Vec<_>>(), &stored_at);
        let parameters = table::parameters(&values);
        if statement == Statement::InsertReturning {
            let returned = client.query(&prepared, &parameters).await?;
            assert_eq!(returned.len(), records.len(), "all rows are new");
        } else {
            client.execute(&prepared, &parameters).await?;
        }
    }
}

/// Copies rows in one transaction.
async fn copy(
    client: &Client,
    prepared: &tokio_postgres::Statement,
    records: &[Record],
    stored_at: &[StoredAt],
) -> Result<(), Error> {
    let writer = BinaryCopyInWriter::new(client.copy_in(prepared).await?, &COPY_TYPES);
    let mut writer = pin!(writer);
    for (Record { msg, msg_id, send_time_ms }, at) in records.iter().zip(stored_at) {
        let send_time = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(*send_time_ms)?);
        let (content, session_type) = (msg.content.as_ref(), i16::try_from(msg.session_type)?);
        let row: [&(dyn ToSql + Sync); 11] = [
            &msg.recv_id,
            &at.seq,
            msg_id,
            &msg.send_id,
            &msg.client_msg_id,
            &session_type,
            &msg.content_type,
            &content,
            &send_time,
            &at.partition,
            &at.offset,
        ];
        writer.as_mut().write(&row).await?;
    }
    writer.finish().await?;
    Ok(())
}
