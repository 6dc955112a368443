//! What the driver reaches in the service: librdkafka's consumer, the lanes, the tasks, and what operators see.

mod kafka;
mod reports;
mod surroundings;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use machine::consumer::Event;
use msg_common::admin::Readiness;
use msg_common::kafka::ClientError;
use msg_common::kafka::cause::Causes;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use super::events::EventQueue;
use super::lookup::Lookup;
use super::progress::ProgressStore;
use super::raw::{CommitQueue, RecordsQueue};
use super::stalls::FetchSilence;
use crate::lag::states::States;
use crate::lane::Handle as Lane;

/// What the driver works with.
pub struct Parts {
    /// The topic.
    pub topic: String,
    /// Where records go, by lane.
    pub lanes: Vec<Lane>,
    /// What lanes and tasks report.
    pub events: Receiver<Event>,
    /// Where tasks report to.
    pub report: Sender<Event>,
    /// Finds out where partitions start.
    pub lookup: Lookup,
    /// Notified of the offsets that are expected.
    pub silence: FetchSilence,
    /// Writes the progress rows.
    pub progress: ProgressStore,
    /// Where tasks run.
    pub runtime: Handle,
    /// Says what keeps the process from being ready.
    pub readiness: Readiness,
    /// Notified of what is being done with each partition.
    pub states: States,
    /// Start with the oldest record where the wanted one is deleted.
    pub start_at_oldest: bool,
    /// How far back dead letters count for the limit, in offsets.
    pub dead_letter_window: i64,
}

/// Says in readiness why the consumer is in no group, if an error of the client explains it. Shared with the client's callbacks.
#[derive(Clone)]
pub struct Explainer {
    causes: Causes,
    readiness: Readiness,
}

impl Explainer {
    /// Without an error yet.
    pub fn new(readiness: Readiness) -> Self {
        Explainer { causes: Causes::default(), readiness }
    }

    /// Notes an error of the client, with librdkafka's own text.
    pub fn explain(&self, error: &KafkaError, detail: &str) {
        self.causes.note(error, detail);
        if let Some(cause) = self.causes.recent() {
            self.readiness.explain("group", format!("cannot join the group: {cause}"));
        }
    }
}

/// The same, with what is kept between two turns.
pub struct Outside {
    parts: Parts,
    queues: Option<Queues>,
    started: Instant,
    /// Saves of progress that failed in a row.
    failed_saves: Arc<AtomicUsize>,
    /// Why the consumer cannot go on.
    fatal: Option<ClientError>,
    explainer: Explainer,
}

/// librdkafka's queues.
struct Queues {
    events: EventQueue,
    records: RecordsQueue,
    commits: CommitQueue,
}

impl Outside {
    /// Without queues yet.
    pub fn new(parts: Parts, explainer: Explainer) -> Self {
        Outside { parts, queues: None, started: Instant::now(), failed_saves: Arc::default(), fatal: None, explainer }
    }

    /// Makes the queues. Once, before the first turn.
    pub fn open<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>) {
        let client = consumer.client();
        self.queues = Some(Queues {
            events: EventQueue::new(client),
            records: RecordsQueue::new(client),
            commits: CommitQueue::new(client),
        });
    }

    /// Destroys the queues. Before the consumer is dropped.
    pub fn close(&mut self) {
        self.queues = None;
    }

    /// Why the consumer cannot go on, if it cannot.
    pub fn fatal(&self) -> Option<ClientError> {
        self.fatal.clone()
    }
}

/// For one turn.
pub struct Io<'a, C: ConsumerContext> {
    /// librdkafka's consumer.
    pub consumer: &'a BaseConsumer<C>,
    /// All else.
    pub outside: &'a mut Outside,
}
