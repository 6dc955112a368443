//! Hints: after each COMMIT, the lane sends the inboxes with completed records to the hints topic, for gateways with
//! waiters and watchers, and describes fresh rows. No message depends on a hint, so a batch never waits for one, and a
//! hint that cannot be sent is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use msg_common::hint::hinted_rows;
use msg_common::kafka::polled::PolledProducer;
use msg_common::kafka::{ClientPurpose, ClientSetup, KafkaClient, KafkaOptions};
use msg_common::postgres::TableIdentity;
use msg_common::proto::{HintedInbox, HintedRows, StoredHint};
use prost::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;

use crate::metrics;

/// The partition that hints are sent to: gateways read only this one.
const PARTITION: i32 = 0;

/// Maximum bytes of one record. A topic accepts 1 MB unless configured otherwise.
const MAX_BYTES: usize = 400_000;

/// An inbox's rows are described only if its newest message was sent less than this ago. While the transfer is further
/// behind, few callers still wait, and their gateways query the rows; descriptions would only make the backlog's hints
/// large.
const FRESH: Duration = Duration::from_secs(10);

/// Maximum number of rows of an inbox that are described: with up to 18 bytes for each, the inbox fits into a record.
const MAX_ROWS: usize = 10_000;

/// A row that a COMMIT stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredRow<'a> {
    pub recv_id: &'a str,
    pub seq: i64,
    pub topic_id: Option<Uuid>,
    pub partition: i32,
    pub offset: i64,
    pub send_time_ms: i64,
    /// The hash of the row's record.
    pub hash: u64,
}

/// Where and when the rows of a COMMIT were stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub table: TableIdentity,
    pub time_us: i64,
}

/// Sends hints. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hints(Arc<KafkaClient<PolledProducer<Context>>>);

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hints").field(&self.0.context().topic).finish()
    }
}

impl Hints {
    /// Creates a producer, which connects by itself; `None` if hints are switched off.
    pub(crate) fn new(kafka: &KafkaOptions) -> KafkaResult<Option<Self>> {
        let Some(topic) = kafka.hints_topic() else { return Ok(None) };
        let context = Context { topic, reported: AtomicBool::new(false) };
        Ok(Some(Hints(Arc::new(config(kafka).create_with_context(context)?))))
    }

    /// Sends hints for the inboxes of these rows, which are sorted by inbox and `seq`, and for the inboxes with a record
    /// that was completed without a row. If it is known where and when the rows were stored, fresh ones are described.
    /// Never blocks.
    pub(crate) fn send(&self, rows: &[StoredRow<'_>], without_row: BTreeSet<&str>, stored: Option<Stored>) {
        for hint in hints(rows, without_row, stored, now_ms()) {
            let record = BaseRecord::<(), _>::to(&self.0.context().topic).partition(PARTITION);
            if let Err((error, _)) = self.0.send(record.payload(&hint.encode_to_vec())) {
                self.0.context().dropped(&error);
            }
        }
    }
}

/// Returns librdkafka's settings. No other function knows their names.
fn config(kafka: &KafkaOptions) -> ClientSetup {
    let mut config = kafka.client_config(ClientPurpose::HintWriter);
    config
        .set("acks", "1")
        .set("linger.ms", "0")
        .set("compression.type", "lz4")
        // A late hint is useless: gateways poll the table in the meantime.
        .set("message.timeout.ms", "5000")
        .set("queue.buffering.max.messages", "1000")
        .set("queue.buffering.max.kbytes", "8192")
        // A missing topic is detected soon, and its metadata is read again every second.
        .set("topic.metadata.propagation.max.ms", "1000");
    config
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// Returns each inbox once, with its last `seq`. A hint ends where its record would become too large.
fn hints(
    rows: &[StoredRow<'_>],
    mut without_row: BTreeSet<&str>,
    stored: Option<Stored>,
    now_ms: i64,
) -> Vec<StoredHint> {
    // A topic whose brokers return no ID cannot be distinguished from another one.
    let topic_id = rows.iter().find_map(|row| row.topic_id).filter(|id| !id.is_nil());
    let common = topic_id.zip(stored).map(|(id, stored)| hinted_rows(id, stored.time_us, stored.table));
    let mut inboxes = Vec::new();
    for rows in rows.chunk_by(|one, next| one.recv_id == next.recv_id) {
        let describes = common.is_some() && may_describe(rows, topic_id, now_ms);
        inboxes.push(inbox(rows, without_row.remove(rows[0].recv_id), describes));
    }
    let others = without_row.into_iter();
    inboxes.extend(others.map(|id| HintedInbox {
        recv_id: id.to_owned(),
        without_row: true,
        ..HintedInbox::default()
    }));
    in_records(inboxes, common.as_ref())
}

/// Returns whether a hint describes these rows of one inbox.
fn may_describe(rows: &[StoredRow<'_>], topic_id: Option<Uuid>, now_ms: i64) -> bool {
    let first = rows[0];
    let fresh = i64::try_from(FRESH.as_millis()).expect("it is short");
    rows.len() <= MAX_ROWS
        && rows.iter().any(|row| now_ms.saturating_sub(row.send_time_ms) < fresh)
        // After the number of partitions has grown, an inbox may have records in two of them.
        && rows.iter().all(|row| (row.topic_id, row.partition) == (topic_id, first.partition))
        && rows.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1)
}

fn inbox(rows: &[StoredRow<'_>], without_row: bool, describes: bool) -> HintedInbox {
    let last = rows[rows.len() - 1];
    let described = if describes { rows } else { &[] };
    HintedInbox {
        recv_id: last.recv_id.to_owned(),
        seq: last.seq,
        without_row,
        partition: described.first().map_or(0, |row| row.partition),
        offsets: described.iter().map(|row| row.offset).collect(),
        hashes: described.iter().map(|row| row.hash).collect(),
    }
}

/// Distributes the inboxes over as few hints as their bytes need.
fn in_records(inboxes: Vec<HintedInbox>, common: Option<&HintedRows>) -> Vec<StoredHint> {
    let common_bytes = common.map_or(0, |rows| rows.encoded_len() + 4);
    let mut hints: Vec<StoredHint> = Vec::new();
    let mut bytes = MAX_BYTES;
    for inbox in inboxes {
        // The field's tag and length need up to 4 bytes.
        let added = inbox.encoded_len() + 4;
        if bytes + added > MAX_BYTES {
            hints.push(StoredHint::default());
            bytes = common_bytes;
        }
        bytes += added;
        let hint = hints.last_mut().expect("the first inbox starts a hint");
        if !inbox.offsets.is_empty() && hint.rows.is_none() {
            hint.rows = common.cloned();
        }
        hint.inboxes.push(inbox);
    }
    hints
}

/// The producer's callbacks, which count the outcome of each hint.
struct Context {
    topic: String,
    /// It was logged that the topic accepts no hints. Reset when it accepts one.
    reported: AtomicBool,
}

impl Context {
    fn dropped(&self, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        let outcome = match error.rdkafka_error_code().unwrap_or(Code::Fail) {
            Code::QueueFull => "queue_full",
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed => {
                if !self.reported.swap(true, Ordering::Relaxed) {
                    let topic = &self.topic;
                    tracing::warn!(
                        topic,
                        %error,
                        "cannot send hints, so WAIT_FOR_STORED and WatchMsgs respond later; create the topic, grant \
                         WRITE on it, or set HINTS_TOPIC to none"
                    );
                }
                "no_topic"
            }
            _ => {
                tracing::debug!(%error, "dropped a hint");
                "lost"
            }
        };
        metrics::hinted(outcome);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        msg_common::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "producer of hints reported an error");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.reported.store(false, Ordering::Relaxed);
                metrics::hinted("written");
            }
            Err((error, _)) => self.dropped(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use msg_common::postgres::Identity;

    use super::*;

    const NOW: i64 = 1_700_000_000_000;
    const TOPIC: Uuid = Uuid::from_u128(7);

    /// A fresh row whose record has the offset `seq` + 100.
    fn row(recv_id: &str, seq: i64) -> StoredRow<'_> {
        let hash = seq.cast_unsigned();
        StoredRow { recv_id, seq, topic_id: Some(TOPIC), partition: 3, offset: seq + 100, send_time_ms: NOW, hash }
    }

    fn stored() -> Option<Stored> {
        let server = Identity { system: Some("7".into()), timeline: None, started: Some("42".into()) };
        Some(Stored { table: TableIdentity { server, database: "app".into(), table: 5 }, time_us: 1 })
    }

    fn one(rows: &[StoredRow<'_>], without_row: &[&str], stored: Option<Stored>) -> StoredHint {
        let mut found = hints(rows, without_row.iter().copied().collect(), stored, NOW);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn hint_has_each_inbox_once_with_its_last_seq() {
        let hint = one(&[row("a", 3), row("a", 4), row("c", 7)], &["a", "b"], None);
        let inboxes = hint.inboxes.iter().map(|inbox| (inbox.recv_id.as_str(), inbox.seq, inbox.without_row));
        assert_eq!(inboxes.collect::<Vec<_>>(), [("a", 4, true), ("c", 7, false), ("b", 0, true)]);
        assert!(hint.rows.is_none() && hint.inboxes.iter().all(|inbox| inbox.offsets.is_empty()));
        assert!(hints(&[], BTreeSet::new(), stored(), NOW).is_empty());
    }

    #[test]
    fn fresh_rows_are_described_in_the_order_of_their_seq() {
        let hint = one(&[row("a", 3), row("a", 4), row("c", 7)], &["b"], stored());
        let described = |inbox: &HintedInbox| (inbox.partition, inbox.offsets.clone(), inbox.hashes.clone());
        let found: Vec<_> = hint.inboxes.iter().map(described).collect();
        assert_eq!(found, [(3, vec![103, 104], vec![3, 4]), (3, vec![107], vec![7]), (0, vec![], vec![])]);
        let rows = hint.rows.expect("rows are described");
        assert_eq!((rows.topic_id.as_ref(), rows.stored_time_us), (TOPIC.as_bytes().as_slice(), 1));
    }

    #[test]
    fn rows_that_are_old_or_not_comparable_are_not_described() {
        let old = NOW - 10_000;
        for (case, rows) in [
            ("old", vec![StoredRow { send_time_ms: old, ..row("a", 1) }]),
            ("two partitions", vec![row("a", 1), StoredRow { partition: 4, ..row("a", 2) }]),
            ("two topics", vec![row("a", 1), StoredRow { topic_id: Some(Uuid::max()), ..row("a", 2) }]),
            ("no topic ID", vec![StoredRow { topic_id: Some(Uuid::nil()), ..row("a", 1) }]),
            ("a gap", vec![row("a", 1), row("a", 3)]),
            ("too many", (1..=10_001).map(|seq| row("a", seq)).collect()),
        ] {
            let hint = one(&rows, &[], stored());
            let [inbox] = hint.inboxes.as_slice() else { panic!("{case}: {hint:?}") };
            assert!(hint.rows.is_none() && inbox.offsets.is_empty() && inbox.hashes.is_empty(), "{case}");
            assert_eq!(inbox.seq, rows.last().expect("there are rows").seq, "{case}");
        }
        let some_fresh = [StoredRow { send_time_ms: old, ..row("a", 1) }, row("a", 2)];
        assert_eq!(one(&some_fresh, &[], stored()).inboxes[0].offsets, [101, 102]);
    }

    #[test]
    fn large_hint_is_split_into_records() {
        let ids: Vec<String> = (0..5000).map(|n| format!("{n:0>256}")).collect();
        let rows: Vec<StoredRow<'_>> = ids.iter().map(|id| row(id, i64::MAX - 100)).collect();
        let many: Vec<StoredRow<'_>> =
            (1..=10_000).map(|n| StoredRow { offset: i64::MAX, hash: u64::MAX, ..row("many", n) }).collect();
        let found = hints(&[many, rows].concat(), BTreeSet::new(), stored(), NOW);
        assert_eq!(found.iter().map(|hint| hint.inboxes.len()).sum::<usize>(), 5001);
        assert!(found.iter().all(|hint| hint.rows.is_some()));
        let sizes: Vec<usize> = found.iter().map(|hint| hint.encode_to_vec().len()).collect();
        assert!(sizes.len() < 6 && sizes.iter().all(|size| (1..=MAX_BYTES).contains(size)), "{sizes:?}");
    }

    // The producer needs a runtime.
    #[tokio::test]
    async fn settings_are_known_to_librdkafka() {
        let kafka = KafkaOptions {
            kafka_brokers: "127.0.0.1:1".into(),
            kafka_topic: "msgs".into(),
            hints_topic: None,
            kafka_properties: msg_common::config::Secret::default(),
            kafka_properties_file: None,
            security: msg_common::kafka::SecurityOptions::default(),
            accepted: msg_common::kafka::AcceptedProperties::default(),
            generation: msg_common::kafka::Generation::default(),
            token: msg_common::kafka::SharedToken::default(),
        };
        config(&kafka).config().create_native_config().expect("librdkafka knows each key and value");
        assert!(Hints::new(&kafka).expect("the producer is created").is_some());
        let none = KafkaOptions { hints_topic: Some(String::new()), ..kafka };
        assert!(Hints::new(&none).expect("no producer is needed").is_none());
    }
}
