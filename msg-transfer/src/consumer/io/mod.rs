//! The I/O of the driver: librdkafka's consumer, the lanes, the tasks, and the reports to operators.

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

/// The parts of the service that the driver uses.
pub(crate) struct Parts {
    pub topic: String,
    pub lanes: Vec<Lane>,
    pub events: Receiver<Event>,
    pub report: Sender<Event>,
    /// Reads the data that start offsets are resolved from.
    pub lookup: Lookup,
    /// Notified of the offsets that are expected.
    pub silence: FetchSilence,
    pub progress: ProgressStore,
    pub runtime: Handle,
    /// Receives the reasons why the process is not ready.
    pub readiness: Readiness,
    /// Receives the state of each partition.
    pub states: States,
    /// Start at the oldest record if the record at the start offset is deleted.
    pub start_at_oldest: bool,
    /// How far back dead letters count for the limit, in offsets.
    pub dead_letter_window: i64,
}

/// Reports in readiness why the consumer is in no group, if an error of the client explains it. Shared with the
/// client's callbacks.
#[derive(Clone)]
pub(crate) struct Explainer {
    causes: Causes,
    readiness: Readiness,
}

impl Explainer {
    /// Creates an explainer without an error.
    pub(crate) fn new(readiness: Readiness) -> Self {
        Explainer { causes: Causes::default(), readiness }
    }

    /// Records an error of the client, with librdkafka's own text.
    pub(crate) fn explain(&self, error: &KafkaError, detail: &str) {
        self.causes.note(error, detail);
        if let Some(cause) = self.causes.recent() {
            self.readiness.explain("group", format!("cannot join the group: {cause}"));
        }
    }
}

/// The parts, and the state that is kept between two turns.
pub(crate) struct Outside {
    parts: Parts,
    queues: Option<Queues>,
    started: Instant,
    /// The number of consecutive failures to save progress rows.
    failed_saves: Arc<AtomicUsize>,
    fatal: Option<ClientError>,
    explainer: Explainer,
}

struct Queues {
    events: EventQueue,
    records: RecordsQueue,
    commits: CommitQueue,
}

impl Outside {
    pub(crate) fn new(parts: Parts, explainer: Explainer) -> Self {
        Outside { parts, queues: None, started: Instant::now(), failed_saves: Arc::default(), fatal: None, explainer }
    }

    /// Creates the queues. Has to be called once, before the first turn.
    pub(crate) fn open<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>) {
        let client = consumer.client();
        self.queues = Some(Queues {
            events: EventQueue::new(client),
            records: RecordsQueue::new(client),
            commits: CommitQueue::new(client),
        });
    }

    /// Destroys the queues. Has to be called before the consumer is dropped.
    pub(crate) fn close(&mut self) {
        self.queues = None;
    }

    /// Returns why the consumer cannot continue, or `None` if it can.
    pub(crate) fn fatal(&self) -> Option<ClientError> {
        self.fatal.clone()
    }
}

pub(crate) struct Io<'a, C: ConsumerContext> {
    pub consumer: &'a BaseConsumer<C>,
    pub outside: &'a mut Outside,
}
