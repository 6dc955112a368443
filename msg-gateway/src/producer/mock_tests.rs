//! Tests of the delivery reports that librdkafka makes from a broker's responses. The broker is librdkafka's own mock.

use msg_common::admin::Readiness;
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::budget::Budget;

const REPORTS: usize = 3;

/// Returns a producer that puts concurrent records into one batch, and its cluster.
fn producer() -> (Producer, MockCluster<'static, DefaultProducerContext>) {
    // The backoff is longer than the latency of a report on a busy machine.
    producer_with(&[("linger.ms", "100"), ("retry.backoff.ms", "10000"), ("retry.backoff.max.ms", "10000")])
}

fn producer_with(settings: &[(&str, &str)]) -> (Producer, MockCluster<'static, DefaultProducerContext>) {
    let cluster = MockCluster::new(1).expect("the cluster starts");
    cluster.create_topic("msgs", 1, 1).expect("the topic is created");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("enable.idempotence", "true");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    let producer = Producer::new(ClientSettings::fixed(config), "msgs").expect("the settings are good");
    producer.open();
    (producer, cluster)
}

/// Sends a batch of records, and returns their outcomes.
async fn batch(producer: &Producer) -> Vec<Outcome> {
    let budget = Budget::of_items(100);
    let reports: Vec<_> = (0..REPORTS)
        .map(|_| {
            let (sender, report) = oneshot::channel();
            let permit = budget.try_acquire(1).expect("there is capacity");
            let in_flight = Box::new(InFlight { report_to: ReportSender::One(sender), permit, size: 100 });
            let record =
                Outgoing { partition: 0, key: "bob", value: b"hi", timestamp_ms: 1, traceparent: None, in_flight };
            producer.send(record).expect("it is enqueued");
            report
        })
        .collect();
    let mut outcomes = Vec::new();
    for report in reports {
        outcomes.push(report.await.expect("each record is reported"));
    }
    outcomes
}

fn rejects(cluster: &MockCluster<'static, DefaultProducerContext>, error: RDKafkaRespErr) {
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
}

#[tokio::test]
async fn batch_that_is_in_the_log_already_is_stored_without_offsets() {
    let (producer, cluster) = producer();
    let stored = |from: i64| (from..).take(REPORTS).map(|offset| Outcome::Stored { offset: Some(offset) });
    assert_eq!(batch(&producer).await, stored(0).collect::<Vec<_>>());
    rejects(&cluster, RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER);
    assert_eq!(batch(&producer).await, [Outcome::Stored { offset: None }; REPORTS]);
    // The mock did not append that one.
    assert_eq!(batch(&producer).await, stored(3).collect::<Vec<_>>());
}

#[tokio::test]
async fn rejected_batch_is_not_sent_and_a_server_error_is_unknown() {
    use RDKafkaRespErr as Error;
    for (error, expected) in [
        (Error::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Outcome::NotSent(RDKafkaErrorCode::InvalidTimestamp)),
        (Error::RD_KAFKA_RESP_ERR_INVALID_RECORD, Outcome::NotSent(RDKafkaErrorCode::InvalidRecord)),
        (
            Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            Outcome::NotSent(RDKafkaErrorCode::TopicAuthorizationFailed),
        ),
        (Error::RD_KAFKA_RESP_ERR_UNKNOWN, Outcome::Unknown),
        (Error::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION, Outcome::Unknown),
        (Error::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, Outcome::Unknown),
        (Error::RD_KAFKA_RESP_ERR_INVALID_REQUEST, Outcome::Unknown),
    ] {
        let (producer, cluster) = producer();
        // Send a first batch, so that the topic is known and the report follows the rejection immediately.
        batch(&producer).await;
        rejects(&cluster, error);
        assert_eq!(batch(&producer).await, [expected; REPORTS], "{error:?}");
    }
}

#[tokio::test]
async fn records_of_an_oversized_batch_wait_for_the_topics_limit() {
    let (producer, cluster) = producer();
    batch(&producer).await;
    // Twice: on a busy machine the two records may be in a request each.
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2]);
    let budget = Budget::of_items(100);
    let mut reports = Vec::new();
    for size in [500, 5000] {
        let (sender, report) = oneshot::channel();
        let permit = budget.try_acquire(1).expect("there is capacity");
        let in_flight = Box::new(InFlight { report_to: ReportSender::One(sender), permit, size });
        let record = Outgoing { partition: 0, key: "bob", value: b"hi", timestamp_ms: 1, traceparent: None, in_flight };
        producer.send(record).expect("it is enqueued");
        reports.push(report);
    }
    let judged = async {
        let mut left = 2;
        while left > 0 {
            producer.signals().check.notified().await;
            let oversized = producer.signals().take_oversized();
            left -= oversized.len();
            preflight::judge_sizes(oversized, Some(1000));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), judged).await.expect("both are rejected");
    let not_sent = Outcome::NotSent(RDKafkaErrorCode::MessageSizeTooLarge);
    for (report, expected) in reports.into_iter().zip([not_sent, Outcome::TooLarge]) {
        assert_eq!(report.await, Ok(expected));
    }
    assert_eq!(budget.used().items, 0);
}

/// A new producer has no error until its first response from a broker.
#[tokio::test(flavor = "multi_thread")]
async fn gateway_is_not_ready_while_each_producer_fails() {
    const FAILURES: usize = 4;
    let cluster = MockCluster::new(1).expect("the cluster starts");
    cluster.create_topic("msgs", 1, 1).expect("the topic is created");
    let missing_right = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[missing_right; FAILURES]);
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("enable.idempotence", "true")
        .set("linger.ms", "0");
    let producer = Arc::new(Producer::new(ClientSettings::fixed(config), "msgs").expect("the settings are good"));
    producer.open();
    let (readiness, stop) = (Readiness::waiting_for(&[]), CancellationToken::new());
    let ready = readiness.watch();
    let supervised = producer.clone().supervise(readiness.clone(), Duration::from_secs(5), stop.clone());
    let supervisor = tokio::spawn(supervised);
    let failing = async {
        let mut known = producer.current.load_full();
        // The producer that replaced the last failed one works, and has not shown it yet.
        let mut replaced = 0;
        while replaced < FAILURES {
            let current = producer.current.load_full();
            if !Arc::ptr_eq(&known, &current) {
                (known, replaced) = (current, replaced + 1);
            }
            let shown = readiness.reasons();
            assert!(replaced == 0 || shown.contains_key(replacement::COMPONENT), "ready after {replaced}: {shown:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), failing).await.expect("each producer is replaced");
    let reasons = readiness.reasons();
    assert!(reasons[replacement::COMPONENT].contains("IDEMPOTENT_WRITE"), "{reasons:?}");
    assert!(!*ready.borrow());
    let stored = |outcome: &Outcome| matches!(outcome, Outcome::Stored { .. });
    assert!(batch(&producer).await.iter().all(stored), "the right is granted");
    let works = async { ready.clone().wait_for(|ready| *ready).await.map(drop) };
    // Earlier than without a record.
    tokio::time::timeout(Duration::from_secs(10), works).await.expect("it has delivered").expect("it is supervised");
    stop.cancel();
    supervisor.await.expect("it ends");
}

/// librdkafka reports no error for it: every record of every partition just times out.
#[tokio::test(flavor = "multi_thread")]
async fn producer_whose_deliveries_all_time_out_is_replaced() {
    let (producer, cluster) = producer_with(&[("linger.ms", "0"), ("delivery.timeout.ms", "300")]);
    let producer = Arc::new(producer);
    let first = producer.current.load_full();
    let stop = CancellationToken::new();
    let readiness = Readiness::waiting_for(&[]);
    let supervisor = tokio::spawn(producer.clone().supervise(readiness, Duration::from_millis(500), stop.clone()));
    cluster.broker_down(1).expect("the broker exists");
    let replaced = async {
        while Arc::ptr_eq(&first, &producer.current.load_full()) {
            assert_eq!(batch(&producer).await, [Outcome::Unknown; REPORTS]);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), replaced).await.expect("it is replaced");
    cluster.broker_up(1).expect("the broker exists");
    let confirmed = async { while batch(&producer).await.contains(&Outcome::Unknown) {} };
    tokio::time::timeout(Duration::from_secs(30), confirmed).await.expect("the new one is confirmed");
    stop.cancel();
    supervisor.await.expect("it ends");
}
