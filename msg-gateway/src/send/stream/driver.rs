//! Drives the machine of a stream: turns requests, reports, rows, permits, capacity and time into its events, and
//! carries its actions out with the producer and the budgets.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use msg_common::limits::MAX_REQUEST_MSGS;
use msg_common::proto::{Msg, Placement, StreamSendMsgRequest};
use tokio::sync::mpsc;
use tonic::Status;

use crate::budget::{LimitReached, Permit};
use crate::incoming::Lifetime;
use crate::metrics::answered;
use crate::producer::{Admission, Report, ReportSender};
use crate::quota::Account;
use crate::router::with_reason_of_transport;
use crate::send::Sender;
use crate::send::record::{Record, amount_in_flight, not_accepting};
use crate::send::stored::Awaited;
use crate::send::stream::machine::{Action, End, Machine, ResultsWait, Row, Ticket, Waiting};
use crate::send::stream::replies::{Reply, ReplySender};
use crate::status::Failure;

/// After this many entries, other tasks get a turn: a request has up to 1,000 entries, which need milliseconds.
const ENTRIES_PER_TURN: usize = 64;
/// A timer has to be set to some time, even if nothing is due.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

pub(super) struct Driver {
    sender: Arc<Sender>,
    account: Account,
    traceparent: Option<Vec<u8>>,
    report_sender: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// The permit for the memory of the failed entries that have to be sent again.
    failed_memory: Permit,
    /// The waits for the rows of accepted entries, each with the entry's `correlation_id`.
    rows: FuturesUnordered<BoxFuture<'static, (u64, Result<Placement, Failure>)>>,
}

impl Driver {
    pub(super) fn new(sender: Arc<Sender>, account: Account, traceparent: Option<Vec<u8>>) -> Self {
        let (report_sender, reports) = mpsc::unbounded_channel();
        let failed_memory = sender.budgets.blocked_requests.empty();
        Driver { sender, account, traceparent, report_sender, reports, failed_memory, rows: FuturesUnordered::new() }
    }

    /// Serves the stream until its last reply was read.
    pub(super) async fn run(
        mut self,
        mut machine: Machine<Awaited>,
        requests: impl Stream<Item = Result<StreamSendMsgRequest, Status>>,
        reply_sender: ReplySender,
        lifetime: Lifetime,
    ) {
        let ReplySender { replies, done: all_read } = reply_sender;
        let mut requests = pin!(requests);
        let mut all_read = pin!(all_read);
        let mut ending = pin!(lifetime.ending());
        let mut timer_at = Instant::now() + NOTHING_DUE;
        let mut timer = pin!(tokio::time::sleep_until(timer_at.into()));
        let mut ready = Vec::new();
        let sender = self.sender.clone();
        let end = loop {
            // Entries wait shortly while the producer is replaced.
            let admission = sender.producer.admit().await;
            let end = self.act(&mut machine, admission.as_ref()).await;
            drop(admission);
            if let Some(end) = end {
                break end;
            }
            if let Some(due) = machine.next_timeout().filter(|due| *due != timer_at) {
                timer_at = due;
                timer.as_mut().reset(due.into());
            }
            tokio::select! {
                // Reports first and requests last: then a reply has many results, and permits in flight are released
                // before more are acquired.
                biased;
                _ = &mut all_read => return answered("StreamSendMsg", "CANCELLED"),
                _ = self.reports.recv_many(&mut ready, MAX_REQUEST_MSGS), if machine.awaits_reports() => {
                    ready.drain(..).for_each(|report| machine.report(report));
                }
                Some((correlation_id, result)) = self.rows.next(), if !self.rows.is_empty() => {
                    machine.stored(correlation_id, result);
                }
                Ok(slot) = replies.reserve(), if machine.has_results() => {
                    let (response, permits) = machine.reply();
                    slot.send(Ok(Reply { response, permits }));
                }
                () = &mut ending, if machine.is_reading() => machine.connection_ending(),
                () = &mut timer => {
                    let now = Instant::now();
                    machine.time(now);
                    timer_at = now + NOTHING_DUE;
                    timer.as_mut().reset(timer_at.into());
                }
                waited = waited(machine.waiting()) => match waited {
                    Waited::Permits(permits) => machine.permits(permits.map_err(Failure::from)),
                    Waited::Capacity => machine.capacity_released(),
                },
                request = requests.next(), if machine.may_read() => match request {
                    Some(Ok(request)) => machine.request(request),
                    Some(Err(status)) => machine.broken(status),
                    None => machine.half_closed(),
                },
            }
        };
        let (end, outcome) = into_status(end);
        answered("StreamSendMsg", outcome);
        if let Err(status) = end {
            let _ = replies.send(Err(status)).await;
        }
        drop(replies);
        let _ = all_read.await;
    }

    /// Carries out all actions that are due. Without an admission no entry can be sent. Returns the end of the stream.
    async fn act(&mut self, machine: &mut Machine<Awaited>, admission: Option<&Admission<'_>>) -> Option<End> {
        let budgets = self.sender.budgets.clone();
        let mut entries = 0;
        loop {
            match machine.next_action() {
                Action::AcquireResults(count) => match budgets.stream_results.try_acquire(count) {
                    Ok(permits) => machine.permits(Ok(permits)),
                    Err(_) => machine.permits_exhausted(),
                },
                Action::AwaitResults { count, bytes } => machine.awaiting_permits(self.await_results(count, bytes)),
                Action::ReserveFailed(bytes) => {
                    machine.reserved(self.failed_memory.try_resize(bytes).map_err(Failure::from));
                }
                Action::Enqueue { ticket, msg, until_stored } => {
                    self.enqueue(machine, admission, &ticket, msg, until_stored);
                    entries += 1;
                    if entries % ENTRIES_PER_TURN == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Action::Listen => machine.listening(budgets.in_flight.wait_for_capacity()),
                Action::AcquireMemory(bytes) => {
                    let memory = budgets.blocked_requests.try_acquire(bytes);
                    machine.blocked(memory.map_err(Failure::from), Instant::now());
                }
                Action::AwaitRow(row) => self.await_row(row),
                Action::CheckTopic => self.sender.check_topic(),
                Action::Count(outcome, count) => self.sender.stream_metrics.add(outcome, count),
                Action::End(end) => return Some(end),
                Action::Wait => return None,
            }
        }
    }

    fn enqueue(
        &self,
        machine: &mut Machine<Awaited>,
        admission: Option<&Admission<'_>>,
        ticket: &Ticket,
        msg: Msg,
        until_stored: bool,
    ) {
        let sender = &self.sender;
        let Some(admission) = admission else {
            return machine.not_enqueued(ticket, &msg.recv_id, not_accepting());
        };
        let Ok(permit) = sender.budgets.in_flight.try_acquire_for(self.account.caller, amount_in_flight(&msg)) else {
            return machine.no_capacity(ticket, msg);
        };
        let row = match until_stored.then(|| Awaited::new(&sender.waiters, &msg)).transpose() {
            Ok(row) => row,
            Err(failure) => return machine.not_enqueued(ticket, &msg.recv_id, failure),
        };
        // Last: an entry that waits or fails for another reason must not use up a quota. An entry that fails here blocks
        // its inbox, as every entry that was not sent.
        if let Err(failure) = sender.rates.take(&msg, self.account) {
            return machine.not_enqueued(ticket, &msg.recv_id, failure);
        }
        let report_to = ReportSender::Many { entry: ticket.number, reports: self.report_sender.clone() };
        let record = Record::new(msg, ticket.msg_id, sender.partitions);
        let (pending, enqueued) = record.enqueue(admission, self.traceparent.as_deref(), report_to, permit);
        match enqueued {
            Ok(()) => machine.enqueued(ticket, pending, row, Instant::now()),
            Err(failure) => machine.not_enqueued(ticket, &pending.recv_id, failure),
        }
    }

    /// Waits for permits for the results of a request. A caller that reads no results must not make the gateway read
    /// on, so a request without permits counts among the requests that wait for capacity.
    fn await_results(&self, count: usize, bytes: usize) -> Result<ResultsWait, Failure> {
        let memory = self.sender.budgets.blocked_requests.try_acquire(bytes);
        let results = self.sender.budgets.stream_results.clone();
        let _memory = memory.map_err(|_| results.reached(count))?;
        let by = Instant::now() + self.sender.timing.max_wait;
        let permits = Box::pin(async move { results.acquire_by(count, by).await });
        Ok(ResultsWait { permits, _memory })
    }

    fn await_row(&self, row: Row<Awaited>) {
        let Row { correlation_id, recv_id, placement, deadline, permit } = row;
        let stored = async move { (correlation_id, permit.stored(recv_id, placement, deadline).await) };
        self.rows.push(Box::pin(stored));
    }
}

/// The end of the wait of a request.
enum Waited {
    Permits(Result<Permit, LimitReached>),
    Capacity,
}

async fn waited(waiting: Option<Waiting<'_>>) -> Waited {
    match waiting {
        Some(Waiting::Permits(wait)) => Waited::Permits(wait.permits.as_mut().await),
        Some(Waiting::Capacity(capacity)) => {
            capacity.released().await;
            Waited::Capacity
        }
        None => std::future::pending().await,
    }
}

/// Returns the status that ends the stream, and the outcome in metrics.
fn into_status(end: End) -> (Result<(), Status>, &'static str) {
    match end {
        End::HalfClosed => (Ok(()), "OK"),
        End::Failed(failure) => {
            let outcome = failure.outcome();
            (Err(failure.into()), outcome)
        }
        End::Broken(status) if status.details().is_empty() => (Err(with_reason_of_transport(&status)), "BAD_REQUEST"),
        // The gateway's own error: for example, a request was not received in time.
        End::Broken(status) => (Err(status), "NOT_SENT"),
    }
}
