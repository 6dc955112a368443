//! A producer without a thread that polls it: librdkafka's threads wake a task of the runtime when there are events. One
//! wake-up of the task serves all reports of a batch, and the task wakes their callers from within the runtime, which
//! costs less than from outside of it. An idle producer wakes nothing.

use std::ffi::c_void;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A producer whose delivery reports and other events are polled by a task, until it is dropped.
pub struct PolledProducer<C: ProducerContext + 'static> {
    polled: Arc<Polled<C>>,
    /// Dropped after the producer: then the task does not get another reference to it.
    _stop: DropGuard,
}

struct Polled<C: ProducerContext + 'static> {
    // Dropped first: it refers to the client, which is a part of the producer.
    events: EventQueue,
    producer: BaseProducer<C>,
}

impl<C: ProducerContext + 'static> Polled<C> {
    /// Handles the next event. Returns whether there was one.
    fn poll_next(self: Arc<Self>) -> bool {
        let found = !self.events.is_empty();
        if found {
            self.producer.poll(Duration::ZERO);
        }
        // The producer was dropped in the meantime. To close it blocks, which a task must not do.
        if let Some(last) = Arc::into_inner(self) {
            tokio::task::spawn_blocking(move || drop(last));
        }
        found
    }
}

async fn poll<C: ProducerContext + 'static>(polled: Weak<Polled<C>>, arrived: Arc<Notify>) {
    loop {
        arrived.notified().await;
        while polled.upgrade().is_some_and(Polled::poll_next) {
            // Without this, the callers that were woken would wait until there are no more events.
            tokio::task::consume_budget().await;
        }
    }
}

impl<C: ProducerContext + 'static> FromClientConfigAndContext<C> for PolledProducer<C> {
    /// Fails outside of a runtime.
    fn from_config_and_context(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let runtime = Handle::try_current().map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        let producer = BaseProducer::from_config_and_context(config, context)?;
        let arrived = Arc::new(Notify::new());
        // SAFETY: the client is a part of the producer, which `Polled` drops after the queue.
        let events = unsafe { EventQueue::new(producer.client().native_ptr(), arrived.clone()) };
        // There may be events from before the queue notified of them.
        arrived.notify_one();
        let polled = Arc::new(Polled { events, producer });
        let stop = CancellationToken::new();
        runtime.spawn(stop.clone().run_until_cancelled_owned(poll(Arc::downgrade(&polled), arrived)));
        Ok(PolledProducer { polled, _stop: stop.drop_guard() })
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.polled.producer
    }
}

/// The queue of a client's events, which notifies of the first event after it was empty.
struct EventQueue {
    queue: NonNull<rd::rd_kafka_queue_t>,
    /// The callback has a pointer to it.
    _arrived: Arc<Notify>,
}

// SAFETY: librdkafka's queues may be used by any thread.
unsafe impl Send for EventQueue {}
// SAFETY: as above.
unsafe impl Sync for EventQueue {}

impl EventQueue {
    /// # Safety
    /// The client exists until the queue is dropped.
    unsafe fn new(client: *mut rd::rd_kafka_t, arrived: Arc<Notify>) -> Self {
        // SAFETY: the client exists; the callback and its pointer are removed when this is dropped.
        let queue = unsafe {
            let queue = rd::rd_kafka_queue_get_main(client);
            let target = Arc::as_ptr(&arrived).cast_mut().cast::<c_void>();
            rd::rd_kafka_queue_cb_event_enable(queue, Some(notify), target);
            queue
        };
        EventQueue { queue: NonNull::new(queue).expect("each client has one"), _arrived: arrived }
    }

    fn is_empty(&self) -> bool {
        // SAFETY: this owns a reference to the queue.
        unsafe { rd::rd_kafka_queue_length(self.queue.as_ptr()) == 0 }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        // SAFETY: this owns a reference to the queue. The callback runs under the queue's lock, which its removal acquires,
        // so it does not run after that.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            rd::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// Wakes the task. librdkafka's threads call it under the lock of the queue, so it must not call librdkafka.
unsafe extern "C" fn notify(_: *mut rd::rd_kafka_t, arrived: *mut c_void) {
    // SAFETY: it is the pointer that was given to librdkafka, and it is valid until the callback is removed.
    unsafe { &*arrived.cast_const().cast::<Notify>() }.notify_one();
}

#[cfg(test)]
mod tests {
    use rdkafka::client::ClientContext;
    use rdkafka::message::DeliveryResult;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::BaseRecord;
    use tokio::sync::mpsc;

    use super::*;

    /// How long a test waits for what has to happen.
    const TIMEOUT: Duration = Duration::from_secs(30);

    struct Reports(mpsc::UnboundedSender<bool>);

    impl ClientContext for Reports {}

    impl ProducerContext for Reports {
        type DeliveryOpaque = ();

        fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
            let _ = self.0.send(result.is_ok());
        }
    }

    fn create(config: &ClientConfig) -> (PolledProducer<Reports>, mpsc::UnboundedReceiver<bool>) {
        let (sender, reports) = mpsc::unbounded_channel();
        (PolledProducer::from_config_and_context(config, Reports(sender)).expect("no broker is needed"), reports)
    }

    #[test]
    fn missing_runtime_is_an_error() {
        let (sender, _) = mpsc::unbounded_channel();
        assert!(PolledProducer::from_config_and_context(&ClientConfig::new(), Reports(sender)).is_err());
    }

    #[tokio::test]
    async fn every_record_is_reported_by_the_task() {
        const RECORDS: usize = 200;
        let cluster = MockCluster::new(1).expect("the cluster starts");
        cluster.create_topic("msgs", 4, 1).expect("the topic is created");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("linger.ms", "0");
        let (producer, mut reports) = create(&config);
        // One record after another, so that the queue of events is often empty and often not.
        for round in 0..RECORDS {
            for partition in 0..=3.min(i32::try_from(round).expect("it is small")) {
                let record = BaseRecord::<(), _>::to("msgs").partition(partition).payload("hi");
                producer.send(record).map_err(|(error, _)| error).expect("it is enqueued");
            }
            let received = async {
                for _ in 0..=3.min(round) {
                    assert_eq!(reports.recv().await, Some(true));
                }
            };
            tokio::time::timeout(TIMEOUT, received).await.expect("each record is reported");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dropped_producer_reports_its_records_and_stops_its_task() {
        let mut config = ClientConfig::new();
        // No broker listens there.
        config.set("bootstrap.servers", "127.0.0.1:1");
        let (producer, mut reports) = create(&config);
        let task = Arc::downgrade(&producer.polled.events._arrived);
        let record = BaseRecord::<(), _>::to("msgs").partition(0).payload("hi");
        producer.send(record).map_err(|(error, _)| error).expect("it is enqueued");
        tokio::task::spawn_blocking(move || drop(producer)).await.expect("it does not panic");
        let ended = async {
            assert_eq!(reports.recv().await, Some(false));
            // The context is dropped with the client.
            assert_eq!(reports.recv().await, None);
            while task.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, ended).await.expect("the client and the task end");
    }
}
