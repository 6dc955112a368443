//! BatchSendMsg: many messages that are sent together, each with its own result.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use msg_common::limits::Violation;
use msg_common::proto::{BatchSendMsgRequest, BatchSendMsgResponse, Msg, Placement};
use prost::Message;
use tokio::sync::mpsc;

use crate::budget::{Amount, Permit};
use crate::producer::{Report, ReportSender};
use crate::response_permit::{ResponsePermit, SMALL_RESPONSE};
use crate::send::outcome::Outcome;
use crate::send::record::{PendingSend, Record, amount_in_flight, id_of, not_accepting};
use crate::send::stored::Awaited;
use crate::send::{Call, Sender, check_count, check_entry, into_result, trace, until_stored};
use crate::status::Failure;

/// A response of this many bytes needs a permit of its own until it is written. A smaller one needs only the permit
/// for its bytes.
const LARGE_RESPONSE: usize = 64 << 10;

/// More bytes than any result has. The largest ones are errors that name many fields.
const MAX_RESULT_BYTES: usize = 1600;

impl Sender {
    /// Sends the messages of a batch. If the state of the gateway does not allow it, the whole batch is rejected
    /// before anything is sent. A message that breaks a rule gets its own error.
    pub(crate) async fn send_batch(
        &self,
        request: BatchSendMsgRequest,
        call: Call<'_>,
    ) -> Result<(BatchSendMsgResponse, Option<Arc<ResponsePermit>>), Failure> {
        let until_stored = match (check_count("msgs", request.msgs.len()), until_stored(request.wait_for)) {
            (None, Ok(true)) if request.msgs.len() > self.max_waiting => {
                // The batch can never fit, so the error must not suggest a retry.
                let description = format!("has {} entries; at most {} may wait", request.msgs.len(), self.max_waiting);
                return Err(Failure::Invalid(vec![Violation { field: "msgs".into(), description }]));
            }
            (None, Ok(until_stored)) => until_stored,
            (count, wait_for) => return Err(Failure::Invalid(count.into_iter().chain(wait_for.err()).collect())),
        };
        let respond_by = self.timing.respond_by(call.arrival, call.timeout, Instant::now())?;
        let permit = self.acquire_batch(request.msgs.len())?;
        let mut memory = self.acquire_response_bytes(request.msgs.len())?;
        let mut batch = Batch::new(request.msgs.len(), until_stored);
        let mut good = Vec::with_capacity(request.msgs.len());
        for (entry, msg) in request.msgs.into_iter().enumerate() {
            match check_entry(&self.limits, call.caller, &msg, || format!("msgs[{entry}]")) {
                Ok(()) => good.push(Good { entry, amount: amount_in_flight(&msg), msg }),
                Err(failure) => batch.set_result(entry, &msg.recv_id, Err(failure)),
            }
        }
        if !good.is_empty() {
            self.send_good(&mut batch, good, respond_by, call).await?;
        }
        let count = |result: Result<Placement, Failure>| {
            self.batch_metrics.count(&result);
            into_result(result)
        };
        let results = batch.results.into_iter().map(|result| count(result.expect("each has one by now"))).collect();
        let response = BatchSendMsgResponse { results };
        let bytes = response.encoded_len();
        if let Some(memory) = &mut memory {
            // A buffer that grows while a response is encoded has up to twice its size.
            memory.shrink(2 * bytes);
        }
        let permit = permit.filter(|_| bytes >= LARGE_RESPONSE);
        Ok((response, Some(ResponsePermit::new(permit.into_iter().chain(memory)))))
    }

    /// Acquires a permit for a batch whose response may be large. Acquire it before any entry is sent: after that, the batch
    /// cannot be rejected.
    fn acquire_batch(&self, msgs: usize) -> Result<Option<Permit>, Failure> {
        if msgs * MAX_RESULT_BYTES < LARGE_RESPONSE {
            return Ok(None);
        }
        Ok(Some(self.budgets.batches.try_acquire(1)?))
    }

    /// Acquires the maximum bytes of the results, also before any entry is sent.
    fn acquire_response_bytes(&self, msgs: usize) -> Result<Option<Permit>, Failure> {
        let bytes = msgs * MAX_RESULT_BYTES;
        if bytes < SMALL_RESPONSE { Ok(None) } else { Ok(Some(self.budgets.responses.try_acquire(bytes)?)) }
    }

    async fn send_good(
        &self,
        batch: &mut Batch,
        good: Vec<Good>,
        respond_by: Instant,
        call: Call<'_>,
    ) -> Result<(), Failure> {
        if self.producer.closed().is_some() {
            return Err(not_accepting());
        }
        let mut amount = Amount::default();
        good.iter().for_each(|good| amount += good.amount);
        let mut permit = self.budgets.in_flight.try_acquire_for(call.account.caller, amount)?;
        if batch.until_stored {
            for good in &good {
                batch.awaited[good.entry] = Some(Awaited::new(&self.waiters, &good.msg)?);
            }
        }
        let traceparent = call.traceparent.filter(|value| trace::is_valid(value));
        let admission = self.admit(respond_by).await?;
        let (sender, mut reports) = mpsc::unbounded_channel();
        let result_of = |pending: &PendingSend, outcome| self.result_of(pending, outcome);
        // Do not await here. Otherwise a dropped future could leave a part of the batch enqueued.
        batch.enqueue(
            good,
            |msg| self.rates.take(msg, call.account),
            |Good { entry, amount, msg }| {
                let msg_id = id_of(&msg);
                let report_to = ReportSender::Many { entry: entry as u64, reports: sender.clone() };
                let record = Record::new(msg, msg_id, self.partitions);
                record.enqueue(&admission, traceparent, report_to, permit.split(amount))
            },
            || reports.try_recv().ok(),
            result_of,
        );
        drop((permit, admission));
        // Now only the records have it: the channel ends with the last report.
        drop(sender);

        let mut stored = FuturesUnordered::new();
        let mut ready = Vec::new();
        let deadline = tokio::time::sleep_until(respond_by.into());
        tokio::pin!(deadline);
        loop {
            for (entry, pending, placement) in batch.accepted.drain(..) {
                let awaited = batch.awaited[entry].take().expect("each good entry has one");
                stored.push(async move { (entry, awaited.stored(pending.recv_id, placement, respond_by).await) });
            }
            if batch.unreported == 0 && stored.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                count = reports.recv_many(&mut ready, batch.unreported), if batch.unreported > 0 => {
                    ready.drain(..).for_each(|report| batch.report(report, result_of));
                    if count == 0 {
                        batch.time_out(result_of);
                    }
                }
                Some((entry, result)) = stored.next(), if !stored.is_empty() => batch.results[entry] = Some(result),
                () = &mut deadline, if batch.unreported > 0 => batch.time_out(result_of),
            }
        }
    }
}

/// An entry that breaks no rule.
struct Good {
    entry: usize,
    amount: Amount,
    msg: Msg,
}

/// The progress of the entries of a batch.
struct Batch {
    until_stored: bool,
    /// The waiter of each entry, until its row is awaited or the entry failed.
    awaited: Vec<Option<Awaited>>,
    results: Vec<Option<Result<Placement, Failure>>>,
    /// The enqueued sends without a report, by entry.
    pending: Vec<Option<PendingSend>>,
    unreported: usize,
    /// Accepted entries whose rows have to be awaited.
    accepted: Vec<(usize, PendingSend, Placement)>,
    /// Inboxes to which no further entry may be sent, because one failed.
    gaps: HashSet<String>,
}

impl Batch {
    fn new(entries: usize, until_stored: bool) -> Self {
        let (mut results, mut pending, mut awaited) = (Vec::new(), Vec::new(), Vec::new());
        if until_stored {
            awaited.resize_with(entries, || None);
        }
        results.resize_with(entries, || None);
        pending.resize_with(entries, || None);
        Batch { until_stored, awaited, results, pending, unreported: 0, accepted: Vec::new(), gaps: HashSet::new() }
    }

    fn set_result(&mut self, entry: usize, recv_id: &str, result: Result<Placement, Failure>) {
        if result.as_ref().is_err_and(Failure::leaves_a_gap) && !self.gaps.contains(recv_id) {
            self.gaps.insert(recv_id.to_owned());
        }
        if let Some(awaited) = self.awaited.get_mut(entry) {
            // Its row is not awaited any more: release the waiter's permit.
            *awaited = None;
        }
        self.results[entry] = Some(result);
    }

    /// Enqueues the entries in order. A report may arrive meanwhile, and may block later entries to the same inbox.
    /// `check_quota` rejects entries one by one: a batch may be of many senders, and one must not fail the others.
    fn enqueue(
        &mut self,
        good: Vec<Good>,
        check_quota: impl Fn(&Msg) -> Result<(), Failure>,
        mut enqueue: impl FnMut(Good) -> (PendingSend, Result<(), Failure>),
        mut next_report: impl FnMut() -> Option<Report>,
        result_of: impl Fn(&PendingSend, Outcome) -> Result<Placement, Failure>,
    ) {
        for good in good {
            while let Some(report) = next_report() {
                self.report(report, &result_of);
            }
            let entry = good.entry;
            if self.gaps.contains(&good.msg.recv_id) {
                self.set_result(entry, &good.msg.recv_id, Err(Failure::PredecessorFailed));
                continue;
            }
            if let Err(failure) = check_quota(&good.msg) {
                self.set_result(entry, &good.msg.recv_id, Err(failure));
                continue;
            }
            match enqueue(good) {
                (pending, Ok(())) => {
                    self.pending[entry] = Some(pending);
                    self.unreported += 1;
                }
                (pending, Err(failure)) => self.set_result(entry, &pending.recv_id, Err(failure)),
            }
        }
    }

    fn report(&mut self, report: Report, result_of: impl Fn(&PendingSend, Outcome) -> Result<Placement, Failure>) {
        let entry = usize::try_from(report.entry).expect("it was one");
        let Some(pending) = self.pending[entry].take() else { return };
        self.unreported -= 1;
        match result_of(&pending, report.outcome) {
            Ok(placement) if self.until_stored => self.accepted.push((entry, pending, placement)),
            result => self.set_result(entry, &pending.recv_id, result),
        }
    }

    /// Gives all entries without a report an unknown outcome.
    fn time_out(&mut self, result_of: impl Fn(&PendingSend, Outcome) -> Result<Placement, Failure>) {
        for entry in 0..self.pending.len() {
            self.report(Report { entry: entry as u64, outcome: Outcome::Unknown }, &result_of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use msg_common::proto::ErrorReason;
    use rdkafka::types::RDKafkaErrorCode;

    use super::*;

    fn good(entry: usize, recv_id: &str) -> Good {
        Good { entry, amount: 1.into(), msg: Msg { recv_id: recv_id.into(), ..Msg::default() } }
    }

    fn pending(recv_id: &str) -> PendingSend {
        let msg = Msg { recv_id: recv_id.into(), ..Msg::default() };
        Record::new(msg.clone(), id_of(&msg), 1).pending()
    }

    fn result_of(pending: &PendingSend, outcome: Outcome) -> Result<Placement, Failure> {
        match outcome {
            Outcome::Stored { offset } => Ok(pending.placement(offset)),
            Outcome::NotSent(code) => Err(Failure::NotSent(code.to_string())),
            Outcome::TooLarge => Err(Failure::TooLarge("x".into())),
            Outcome::Unknown => Err(pending.unknown(Duration::ZERO)),
        }
    }

    /// A batch to these inboxes. The producer returns `failure` at the nth call.
    fn enqueued(inboxes: &[&str], nth: usize, failure: &Failure) -> (Batch, Vec<usize>) {
        let mut batch = Batch::new(inboxes.len(), false);
        let goods = inboxes.iter().enumerate().map(|(entry, recv_id)| good(entry, recv_id)).collect();
        let mut calls = Vec::new();
        let produce = |good: Good| {
            calls.push(good.entry);
            let result = if calls.len() == nth { Err(failure.clone()) } else { Ok(()) };
            (pending(&good.msg.recv_id), result)
        };
        batch.enqueue(goods, |_| Ok(()), produce, || None, result_of);
        (batch, calls)
    }

    fn reasons(batch: &Batch) -> Vec<Option<ErrorReason>> {
        let reason = |result: &Option<Result<Placement, Failure>>| Some(result.as_ref()?.as_ref().err()?.kind().1);
        batch.results.iter().map(reason).collect()
    }

    #[test]
    fn entry_that_is_not_sent_blocks_its_inbox_and_no_other() {
        let inboxes = ["bob", "carol", "bob", "carol", "bob"];
        for failure in [Failure::NotSent("x".into()), Failure::Overloaded("x".into())] {
            let (batch, calls) = enqueued(&inboxes, 1, &failure);
            assert_eq!(calls, [0, 1, 3]);
            let (not_sent, after) = (Some(ErrorReason::NotSent), Some(ErrorReason::PredecessorFailed));
            assert_eq!(reasons(&batch), [not_sent, None, after, None, after]);
            assert_eq!(batch.unreported, 2);
        }
    }

    #[test]
    fn entry_above_a_quota_blocks_its_inbox_and_no_other() {
        let mut batch = Batch::new(5, false);
        let goods = ["bob", "carol", "bob", "carol", "bob"].iter().enumerate();
        let mut goods: Vec<Good> = goods.map(|(entry, recv_id)| good(entry, recv_id)).collect();
        // Alice has used up a quota. Dave has not, and his message to bob comes after hers.
        for entry in [0, 3] {
            goods[entry].msg.send_id = "alice".into();
        }
        let check = |msg: &Msg| if msg.send_id == "alice" { Err(Failure::Overloaded("x".into())) } else { Ok(()) };
        let mut calls = Vec::new();
        let produce = |good: Good| {
            calls.push(good.entry);
            (pending(&good.msg.recv_id), Ok(()))
        };
        batch.enqueue(goods, check, produce, || None, result_of);
        assert_eq!(calls, [1]);
        let (not_sent, after) = (Some(ErrorReason::NotSent), Some(ErrorReason::PredecessorFailed));
        assert_eq!(reasons(&batch), [not_sent, None, after, not_sent, after]);
    }

    #[test]
    fn entry_that_is_too_large_fails_alone() {
        let (batch, calls) = enqueued(&["bob", "bob", "bob"], 2, &Failure::TooLarge("x".into()));
        assert_eq!(calls, [0, 1, 2]);
        assert_eq!(reasons(&batch), [None, Some(ErrorReason::TooLarge), None]);
    }

    #[test]
    fn report_of_a_failure_stops_later_entries_to_the_inbox() {
        for (outcome, reason) in [
            (Outcome::Unknown, ErrorReason::OutcomeUnknown),
            (Outcome::NotSent(RDKafkaErrorCode::UnknownTopic), ErrorReason::NotSent),
        ] {
            let mut batch = Batch::new(4, false);
            let goods = (0..4).map(|entry| good(entry, "bob")).collect();
            let calls = Cell::new(0);
            let produce = |good: Good| {
                calls.set(calls.get() + 1);
                (pending(&good.msg.recv_id), Ok(()))
            };
            // The report of the first entry arrives after two entries were enqueued.
            let mut report = Some(Report { entry: 0, outcome });
            batch.enqueue(
                goods,
                |_| Ok(()),
                produce,
                || if calls.get() == 2 { report.take() } else { None },
                result_of,
            );
            let after = Some(ErrorReason::PredecessorFailed);
            assert_eq!((calls.get(), reasons(&batch)), (2, vec![Some(reason), None, after, after]));
            assert_eq!(batch.unreported, 1);
        }
    }

    #[test]
    fn entry_without_a_report_in_time_is_unknown() {
        let (mut batch, _) = enqueued(&["bob", "carol", "dave"], 3, &Failure::TooLarge("x".into()));
        batch.report(Report { entry: 1, outcome: Outcome::Stored { offset: Some(7) } }, result_of);
        batch.time_out(result_of);
        assert_eq!(batch.unreported, 0);
        let (unknown, large) = (Some(ErrorReason::OutcomeUnknown), Some(ErrorReason::TooLarge));
        assert_eq!(reasons(&batch), [unknown, None, large]);
        // A report after the timeout changes no result.
        batch.report(Report { entry: 0, outcome: Outcome::Stored { offset: Some(8) } }, result_of);
        assert_eq!(reasons(&batch)[0], unknown);
    }
}
