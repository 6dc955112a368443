//! `wait_for: STORED` from hints: which callers get their result from a hint, without a query, and which do not.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use msg_common::hint::record_hash;
use msg_common::partition::partition_for;
use msg_common::proto::{GetMsgStatusRequest, HintedInbox, HintedRows, MsgState, Placement, StoredHint};
use prost::Message as _;
use tonic::Code;

use super::calls::{assert_failed, client, metric};
use super::stored::{LONG, send_stored, wait_for_waiters};
use super::watch::{Watcher, request};
use crate::support::hints::{rows_of, send_time};
use crate::support::kafka::{RawRecord, RecordWriter, msg, msg_id_of};
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};

/// The results of waiters so far: those from hints, and those from queries.
async fn results(gateway: &Gateway) -> (f64, f64) {
    let of = async |source: &str| {
        metric(gateway, &format!("msg_gateway_stored_results_total{{source=\"{source}\"}}")).await.unwrap()
    };
    (of("hint").await, of("table").await)
}

/// Checks that the rows of these messages are as the placements say.
async fn assert_rows(world: &World, inbox: &str, placements: &[Placement]) {
    let query = "SELECT seq, stored_time, kafka_partition, kafka_offset FROM messages WHERE recv_id = $1 ORDER BY seq";
    let rows = world.database().await.query(query, &[&inbox]).await.unwrap();
    let found = rows.iter().map(|row| (row.get(0), row.get::<_, SystemTime>(1), row.get(2), row.get(3)));
    let mut expected: Vec<(i64, SystemTime, i32, i64)> = Vec::new();
    for Placement { partition, offset, stored, .. } in placements {
        let stored = stored.as_ref().expect("it is stored");
        let time = SystemTime::try_from(stored.stored_time.expect("it has a time")).unwrap();
        assert!(!stored.duplicate);
        expected.push((stored.seq, time, *partition, offset.expect("Kafka returned it")));
    }
    expected.sort_unstable();
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn stored_is_reported_from_a_hint_without_a_query() {
    let world = World::new("hinted").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let mut sent = Vec::new();
    // A few results come from queries: at first, and once every 10 s, the gateway does not know which table it reads.
    eventually("a whole round is reported without a query", async || {
        let queries = async || metric(&gateway, "msg_gateway_watch_queries_total").await;
        let (queries_before, (hint_before, table_before)) = (queries().await?, results(&gateway).await);
        let round = sent.len();
        for i in round..round + 20 {
            sent.push(send_stored(&client, &msg("alice", "bob", &i.to_string(), "hello"), LONG).await?);
        }
        let (queries, (hint, table)) = (queries().await? - queries_before, results(&gateway).await);
        let (hint, table) = (hint - hint_before, table - table_before);
        assert_eq!(hint + table, 20.0, "each waiter gets one result");
        ensure((hint, queries) == (20.0, 0.0), format!("{hint} from hints, {queries} queries"))
    })
    .await;
    assert_rows(&world, "bob", &sent).await;
    // Many concurrent waiters of one inbox and of others.
    let sends = (0..400).map(|i| {
        let (client, msg) = (client.clone(), msg("alice", ["carol", "dave"][i % 2], &i.to_string(), "hello"));
        async move { send_stored(&client, &msg, LONG).await.unwrap() }
    });
    let (carol, dave): (Vec<_>, Vec<_>) = join_all(sends).await.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
    for (inbox, sent) in [("carol", carol), ("dave", dave)] {
        assert_rows(&world, inbox, &sent.into_iter().map(|(_, placement)| placement).collect::<Vec<_>>()).await;
    }
    wait_for_waiters(&gateway, 0.0).await;
}

/// Waiters of rows that hints describe, of repeats and of conflicts, all in the same inboxes and at the same time. A
/// repeat's row has the offset of another record, so it is never reported from a hint.
#[tokio::test]
async fn stored_under_load_equals_what_status_returns() {
    const SENDS: usize = 900;
    let world = World::new("hinted_load").await;
    let _transfer = world.running_transfer().await;
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    let mut first = 0;
    eventually("results come from hints", async || {
        first += 1;
        send_stored(&client, &msg("alice", "first", &first.to_string(), "hello"), LONG).await?;
        let (hint, _) = results(&gateway).await;
        ensure(hint > 0.0, "none yet")
    })
    .await;
    let (hint_before, table_before) = results(&gateway).await;
    let sends = (0..SENDS).map(|i| {
        // One of nine repeats the message before, and another one has the ID of the message before and another content.
        let (id, content) = match i % 9 {
            5 => (i - 1, "hello"),
            8 => (i - 1, "other words"),
            _ => (i, "hello"),
        };
        let msg = msg("alice", &format!("load-{}", id % 7), &id.to_string(), content);
        let client = client.clone();
        async move { (msg.recv_id.clone(), send_stored(&client, &msg, LONG).await) }
    });
    let (mut created, mut duplicates, mut dead) = (BTreeSet::new(), 0, 0);
    for (recv_id, sent) in join_all(sends).await {
        let Ok(Placement { msg_id, stored, .. }) = sent else {
            assert_failed(sent, Code::AlreadyExists, "DEAD_LETTERED");
            dead += 1;
            continue;
        };
        let stored = stored.expect("it is stored");
        let request = GetMsgStatusRequest { recv_id, msg_id: msg_id.clone(), ..GetMsgStatusRequest::default() };
        let status = client.clone().get_msg_status(request).await.unwrap().into_inner();
        assert_eq!(
            (MsgState::Stored, stored.seq, stored.stored_time),
            (status.state(), status.seq, status.stored_time),
            "{msg_id}"
        );
        if stored.duplicate {
            duplicates += 1;
        } else {
            assert!(created.insert(msg_id), "two sends created one row");
        }
    }
    assert_eq!((created.len(), duplicates, dead), (SENDS / 9 * 7, SENDS / 9, SENDS / 9));
    let (hint, table) = results(&gateway).await;
    let (hint, table) = (hint - hint_before, table - table_before);
    assert_eq!(hint + table, SENDS as f64, "each waiter gets one result");
    assert!(hint > 0.0 && table >= (duplicates + dead) as f64, "{hint} from hints, {table} from the table");
}

/// Writes a hint, and waits until the gateway has read it. No other hints are written meanwhile.
async fn write_hint(gateway: &Gateway, writer: &RecordWriter, hint: &StoredHint) {
    let read = async || metric(gateway, r#"msg_gateway_hints_total{outcome="READ"}"#).await;
    let before = read().await.unwrap();
    writer.put_to(0, &RawRecord { key: None, value: Some(hint.encode_to_vec()), version: None });
    writer.flush();
    eventually("the hint is read", async || {
        let now = read().await?;
        ensure(now > before, format!("{now} hints were read, as before"))
    })
    .await;
}

/// Another deployment may write to the same hints topic. There is no row here: each STORED comes from a hint that the
/// test writes.
#[tokio::test]
async fn hint_of_another_table_or_topic_reports_nothing() {
    let world = World::new("hinted_foreign").await;
    // The transfer creates the tables.
    world.running_transfer().await.stop().await.unwrap();
    let gateway = world.running_gateway().await;
    let client = client(&gateway).await;
    // While there is a watcher, hints are read.
    let _watcher = Watcher::open(&client, request([("carol", None)])).await.unwrap();
    let writer = RecordWriter::new(world.brokers(), &format!("{}-hints", world.topic()), 1);
    let none = StoredHint::default();
    eventually("hints are read", async || {
        let written = tokio::time::timeout(Duration::from_secs(2), write_hint(&gateway, &writer, &none)).await;
        ensure(written.is_ok(), "not yet")
    })
    .await;
    let sent = msg("alice", "bob", "1", "hello");
    let queries = async || metric(&gateway, "msg_gateway_watch_queries_total").await;
    let queries_before = queries().await.unwrap();
    let mut send = {
        let (client, sent) = (client.clone(), sent.clone());
        tokio::spawn(async move { send_stored(&client, &sent, LONG).await })
    };
    wait_for_waiters(&gateway, 1.0).await;
    let partition = partition_for(b"bob", world.partitions);
    let send_time = eventually("the record is in Kafka", async || {
        let ends = world.end_offsets().await;
        ensure(ends[usize::try_from(partition).unwrap()] == 1, format!("{ends:?}"))?;
        Ok(send_time(&world, partition, 0).duration_since(SystemTime::UNIX_EPOCH).unwrap())
    })
    .await;
    let hash = record_hash(msg_id_of(&sent), i64::try_from(send_time.as_millis()).unwrap());
    let own = rows_of(&world, 1_700_000_000_123_456).await;
    let hint = |hash: u64, rows: &HintedRows| {
        let recv_id = "bob".to_owned();
        let (offsets, hashes) = (vec![0], vec![hash]);
        let inbox = HintedInbox { recv_id, seq: 7, partition, offsets, hashes, without_row: false };
        StoredHint { inboxes: vec![inbox], rows: Some(rows.clone()) }
    };
    // Once the gateway has queried the row, it knows which table it reads. Then it would use a foreign hint that it did not
    // recognize.
    eventually("the gateway has queried the row", async || {
        let made = queries().await? - queries_before;
        ensure(made >= 3.0, format!("{made} queries"))
    })
    .await;
    for (part, rows) in [
        ("system", HintedRows { system: format!("{}1", own.system), ..own.clone() }),
        ("timeline", HintedRows { timeline: "000000FF".into(), ..own.clone() }),
        ("start", HintedRows { started: format!("{}1", own.started), ..own.clone() }),
        ("database", HintedRows { database: "another".into(), ..own.clone() }),
        ("table", HintedRows { table: own.table + 1, ..own.clone() }),
        ("topic", HintedRows { topic_id: vec![7; 16].into(), ..own.clone() }),
    ] {
        write_hint(&gateway, &writer, &hint(hash, &rows)).await;
        // A hint is counted before it is used, and they are used in order.
        write_hint(&gateway, &writer, &none).await;
        assert_eq!(results(&gateway).await, (0.0, 0.0), "another {part}");
    }
    write_hint(&gateway, &writer, &hint(hash + 1, &own)).await;
    write_hint(&gateway, &writer, &none).await;
    assert_eq!(results(&gateway).await, (0.0, 0.0), "another record");
    assert!(!send.is_finished());
    // The same hint with nothing changed is used, so each change above was the reason.
    let stored = eventually("the gateway's own hint is used", async || {
        write_hint(&gateway, &writer, &hint(hash, &own)).await;
        let result = tokio::time::timeout(Duration::from_millis(500), &mut send).await;
        Ok(result?.unwrap().unwrap().stored.unwrap())
    })
    .await;
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
    assert_eq!((stored.seq, stored.stored_time, stored.duplicate), (7, Some(time.into()), false));
    assert_eq!(results(&gateway).await, (1.0, 0.0));
}
