//! The code of both services that does no I/O, run many times: a process of its own, in which callgrind counts
//! instructions.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use machine::consumer::start::Start;
use machine::consumer::{self, Action, Event, Limit, RecordRef};
use machine::lane::{self, Entry, Kind, Message, Request, Response};
use machine::{Assignment, LeaderEpoch, NextOffset, Partition, Progress, RecordOffset};
use msg_common::limits::{DEFAULT_CONTENT_BYTES, Limits};
use msg_common::proto::{BatchSendMsgRequest, Msg};
use msg_common::record::{self, Record};
use msg_common::table::{self, StoredAt};
use prost::Message as _;
use uuid::Uuid;

use super::callers::msg;
use super::librdkafka::Encoded;
use super::{Load, PARTITIONS};

/// A part of the name of the functions whose instructions are counted. They must not contain closures: callgrind stops
/// counting when it enters a second function with such a name.
pub(crate) const COUNTED: &str = "counted_part";
/// Messages of a request.
const REQUEST: usize = 100;
/// Records of a batch.
const BATCH: usize = 1000;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Part {
    Gateway,
    Transfer,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PureArgs {
    part: Part,
    messages: usize,
}

pub(crate) fn name(part: Part) -> &'static str {
    match part {
        Part::Gateway => "gateway",
        Part::Transfer => "transfer",
    }
}

pub(crate) fn run(args: &PureArgs) {
    // The same messages in each run.
    let load = Load { messages: args.messages, ..Load::of(1000, 256) };
    let body: Bytes = (0..load.body).map(|at| b'a' + u8::try_from(at * 7 % 26).expect("below 26")).collect();
    let msgs = (0..load.messages).map(|n| msg(&load, &body, "sender", n));
    match args.part {
        Part::Gateway => gateway(msgs),
        Part::Transfer => Transfer::new().run(msgs),
    }
}

/// Sends the messages in requests of 100.
fn gateway(msgs: impl Iterator<Item = Msg>) {
    let limits = Limits { max_id_bytes: 256, max_content_bytes: DEFAULT_CONTENT_BYTES };
    let msgs: Vec<Msg> = msgs.collect();
    let request = |msgs: &[Msg]| BatchSendMsgRequest { msgs: msgs.to_vec(), wait_for: 0 }.encode_to_vec().into();
    let requests: Vec<Bytes> = msgs.chunks(REQUEST).map(request).collect();
    gateway_counted_part(&limits, requests);
}

#[inline(never)]
fn gateway_counted_part(limits: &Limits, requests: Vec<Bytes>) {
    for request in requests {
        black_box(msg_gateway::send::offline::batch(limits, request, PARTITIONS));
    }
}

/// A record as the lanes have it.
struct Decoded(Record);

impl Message for Decoded {
    fn recv_id(&self) -> &str {
        &self.0.msg.recv_id
    }

    fn msg_id(&self) -> Uuid {
        self.0.msg_id
    }
}

/// The consumer's machine and one lane's, on a Kafka and a database that accept everything.
struct Transfer {
    consumer: consumer::Machine,
    lane: lane::Machine<Decoded>,
    assignments: Vec<Arc<Assignment>>,
    /// The next offset of each partition.
    offsets: Vec<i64>,
    actions: Vec<Action>,
    events: Vec<Event>,
}

impl Transfer {
    fn new() -> Transfer {
        let settings = lane::Settings {
            cached_inboxes: NonZeroUsize::new(25_000).expect("not 0"),
            guard: false,
            insert_new: true,
            huge: 1 << 20,
            batch_records: 5000,
            batch_bytes: 8 << 20,
            conflict_limit: 1,
            conflict_window: 100,
        };
        let mut transfer = Transfer {
            consumer: consumer::Machine::new(consumer::Settings {
                commit_records: 10_000,
                commit_interval: 1000,
                max_inflight_bytes: 64 << 20,
                max_inflight_records: 100_000,
                max_partition_bytes: 64 << 20,
                max_partition_records: 100_000,
                dead_letters: Limit { count: 100, percent: 1, window: 10_000 },
                fetch_backoff: |_| 1000,
                fetch_recovery: 1000,
            }),
            lane: lane::Machine::new(0, settings),
            assignments: Vec::new(),
            offsets: vec![0; usize::try_from(PARTITIONS).expect("a count")],
            actions: Vec::new(),
            events: vec![Event::Assigned((0..PARTITIONS).collect())],
        };
        transfer.handle_events();
        transfer
    }

    fn run(mut self, msgs: impl Iterator<Item = Msg>) {
        let mut records: Vec<Encoded> = msgs.map(|msg| Encoded::new(msg, 1_700_000_000_000, PARTITIONS)).collect();
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(BATCH));
            self.counted_part(std::mem::replace(&mut records, rest));
        }
    }

    #[inline(never)]
    fn counted_part(&mut self, records: Vec<Encoded>) {
        self.store(records);
    }

    /// Stores a batch.
    fn store(&mut self, records: Vec<Encoded>) {
        let entries = records.into_iter().map(|record| self.receive(record)).collect();
        let mut request = self.lane.begin(entries, &mut self.events);
        while !matches!(request, Request::Done(_)) {
            let response = self.respond(&request);
            request = self.lane.handle(response, &mut self.events);
        }
        self.handle_events();
    }

    fn receive(&mut self, record: Encoded) -> Entry<Decoded> {
        let partition = record.partition;
        let at = usize::try_from(partition).expect("a partition");
        let offset = RecordOffset(self.offsets[at]);
        self.offsets[at] += 1;
        let (key, value) = record.into_parts();
        let bytes = key.len() + value.len();
        let epoch = self.consumer.receive(partition, (offset, LeaderEpoch(0)), bytes, &mut self.actions);
        let record_ref = RecordRef { partition, epoch: epoch.expect("it is fetched"), offset, bytes };
        let record = record::decode(Some(key.as_bytes()), Some(b"1"), Some(value.into())).expect("it is valid");
        Entry::new(self.assignments[at].clone(), record_ref, Kind::Message, Decoded(record))
    }

    /// Responds like a database that accepts every row, and encodes the rows for the statement.
    fn respond(&self, request: &Request) -> Response {
        match request {
            Request::LastSeqs(entries) => Response::Seqs(vec![0; entries.len()]),
            Request::Insert(rows) | Request::InsertNew(rows) => {
                let entries = self.lane.entries();
                let stored_at = |row: &lane::NumberedEntry| {
                    let RecordRef { partition, offset, .. } = entries[row.entry].record_ref;
                    StoredAt { seq: row.seq, partition, offset: offset.0 }
                };
                let stored_at: Vec<StoredAt> = rows.iter().map(stored_at).collect();
                let records: Vec<&Record> = rows.iter().map(|row| &entries[row.entry].body.0).collect();
                if matches!(request, Request::InsertNew(_)) {
                    let mut data = BytesMut::new();
                    table::copy_rows(&records, &stored_at, &mut data);
                    black_box(data);
                } else {
                    black_box(table::parameters(&table::insert_values(&records, &stored_at)));
                }
                Response::Count(rows.len())
            }
            Request::Connect(_) | Request::Begin | Request::Commit => Response::Ok,
            other => unreachable!("all rows are new and accepted: {other:?}"),
        }
    }

    /// Passes the lane's events to the consumer's machine, and reports each of its actions as done.
    fn handle_events(&mut self) {
        while let Some(event) = self.events.pop() {
            self.consumer.handle(event, 0, &mut self.actions);
            for action in self.actions.drain(..) {
                match action {
                    Action::ResolveStart { partition, epoch } => {
                        let assignment = Assignment::new(epoch);
                        assignment.start_read(Uuid::nil(), 1);
                        self.assignments.push(Arc::new(assignment));
                        self.events.push(started(partition, epoch));
                    }
                    Action::SaveProgress(_) => self.events.push(Event::ProgressSaved),
                    Action::Commit(_) => self.events.push(Event::Committed),
                    _ => {}
                }
            }
        }
    }
}

fn started(partition: Partition, epoch: u64) -> Event {
    let start = Start::At(Progress { next: NextOffset(0), leader_epoch: LeaderEpoch(0) });
    Event::StartResolved { partition, epoch, start: start.into(), topic_id: Uuid::nil(), dead: Vec::new() }
}
