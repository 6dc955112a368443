//! Hints: after each COMMIT the hints topic gets the inboxes of the batch and their last `seq`, and fresh rows are
//! described. Nothing is lost with a hint.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use msg_common::hint::record_hash;
use msg_common::proto::{HintedInbox, StoredHint};
use msg_common::record;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::support::hints::rows_of;
use crate::support::kafka::{RawRecord, msg, msg_id_of, record_of};
use crate::support::load;
use crate::support::stack::stack;
use crate::support::transfer::metric;
use crate::support::world::World;
use crate::support::{NotYet, ensure, eventually};

/// A reader of the world's hints topic, from its start.
pub(super) struct Hints(BaseConsumer);

impl Hints {
    pub(super) fn of(world: &World) -> Hints {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", world.brokers())
            .set("group.id", "reads-hints")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&format!("{}-hints", world.topic()), 0, Offset::Beginning).unwrap();
        consumer.assign(&list).unwrap();
        Hints(consumer)
    }

    /// The next hint; `None` if there is none within 100 ms.
    fn next_hint(&self) -> Option<StoredHint> {
        let record = tokio::task::block_in_place(|| self.0.poll(Duration::from_millis(100)))?.unwrap();
        Some(StoredHint::decode(record.payload().unwrap()).unwrap())
    }

    /// The inboxes of the next hint and their `seq`; `None` if there is none within 100 ms.
    fn next(&self) -> Option<BTreeMap<String, i64>> {
        Some(self.next_hint()?.inboxes.into_iter().map(|inbox| (inbox.recv_id, inbox.seq)).collect())
    }

    /// Waits for the next hint, and checks that it has exactly these inboxes.
    pub(super) async fn expect(&self, expected: &[(&str, i64)]) {
        let expected = expected.iter().map(|(recv_id, seq)| ((*recv_id).to_owned(), *seq)).collect();
        let next: BTreeMap<String, i64> =
            eventually("a hint arrives", async || self.next().ok_or_else(|| NotYet::from("none yet"))).await;
        assert_eq!(next, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_commit_sends_hints_of_its_inboxes_and_last_seqs() {
    let world = World::new("hints").await;
    let transfer = world.running_transfer().await;
    let hints = Hints::of(&world);
    load::write_messages(&world.writer(), 0, 3000, 30);
    // The `seq` of each inbox ascends, no matter how the batches were composed.
    let mut last = BTreeMap::new();
    eventually("each inbox is hinted with its last seq", async || {
        for (recv_id, seq) in hints.next().unwrap_or_default() {
            let before = last.insert(recv_id, seq).unwrap_or(0);
            assert!(seq > before, "{before}, then {seq}");
        }
        let complete = last.values().filter(|seq| **seq == 100).count();
        ensure(complete == 30, format!("{last:?}"))
    })
    .await;
    assert!(transfer.stop().await.unwrap().success());
}

/// A gateway reports what a hint describes, so it must be what a read returns.
#[tokio::test(flavor = "multi_thread")]
async fn fresh_rows_are_described_as_they_are_in_the_table() {
    let world = World::new("hints_rows").await;
    let transfer = world.running_transfer().await;
    let (writer, hints, database) = (world.writer(), Hints::of(&world), world.database().await);
    let fresh = |client_msg_id: &str, send_time_ms| {
        let msg = msg("a", "bob", client_msg_id, "hello");
        RawRecord { value: Some(record::encode(msg.clone(), msg_id_of(&msg), send_time_ms)), ..record_of(&msg) }
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_millis()).unwrap();
    let next = async || -> StoredHint {
        eventually("a hint arrives", async || hints.next_hint().ok_or_else(|| NotYet::from("none yet"))).await
    };
    // The third one repeats the first. Each round is a batch, or a few.
    for ids in [&["1", "2", "1"][..], &["3", "1", "4"]] {
        ids.iter().for_each(|id| writer.put(&fresh(id, now)));
        writer.flush();
        let last: i64 = ids.iter().filter_map(|id| id.parse().ok()).max().unwrap();
        let (mut described, mut without_row) = (Vec::<(i64, i32, i64, u64, i64)>::new(), false);
        while described.last().is_none_or(|(seq, ..)| *seq < last) || !without_row {
            let hint = next().await;
            let [inbox] = hint.inboxes.as_slice() else { panic!("{hint:?}") };
            without_row |= inbox.without_row;
            let HintedInbox { seq, partition, offsets, hashes, .. } = inbox;
            assert_eq!((offsets.len(), hint.rows.is_some()), (hashes.len(), !offsets.is_empty()));
            let Some(rows) = hint.rows else { continue };
            assert_eq!(rows, rows_of(&world, rows.stored_time_us).await);
            let first = seq - i64::try_from(offsets.len()).unwrap() + 1;
            for (seq, (offset, hash)) in (first..).zip(offsets.iter().zip(hashes)) {
                described.push((seq, *partition, *offset, *hash, rows.stored_time_us));
            }
        }
        let query = "SELECT seq, kafka_partition, kafka_offset, msg_id, stored_time FROM messages
                     WHERE recv_id = 'bob' AND seq > $1 ORDER BY seq";
        let rows = database.query(query, &[&(last - 2)]).await.unwrap();
        let stored = rows.iter().map(|row| {
            let time = row.get::<_, SystemTime>(4).duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let hash = record_hash(row.get(3), now);
            (
                row.get::<_, i64>(0),
                row.get::<_, i32>(1),
                row.get::<_, i64>(2),
                hash,
                i64::try_from(time.as_micros()).unwrap(),
            )
        });
        assert_eq!(described, stored.collect::<Vec<_>>());
    }
    // A record that waited for long has no waiter any more.
    writer.put(&fresh("5", now - 60_000));
    writer.flush();
    let hint = next().await;
    assert_eq!((hint.inboxes[0].seq, hint.inboxes[0].offsets.len(), hint.rows), (5, 0, None));
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_make_no_row_send_hints_too() {
    let world = World::new("hints_no_rows").await;
    let transfer = world.running_transfer().await;
    let (writer, hints) = (world.writer(), Hints::of(&world));
    let put = |record: &RawRecord| {
        writer.put(record);
        writer.flush();
    };
    put(&record_of(&msg("a", "bob", "1", "hello")));
    hints.expect(&[("bob", 1)]).await;
    // A duplicate.
    put(&record_of(&msg("a", "bob", "1", "hello")));
    hints.expect(&[("bob", 0)]).await;
    // A conflict.
    put(&record_of(&msg("a", "bob", "1", "other words")));
    hints.expect(&[("bob", 0)]).await;
    // A record that holds no message: with a known inbox, and then without one.
    put(&RawRecord { key: Some(b"eve".to_vec()), ..record_of(&msg("a", "bob", "2", "hello")) });
    hints.expect(&[("bob", 0)]).await;
    put(&RawRecord { value: Some(b"\xff".to_vec()), ..record_of(&msg("a", "bob", "2", "hello")) });
    put(&record_of(&msg("a", "bob", "3", "hello")));
    hints.expect(&[("bob", 2)]).await;
    assert_eq!(world.dead_letters().await.len(), 3);
    assert!(transfer.stop().await.unwrap().success());
}

/// A reader of a hint has to find its rows. The COMMIT is slow here.
#[tokio::test(flavor = "multi_thread")]
async fn hint_follows_the_commit_of_its_rows() {
    let world = World::new("hints_after").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
                CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
                    FOR EACH ROW EXECUTE FUNCTION slow()";
    database.batch_execute(slow).await.unwrap();
    let (writer, hints) = (world.writer(), Hints::of(&world));
    for seq in 1..=3 {
        writer.put(&record_of(&msg("a", "bob", &seq.to_string(), "hello")));
        writer.flush();
        hints.expect(&[("bob", seq)]).await;
        let found = database.query("SELECT FROM messages WHERE recv_id = 'bob' AND seq = $1", &[&seq]).await.unwrap();
        assert_eq!(found.len(), 1, "the hint of {seq} precedes its row");
    }
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_stored_without_a_hints_topic() {
    let world = World::without_hints("hints_missing").await;
    let transfer = world.running_transfer().await;
    load::write_messages(&world.writer(), 0, 1000, 10);
    world.wait_for_all_committed().await;
    load::assert_stored(&world, 1000, 10).await;
    eventually("the missing topic is counted", async || {
        let count = metric(&transfer, "msg_transfer_hints_total{outcome=\"no_topic\"}").await;
        ensure(count >= 1.0, count)
    })
    .await;
    // Once the topic is created, hints are written.
    let kafka = stack().await.kafka();
    kafka.create(&kafka.hints_topic(world.topic())).await.unwrap();
    let (writer, mut sent) = (world.writer(), 1000);
    eventually("hints are written", async || {
        load::write_messages(&writer, sent, sent + 10, 10);
        sent += 10;
        let count = metric(&transfer, "msg_transfer_hints_total{outcome=\"written\"}").await;
        ensure(count >= 1.0, count)
    })
    .await;
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_can_be_switched_off() {
    let world = World::new("hints_off").await;
    let transfer = world.transfer("transfer", |spec| spec.env("HINTS_TOPIC", "none"));
    transfer.start().await.unwrap();
    load::write_messages(&world.writer(), 0, 100, 10);
    world.wait_for_all_committed().await;
    assert_eq!(metric(&transfer, "msg_transfer_hints_total").await, 0.0);
    assert_eq!(world.end_offsets_of(&format!("{}-hints", world.topic()), 1).await, [0]);
    assert!(transfer.stop().await.unwrap().success());
}
