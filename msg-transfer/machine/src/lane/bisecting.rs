//! The statements of a bisection, and the consequences of its verdict.

use super::bisection::{Bisection, Probe, Verdict};
use super::entry::{Known, forget_found};
use super::failing::without_effect;
use super::state::{Batch, BisectStep, Rows, Step};
use super::{ClassifiedError, Machine, Message, Request, Response, unexpected};
use crate::Reason;
use crate::consumer::Event;
use crate::error::ErrorClass;

impl<T: Message> Machine<T> {
    pub(super) fn bisect(
        &mut self,
        mut batch: Box<Batch<T>>,
        rows: Rows,
        mut bisection: Box<Bisection>,
        step: BisectStep,
        response: Response,
        events: &mut Vec<Event>,
    ) -> Request {
        match (step, response) {
            (_, Response::Failed(error)) if error.class == ErrorClass::Lost => self.abandon(batch, error),
            (BisectStep::Rollback, Response::Ok) => {
                let request = rows.find();
                self.bisecting(batch, rows, bisection, BisectStep::FindDuplicates, request)
            }
            (BisectStep::FindDuplicates, Response::Found(found)) if found.is_empty() => {
                self.begin_bisection(batch, rows, bisection)
            }
            (BisectStep::FindDuplicates, Response::Found(found)) => {
                batch.mark_found(&found);
                self.read_last_seqs(batch)
            }
            // The pages of one inbox may be damaged. No transaction is open.
            (BisectStep::FindDuplicates, Response::Failed(error))
                if error.class == ErrorClass::Fatal && self.can_block() =>
            {
                bisection.lookup_failed();
                self.begin_bisection(batch, rows, bisection)
            }
            (BisectStep::Begin, Response::Ok) => {
                self.bisecting(batch, rows, bisection, BisectStep::Canary, Request::Canary(None))
            }
            (BisectStep::Canary, Response::Count(inserted)) => {
                // A trigger may discard it.
                if inserted > 0 {
                    bisection.accepted();
                }
                self.roll_back_canary(batch, rows, bisection)
            }
            (BisectStep::Canary, Response::Failed(error))
                if matches!(error.class, ErrorClass::Permanent | ErrorClass::TooLarge | ErrorClass::Conflict) =>
            {
                bisection.canary_rejected();
                self.roll_back_canary(batch, rows, bisection)
            }
            (BisectStep::InboxCanary(row), Response::Count(inserted)) => {
                if inserted > 0 {
                    bisection.suspect_accepts(row);
                }
                self.roll_back_canary(batch, rows, bisection)
            }
            (BisectStep::InboxCanary(_), Response::Failed(_)) => self.roll_back_canary(batch, rows, bisection),
            (BisectStep::Probe(probe), Response::Count(inserted)) if inserted == probe.rows().len() => {
                bisection.accepted();
                self.bisecting(batch, rows, bisection, BisectStep::MoveSavepoint, Request::MoveSavepoint)
            }
            // Some of the rows were discarded. Or another owner has stored them meanwhile, and a retry finds them.
            (BisectStep::Probe(probe), Response::Count(_)) => {
                self.probe_rejected(batch, rows, bisection, probe, without_effect())
            }
            (BisectStep::Probe(probe), Response::Failed(error)) => {
                self.probe_rejected(batch, rows, bisection, probe, error)
            }
            (BisectStep::SuspectRollback(row), Response::Ok) => {
                let request = Request::Canary(Some(rows.numbered[row]));
                self.bisecting(batch, rows, bisection, BisectStep::InboxCanary(row), request)
            }
            (BisectStep::CanaryRollback | BisectStep::ProbeRollback | BisectStep::MoveSavepoint, Response::Ok) => {
                self.probe(batch, rows, bisection)
            }
            (BisectStep::End, Response::Ok) => self.end_bisection(batch, &rows, *bisection, events),
            (_, Response::Failed(error)) => self.abandon(batch, error),
            (step, response) => self.abandon(batch, unexpected(step, &response)),
        }
    }

    /// Begins the transaction of a bisection. None of the rows is in the table.
    pub(super) fn begin_bisection(&mut self, batch: Box<Batch<T>>, rows: Rows, bisection: Box<Bisection>) -> Request {
        let begin = if bisection.is_short() { Request::BeginSearch } else { Request::BeginBisection };
        self.bisecting(batch, rows, bisection, BisectStep::Begin, begin)
    }

    fn probe_rejected(
        &mut self,
        batch: Box<Batch<T>>,
        rows: Rows,
        mut bisection: Box<Bisection>,
        probe: Probe,
        error: ClassifiedError,
    ) -> Request {
        let suspect = bisection.rejected(probe, error);
        let step = suspect.map_or(BisectStep::ProbeRollback, BisectStep::SuspectRollback);
        self.bisecting(batch, rows, bisection, step, Request::RollbackToSavepoint)
    }

    fn roll_back_canary(&mut self, batch: Box<Batch<T>>, rows: Rows, bisection: Box<Bisection>) -> Request {
        self.bisecting(batch, rows, bisection, BisectStep::CanaryRollback, Request::RollbackToSavepoint)
    }

    fn probe(&mut self, batch: Box<Batch<T>>, rows: Rows, mut bisection: Box<Bisection>) -> Request {
        let Some(probe) = bisection.next().filter(|_| !batch.is_fenced()) else {
            return self.bisecting(batch, rows, bisection, BisectStep::End, Request::Rollback);
        };
        let request = Request::Insert(rows.numbered[probe.rows()].to_vec());
        self.bisecting(batch, rows, bisection, BisectStep::Probe(probe), request)
    }

    fn end_bisection(
        &mut self,
        mut batch: Box<Batch<T>>,
        rows: &Rows,
        bisection: Bisection,
        events: &mut Vec<Event>,
    ) -> Request {
        if batch.is_fenced() {
            return self.start_attempt(batch, events);
        }
        let is_huge = |row: usize| batch.entries[rows.numbered[row].entry].record_ref.bytes >= self.settings.huge;
        match bisection.verdict(is_huge) {
            Verdict::NoRecord(error) => {
                batch.bisected = true;
                self.fail(batch, error)
            }
            Verdict::Found { rejected, blocked } => {
                let entry = |(row, error): (usize, ClassifiedError)| (rows.numbered[row].entry, error);
                let blocked: Vec<(usize, ClassifiedError)> = blocked.into_iter().map(entry).collect();
                for (row, error) in rejected {
                    let reason = match error.class {
                        ErrorClass::Permanent => Reason::RejectedByDatabase,
                        _ => Reason::TooLarge,
                    };
                    batch.entries[rows.numbered[row].entry].known = Known::Rejected(reason, error.text);
                }
                // The first repeat of a rejected record is tried instead of it.
                forget_found(&mut batch.entries);
                batch.approved = false;
                if !blocked.is_empty() {
                    self.block(&mut batch, blocked, events);
                }
                self.start_attempt(batch, events)
            }
        }
    }

    pub(super) fn bisecting(
        &mut self,
        batch: Box<Batch<T>>,
        rows: Rows,
        bisection: Box<Bisection>,
        step: BisectStep,
        request: Request,
    ) -> Request {
        self.storing(batch, Step::Bisecting(rows, bisection, step), request)
    }
}
