//! Replaces the librdkafka producer after a fatal error, when it is stalled, and when the topic was recreated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use msg_common::admin::Readiness;
use rdkafka::error::KafkaResult;
use rdkafka::producer::{Producer as _, PurgeConfig};
use tokio_util::sync::CancellationToken;

use crate::metrics::PRODUCERS_REPLACED;
use crate::producer::doubt::Doubt;
use crate::producer::rejections::advice;
use crate::producer::stall_timer::StallTimer;
use crate::producer::{DeliveryContext, Producer, Sending, finish};

/// The component of [`Readiness`] for the producer.
pub(crate) const COMPONENT: &str = "producer";

/// The component of [`Readiness`] for a replacement that needs long.
const REPLACEMENT: &str = "producer-replacement";

/// For how long sends wait while the producer is emptied. A producer that works needs less. A wait makes the response later,
/// so it is short.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(3);

/// How often, and at which interval, a replaced producer is purged: a send may have started before it was replaced.
const PURGES: usize = 5;
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// How often to check whether the producer is stalled.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Producer {
    /// Replaces the librdkafka producer after a fatal error, and after it has confirmed nothing for longer than
    /// `drain`. Runs until `stop`.
    pub(crate) async fn supervise(self: Arc<Self>, readiness: Readiness, drain: Duration, stop: CancellationToken) {
        let mut timer = StallTimer::new(drain);
        let mut doubt = Doubt::default();
        let confirmed_since = |when| self.signals.confirmed_since(when);
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        loop {
            tokio::select! {
                () = self.signals.error.notified() => {}
                _ = checks.tick() => {
                    self.replace_stuck(&mut timer);
                    if stop.run_until_cancelled(self.replace_outdated(&readiness, drain)).await.is_none() {
                        return;
                    }
                }
                () = stop.cancelled() => return,
            }
            // Most errors are not fatal, and a replaced producer may still report some.
            let Some((code, detail)) = self.current.load().client().fatal_error() else {
                if doubt.ends(Instant::now(), confirmed_since) {
                    readiness.ready(COMPONENT);
                }
                continue;
            };
            readiness.not_ready(COMPONENT, format!("fatal error {code}: {detail}: {}", advice(code)));
            match self.create() {
                Ok(fresh) => {
                    self.replace(Arc::new(fresh), drain);
                    if doubt.replaced(code, Instant::now(), confirmed_since) {
                        readiness.ready(COMPONENT);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot create a producer");
                    self.signals.error.notify_one();
                }
            }
            // If a broker makes each new producer fail, this must not spin.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Does nothing while the topic cannot be used: another producer would not help.
    fn replace_stuck(&self, timer: &mut StallTimer) {
        let now = Instant::now();
        let since = self.signals.rejections.timing_out_since(now);
        if self.closed.load().is_some() || !timer.expired(since, now) {
            return;
        }
        tracing::warn!("replacing stalled producer, all deliveries time out");
        if let Err(error) = self.replace_abandoning() {
            tracing::error!(%error, "cannot create a producer");
        }
    }

    /// Replaces the producer if the files of its settings have changed: a password or a certificate. It works, so its records
    /// are delivered first: with two producers, a later record could overtake an earlier one of the same inbox. Sends wait
    /// meanwhile, and are rejected if that needs too long.
    async fn replace_outdated(&self, readiness: &Readiness, drain: Duration) {
        if !self.settings.changed_since(self.current.load().context().created) {
            return;
        }
        let fresh = match self.create() {
            Ok(fresh) => Arc::new(fresh),
            Err(error) => return tracing::error!(%error, "cannot create a producer"),
        };
        tracing::info!("replacing producer because the files of its settings have changed");
        self.gate.close().await;
        let old = self.current.load_full();
        let emptied = old.clone();
        let mut emptying = tokio::task::spawn_blocking(move || finish(&emptied, drain));
        let left = match tokio::time::timeout(MAX_WAIT, &mut emptying).await {
            Ok(left) => left,
            Err(_) => {
                readiness.not_ready(
                    REPLACEMENT,
                    "the files of the Kafka clients have changed, and the old client cannot deliver its records",
                );
                emptying.await
            }
        };
        // Dropping a producer waits for librdkafka's threads. Records that are left are purged, and their outcome is unknown.
        let replaced = self.swap(fresh);
        self.gate.open();
        readiness.ready(REPLACEMENT);
        tokio::task::spawn_blocking(move || {
            if left.is_ok_and(|left| left > 0) {
                purge(&old);
            }
            drop((old, replaced));
        });
    }

    fn replace(&self, fresh: Arc<Sending>, drain: Duration) {
        let old = self.swap(fresh);
        // Its delivery reports are outstanding. Dropping it now would discard its records without a report.
        tokio::task::spawn_blocking(move || finish(&old, drain));
    }

    /// Replaces the librdkafka producer, and abandons the records of the old one: their outcome is unknown. This is
    /// for a recreated topic, where records to the old one are neither delivered nor timed out and block the records
    /// behind them, and for a stalled producer.
    pub(crate) fn replace_abandoning(&self) -> KafkaResult<()> {
        let fresh = self.create()?;
        let old = self.swap(Arc::new(fresh));
        tokio::task::spawn_blocking(move || purge(&old));
        Ok(())
    }

    fn create(&self) -> KafkaResult<Sending> {
        let (config, created) = self.settings.current();
        config.create_with_context(DeliveryContext::new(self.signals.clone(), self.backoff, created))
    }

    fn swap(&self, fresh: Arc<Sending>) -> Arc<Sending> {
        counter!(PRODUCERS_REPLACED).increment(1);
        self.current.swap(fresh)
    }
}

/// Purges the records of a replaced producer, each with its report, and those that were being enqueued when it was
/// replaced.
fn purge(producer: &Sending) {
    for _ in 0..PURGES {
        producer.purge(PurgeConfig::default().queue().inflight());
        let _ = producer.flush(PURGE_INTERVAL);
        std::thread::sleep(PURGE_INTERVAL);
    }
    let records = producer.in_flight_count();
    if records > 0 {
        tracing::warn!(records, "abandoned records without a delivery report");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use msg_common::kafka::ClientSettings;
    use rdkafka::bindings::{rd_kafka_resp_err_t, rd_kafka_test_fatal_error};
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::mocking::MockCluster;
    use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
    use tokio::sync::mpsc;

    use super::*;
    use crate::budget::Budget;
    use crate::config::{Config, producer as settings};
    use crate::producer::Rejection;
    use crate::producer::tests::{producer, send, send_at};
    use crate::send::outcome::Outcome;

    #[tokio::test(flavor = "multi_thread")]
    async fn replaced_producer_reports_unknown_and_releases_permits() {
        // No broker listens there, and nothing times out.
        let producer = producer(&[("bootstrap.servers", "127.0.0.1:1")]);
        let budget = Budget::of_items(10_000);
        let permit = || budget.try_acquire(1).expect("there is capacity");
        let before: Vec<_> = (0..100).map(|_| send(&producer, permit()).expect("it is enqueued")).collect();
        let sending = producer.clone();
        // Enqueues records while the producer is replaced.
        let (permits, stop) = (budget.clone(), CancellationToken::new());
        let (stopped, _ends_the_sender) = (stop.clone(), stop.clone().drop_guard());
        let sender = tokio::task::spawn_blocking(move || {
            while !stopped.is_cancelled() {
                if let Ok(permit) = permits.try_acquire(1) {
                    let _ = send(&sending, permit);
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        producer.replace_abandoning().expect("the settings are good");
        for report in before {
            // The report must arrive before the old producer is dropped, which is later.
            let report = tokio::time::timeout(3 * PURGE_INTERVAL, report).await;
            assert_eq!(report.expect("it is reported before the old producer is dropped"), Ok(Outcome::Unknown));
        }
        stop.cancel();
        sender.await.expect("it ends");
        // Only the records of the new producer hold permits.
        let left = async || {
            while budget.used().items != usize::try_from(producer.queued()).expect("it is positive") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), left()).await.expect("the permits of the old one are released");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn producer_with_a_fatal_error_is_replaced() {
        let producer = producer(&[("test.mock.num.brokers", "1")]);
        let budget = Budget::of_items(2);
        let permit = || budget.try_acquire(1).expect("there is capacity");
        let stored = send(&producer, permit()).expect("it is enqueued").await;
        assert_eq!(stored, Ok(Outcome::Stored { offset: Some(0) }));

        let readiness = Readiness::waiting_for(&[]);
        let mut ready = readiness.watch();
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(producer.clone().supervise(readiness, Duration::from_secs(5), stop.clone()));
        let broken = producer.current.load_full();
        // SAFETY: the client lives as long as `broken`, and the text is a C string.
        unsafe {
            let code = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
            rd_kafka_test_fatal_error(broken.client().native_ptr(), code, c"a test".as_ptr());
        }
        drop(broken);
        ready.changed().await.expect("the supervisor runs");
        ready.wait_for(|ready| *ready).await.expect("the supervisor runs");
        // The new producer has a mock cluster of its own, whose topic is empty.
        let stored = send(&producer, permit()).expect("the new one accepts it").await;
        assert_eq!(stored, Ok(Outcome::Stored { offset: Some(0) }));
        stop.cancel();
        supervisor.await.expect("it ends");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn outdated_producer_is_emptied_before_the_new_one_sends() {
        const RECORDS: i64 = 2_000;
        let cluster = MockCluster::new(1).expect("the cluster starts");
        cluster.create_topic("msgs", 1, 1).expect("the topic is created");
        let brokers = cluster.bootstrap_servers();
        let config = Config::parse_from(["msg-gateway", "--kafka-brokers", &brokers, "--linger", "50ms"]);
        let settings = ClientSettings::new(&config.kafka, {
            let (limits, send) = (config.limits.clone(), config.send.clone());
            move |kafka| settings::producer(kafka, &limits, &send)
        });
        let producer = Arc::new(Producer::new(settings, "msgs").expect("the settings are good"));
        producer.open();
        let (sending, budget) = (producer.clone(), Budget::of_items(100_000));
        let (hundreds, mut sent) = mpsc::unbounded_channel();
        let sender = tokio::task::spawn_blocking(move || {
            // librdkafka replaces the timestamp 0 by the current time.
            let mut next = 1;
            while next <= RECORDS {
                let permit = budget.try_acquire(1).expect("there is capacity");
                match send_at(&sending, permit, next) {
                    Ok(_) => {
                        next += 1;
                        if next % 100 == 0 {
                            let _ = hundreds.send(());
                        }
                    }
                    Err(rejection) => assert!(matches!(rejection, Rejection::Closed(_)), "{rejection:?}"),
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let (mut replaced, readiness) = (0, Readiness::waiting_for(&[]));
        // The sender continues while the producer is replaced.
        while sent.recv().await.is_some() {
            config.kafka.generation.advance();
            let before = producer.current.load_full();
            producer.replace_outdated(&readiness, Duration::from_secs(30)).await;
            replaced += usize::from(!Arc::ptr_eq(&before, &producer.current.load_full()));
        }
        sender.await.expect("it ends");
        assert!(replaced > 1, "the test replaces the producer while it sends");
        assert_eq!(producer.flush(Duration::from_secs(30)).await, 0);
        let read = tokio::task::spawn_blocking(move || timestamps(&brokers, RECORDS)).await.expect("it ends");
        assert_eq!(read, (1..=RECORDS).collect::<Vec<_>>(), "each record once, in the order in which they were sent");
    }

    /// Reads the timestamps of this many records.
    fn timestamps(brokers: &str, records: i64) -> Vec<i64> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "none")
            .create()
            .expect("the settings are good");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("msgs", 0, Offset::Beginning).expect("the offset is valid");
        consumer.assign(&list).expect("it is assigned");
        let mut found = Vec::new();
        while let Some(record) =
            (found.len() < records as usize).then(|| consumer.poll(Duration::from_secs(30))).flatten()
        {
            found.push(record.expect("it is a record").timestamp().to_millis().expect("it has a timestamp"));
        }
        found
    }
}
