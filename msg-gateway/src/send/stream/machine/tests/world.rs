//! A driver of plain values: it carries the machine's actions out on counters, and compares every step with the model.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::{Duration, Instant};

use msg_common::limits::Limits;
use msg_common::proto::{
    Msg, Placement, SessionType, StreamSendEntry, StreamSendMsgRequest, StreamSendResult, send_result,
};
use prost::Message;
use rdkafka::types::RDKafkaErrorCode;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::budgets::{Budgets, Permit, permit, used};
use super::model::{Content, Ending, Entry, Model, Request};
use super::{MAX_FAILED, MAX_INFLIGHT, MAX_REPLY, MAX_RESULTS, MAX_WAIT, Step, UNTIL};
use crate::auth::rules::Caller;
use crate::producer::Report;
use crate::send::outcome::Outcome;
use crate::send::record::Record;
use crate::send::stream::machine::{Action, End, Machine, ResultsWait, Settings, Ticket, Waiting};
use crate::status::Failure;

pub(super) struct World {
    machine: Machine<Permit>,
    model: Model,
    start: Instant,
    budgets: Budgets,
    /// The number of records that may still be enqueued.
    capacity: usize,
    /// The capacity that is released just before the next listener exists.
    early_capacity: usize,
    /// Attempts without capacity since capacity was released last.
    failed_attempts: usize,
    /// Records without a report, of entries with or without a result.
    in_flight: Vec<u64>,
    rows: Vec<(u64, Permit)>,
    counts: BTreeMap<&'static str, u64>,
    has_memory: bool,
    has_waiters: bool,
    /// The error of the producer.
    rejection: Option<Failure>,
    has_ended: bool,
}

fn msg(inbox: u8, id: u8) -> Msg {
    Msg {
        recv_id: inbox.to_string(),
        send_id: "alice".into(),
        client_msg_id: id.to_string(),
        session_type: SessionType::Single.into(),
        content_type: "text/plain".into(),
        ..Msg::default()
    }
}

fn id_of(msg: &Msg) -> Uuid {
    let number = |text: &str| text.parse::<u128>().expect("it is a number");
    Uuid::from_u128(number(&msg.recv_id) * 1000 + number(&msg.client_msg_id))
}

impl World {
    pub(super) fn new() -> Self {
        let (start, budgets) = (Instant::now(), Budgets::new(MAX_RESULTS));
        let settings = Settings {
            limits: Limits { max_id_bytes: 8, max_content_bytes: 10 },
            caller: Caller::anyone(),
            id_of,
            max_wait: Duration::from_millis(MAX_WAIT),
            settle_time: Duration::ZERO,
            until: Some(start + Duration::from_millis(UNTIL)),
            max_inflight: MAX_INFLIGHT,
            max_failed: MAX_FAILED,
            max_reply: MAX_REPLY,
        };
        World {
            machine: Machine::new(settings, budgets.results.empty()),
            model: Model::default(),
            start,
            budgets,
            capacity: 3,
            early_capacity: 0,
            failed_attempts: 0,
            in_flight: Vec::new(),
            rows: Vec::new(),
            counts: BTreeMap::new(),
            has_memory: true,
            has_waiters: true,
            rejection: None,
            has_ended: false,
        }
    }

    /// Does one step, if it can happen now.
    pub(super) fn step(&mut self, step: Step) {
        if self.has_ended {
            return;
        }
        match step {
            Step::Request(entries, wait_for) if self.machine.may_read() => self.request(&entries, wait_for),
            Step::Report(at, outcome) if !self.in_flight.is_empty() => {
                let number = self.in_flight.remove(at % self.in_flight.len());
                self.capacity += 1;
                self.machine.report(Report { entry: number, outcome });
                self.model.report(number, outcome_of(outcome));
            }
            Step::Row(at, is_stored) if !self.rows.is_empty() => {
                let (correlation_id, _permit) = self.rows.remove(at % self.rows.len());
                let failure = Failure::NotStoredYet(Box::default());
                let result = if is_stored { Ok(Placement::default()) } else { Err(failure) };
                self.machine.stored(correlation_id, result);
                self.model.stored(correlation_id, if is_stored { "OK" } else { "NOT_STORED_YET" });
            }
            Step::Capacity(count) => {
                self.capacity += count;
                if let Some(Waiting::Capacity(_)) = self.machine.waiting() {
                    self.failed_attempts = 1;
                    self.model.is_retrying = true;
                    self.machine.capacity_released();
                }
            }
            Step::EarlyCapacity(count) => self.early_capacity = count,
            Step::Permits { granted } => self.permits(granted),
            Step::Reply if self.machine.has_results() => self.reply(),
            Step::Time(millis) => self.time(millis),
            Step::ConnectionEnding if self.machine.is_reading() => {
                self.machine.connection_ending();
                self.model.end(Ending::Failed("STREAM_ENDED"));
            }
            Step::HalfClose if self.machine.may_read() => {
                self.machine.half_closed();
                self.model.end(Ending::HalfClosed);
            }
            Step::Broken if self.machine.may_read() => {
                self.machine.broken(Status::internal("a test"));
                self.model.end(Ending::Broken);
            }
            Step::Memory(has_memory) => self.has_memory = has_memory,
            Step::Waiters(has_waiters) => self.has_waiters = has_waiters,
            Step::Producer(rejection) => self.rejection = rejection,
            _ => {}
        }
        self.act();
        if !self.has_ended {
            self.compare();
        }
    }

    /// Lets everything succeed, and half-closes: the stream has to end.
    pub(super) fn finish(mut self) {
        for step in [Step::Memory(true), Step::Waiters(true), Step::Producer(None)] {
            self.step(step);
        }
        for _ in 0..100 {
            for step in [
                Step::Report(0, Outcome::Stored { offset: Some(1) }),
                Step::Row(0, true),
                Step::Capacity(1),
                Step::Permits { granted: true },
                Step::Reply,
                Step::HalfClose,
            ] {
                self.step(step);
            }
        }
        assert!(self.has_ended, "the stream does not end");
        drop((self.machine, self.rows));
        assert_eq!(self.budgets.capacity_waits(), 0, "a listener is left");
        let Budgets { results, results_waits, capacity: _, memory, rows } = self.budgets;
        assert_eq!(
            [results, results_waits, memory, rows].map(|budget| used(&budget)),
            [0; 4],
            "permits are not released"
        );
    }

    fn request(&mut self, entries: &[Entry], wait_for: i32) {
        let to_proto = |entry: &Entry| StreamSendEntry {
            correlation_id: entry.correlation_id,
            msg: match entry.content {
                Content::Valid { inbox, id } => Some(msg(inbox, id)),
                Content::Invalid => Some(Msg { send_id: String::new(), ..msg(0, 0) }),
                Content::Missing => None,
            },
        };
        let is_valid = !entries.is_empty() && (0..=2).contains(&wait_for);
        let until_stored = wait_for == 2;
        let modelled = entries.iter().map(|entry| Entry { until_stored, ..*entry }).collect();
        self.model.request = Some(Request { entries: modelled, is_valid });
        self.failed_attempts = 0;
        self.machine.request(StreamSendMsgRequest { entries: entries.iter().map(to_proto).collect(), wait_for });
    }

    fn permits(&mut self, granted: bool) {
        let Some(Waiting::Permits(_)) = self.machine.waiting() else { return };
        let count = self.model.request.as_ref().expect("a request waits").entries.len();
        if !granted {
            self.machine.permits(Err(Failure::Overloaded("a test".into())));
            self.model.end(Ending::Failed("OVERLOADED"));
        } else if let Ok(permits) = self.budgets.results.try_acquire(count) {
            self.machine.permits(Ok(permits));
            self.model.check_request();
        }
    }

    fn reply(&mut self) {
        let (response, permits) = self.machine.reply();
        assert!((1..=MAX_REPLY).contains(&response.results.len()), "a reply has {} results", response.results.len());
        let held = used(&self.budgets.results);
        drop(permits);
        assert_eq!(held - used(&self.budgets.results), response.results.len(), "the permits of a reply");
        for result in response.results {
            assert_eq!(self.model.results.pop_front(), Some(read(result)), "expected result, then the found one");
        }
    }

    fn time(&mut self, millis: u64) {
        self.model.now += millis;
        let now = self.now();
        let is_due = self.model.next_due().is_some_and(|due| due <= self.model.now);
        let timer = self.machine.next_timeout();
        assert!(!is_due || timer.is_some_and(|timer| timer <= now), "the timer is late");
        if timer.is_some_and(|timer| timer <= now) {
            self.machine.time(now);
            self.model.expire();
            assert!(self.machine.next_timeout().is_none_or(|timer| timer > now), "the timer spins");
        }
    }

    /// Carries out all actions that are due.
    fn act(&mut self) {
        for _ in 0..1000 {
            match self.machine.next_action() {
                Action::AcquireResults(count) => {
                    assert_eq!(count, self.model.request.as_ref().expect("a request was read").entries.len());
                    let Ok(permits) = self.budgets.results.try_acquire(count) else {
                        self.machine.permits_exhausted();
                        continue;
                    };
                    self.machine.permits(Ok(permits));
                    self.model.check_request();
                }
                Action::AwaitResults { .. } if self.has_memory => {
                    let _memory = permit(&self.budgets.results_waits, 1);
                    self.machine.awaiting_permits(Ok(ResultsWait { permits: Box::pin(pending()), _memory }));
                }
                Action::AwaitResults { .. } => {
                    self.machine.awaiting_permits(Err(Failure::Overloaded("a test".into())));
                    self.model.end(Ending::Failed("OVERLOADED"));
                }
                Action::ReserveFailed(bytes) => {
                    assert_eq!(bytes > 0, self.model.has_failed(), "memory is held for failed entries");
                    if bytes == 0 || self.has_memory {
                        self.model.accept();
                        self.machine.reserved(Ok(()));
                    } else {
                        self.machine.reserved(Err(Failure::Overloaded("a test".into())));
                        self.model.end(Ending::Failed("OVERLOADED"));
                    }
                }
                Action::Enqueue { ticket, msg, until_stored } => self.enqueue(&ticket, msg, until_stored),
                Action::Listen => {
                    self.capacity += std::mem::take(&mut self.early_capacity);
                    self.machine.listening(self.budgets.capacity.wait_for_capacity());
                }
                Action::AcquireMemory(_) if self.capacity > 0 => panic!("released capacity is missed"),
                Action::AcquireMemory(bytes) if self.has_memory => {
                    self.machine.blocked(Ok(permit(&self.budgets.memory, bytes)), self.now());
                    self.model.block();
                }
                Action::AcquireMemory(_) => {
                    self.machine.blocked(Err(Failure::Overloaded("a test".into())), self.now());
                    self.model.reject_all();
                }
                Action::AwaitRow(row) => self.rows.push((row.correlation_id, row.permit)),
                Action::CheckTopic => {
                    assert!(std::mem::take(&mut self.model.is_check_due), "no outcome is unknown");
                }
                Action::Count(outcome, count) => *self.counts.entry(outcome).or_default() += count,
                Action::End(end) => {
                    assert!(self.model.is_done(), "the stream ends before its entries have results");
                    assert_eq!(Some(ending(end)), self.model.end);
                    self.has_ended = true;
                    return;
                }
                Action::Wait => return,
            }
        }
        panic!("the machine spins");
    }

    fn enqueue(&mut self, ticket: &Ticket, msg: Msg, until_stored: bool) {
        self.model.fail_heads();
        let head = self.model.queue.front().expect("nothing may be enqueued");
        let Content::Valid { inbox, id } = head.content else { panic!("an invalid entry is enqueued") };
        let expected = (inbox.to_string(), id.to_string(), head.until_stored);
        assert_eq!((msg.recv_id.clone(), msg.client_msg_id.clone(), until_stored), expected, "found, then expected");
        if self.capacity == 0 {
            self.failed_attempts += 1;
            assert!(self.failed_attempts <= 2, "an entry is attempted though no capacity was released");
            self.model.is_retrying = false;
            return self.machine.no_capacity(ticket, msg);
        }
        if until_stored && !self.has_waiters {
            self.model.fail_enqueue("OVERLOADED");
            return self.machine.not_enqueued(ticket, &msg.recv_id, Failure::Overloaded("a test".into()));
        }
        if let Some(failure) = self.rejection.clone() {
            self.model.fail_enqueue(failure.outcome());
            return self.machine.not_enqueued(ticket, &msg.recv_id, failure);
        }
        self.capacity -= 1;
        self.in_flight.push(ticket.number);
        self.model.enqueue(ticket.number);
        let row = until_stored.then(|| permit(&self.budgets.rows, 1));
        let pending = Record::new(msg, ticket.msg_id, 1).pending();
        self.machine.enqueued(ticket, pending, row, self.now());
    }

    /// Compares what can be seen of the machine while it waits.
    fn compare(&mut self) {
        let model = &mut self.model;
        if model.blocked_until.is_none() || model.is_retrying {
            model.fail_heads();
            assert!(model.queue.is_empty(), "entries are neither enqueued nor blocked");
            (model.blocked_until, model.is_retrying) = (None, false);
        }
        assert!(!model.is_done(), "the stream does not end");
        assert!(!model.is_check_due, "the topic is not checked after an unknown outcome");
        assert_eq!(self.counts, model.counts);
        assert_eq!(self.machine.may_read(), model.may_read());
        assert_eq!(self.machine.has_results(), !model.results.is_empty());
        assert_eq!(self.machine.awaits_reports(), !model.open.is_empty());
        let Budgets { results, results_waits, memory, rows, .. } = &self.budgets;
        assert_eq!(used(results), model.unfinished(), "permits for results");
        assert_eq!(used(results_waits), usize::from(model.request.is_some()), "waits for permits");
        assert_eq!(self.budgets.capacity_waits(), usize::from(model.blocked_until.is_some()), "waits for capacity");
        assert_eq!(used(memory) > 0, model.blocked_until.is_some(), "memory of blocked entries");
        assert_eq!(used(rows), model.waiters(), "permits of waiters");
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.model.now)
    }
}

pub(super) fn outcome_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored { .. } => "OK",
        Outcome::NotSent(RDKafkaErrorCode::InvalidTopic) => "NOT_SENT",
        Outcome::NotSent(code) => unreachable!("{code} is not tested"),
        Outcome::Unknown => "OUTCOME_UNKNOWN",
        Outcome::TooLarge => "TOO_LARGE",
    }
}

/// Returns the `correlation_id` and the outcome of a result.
fn read(StreamSendResult { correlation_id, result }: StreamSendResult) -> (u64, &'static str) {
    let error = match result.and_then(|result| result.result).expect("it has a result") {
        send_result::Result::Placement(_) => return (correlation_id, "OK"),
        send_result::Result::Error(error) => error,
    };
    let status = Status::with_details(error.code.into(), "", error.encode_to_vec().into());
    let reason = status.get_error_details().error_info().expect("it has a reason").reason.clone();
    let reasons =
        ["INVALID_FIELDS", "PREDECESSOR_FAILED", "NOT_SENT", "OUTCOME_UNKNOWN", "TOO_LARGE", "NOT_STORED_YET"];
    let reason = reasons.into_iter().find(|known| *known == reason).expect("the model has this reason");
    (correlation_id, if status.code() == Code::ResourceExhausted { "OVERLOADED" } else { reason })
}

fn ending(end: End) -> Ending {
    match end {
        End::HalfClosed => Ending::HalfClosed,
        End::Broken(_) => Ending::Broken,
        End::Failed(failure) => Ending::Failed(failure.outcome()),
    }
}
