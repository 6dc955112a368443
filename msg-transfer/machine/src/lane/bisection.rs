//! The bisection of a batch: the search for the records that the database rejects, in a transaction that is rolled
//! back. A half that is rejected is halved again. A record is dead-lettered only if it is rejected alone while another
//! one is accepted, and only for an error that a record can cause. With any other error of a record alone, its inbox is
//! blocked.

use std::ops::Range;

use crate::error::{ClassifiedError, ErrorClass};

/// Maximum number of rejections by a timeout in one bisection. It ends early then, with the records found so far.
const MAX_TIMEOUTS: usize = 40;

/// The state of a bisection over the rows of a batch.
#[derive(Debug)]
pub(super) struct Bisection {
    cause: ClassifiedError,
    /// The rows to try; the last probe is next.
    untried: Vec<Probe>,
    rejected: Vec<(usize, ClassifiedError)>,
    /// Whether the database accepted some row in this bisection.
    accepted: bool,
    /// Rejections left before the bisection ends, as long as the database accepts no row.
    attempts_left: usize,
    /// Rejections by a timeout left before the bisection ends.
    timeouts_left: usize,
    /// Whether its statements have short timeouts. Then it finds blocked inboxes, and no record that is too slow.
    short: bool,
    /// Rows that timed out alone, and again after their inboxes accepted another row.
    confirmed: Vec<usize>,
    /// Whether it is unknown which rows are stored already. Then none of them is dead-lettered.
    blocks_only: bool,
}

/// The rows that are tried in one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Rows(Range<usize>),
    /// A row that timed out alone, though its inbox accepts another row. A lock that ended in between may have been the
    /// cause.
    Again(usize),
}

impl Probe {
    pub(super) fn rows(&self) -> Range<usize> {
        match self {
            Probe::Rows(rows) => rows.clone(),
            Probe::Again(row) => *row..row + 1,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Some rows fail alone; the batch can be stored without them.
    Found {
        /// Rows that cause the error themselves.
        rejected: Vec<(usize, ClassifiedError)>,
        /// Rows whose inboxes cannot be written for now.
        blocked: Vec<(usize, ClassifiedError)>,
    },
    /// No row causes the error: this is the error of the whole batch.
    NoRecord(ClassifiedError),
}

impl Bisection {
    /// Starts a bisection of `rows` rows, which failed together with `cause`.
    pub(super) fn new(rows: usize, cause: ClassifiedError) -> Self {
        let attempts_left = 2 * rows.max(1).ilog2() as usize + 8;
        let is_timeout = matches!(cause.class, ErrorClass::Heavy | ErrorClass::Locked | ErrorClass::Transient);
        let mut bisection = Bisection {
            // A single row gets the full timeout: with a short one, a slow server would look like a record that needs
            // too much time.
            short: is_timeout && (rows > 1 || cause.class != ErrorClass::Heavy),
            cause,
            untried: Vec::new(),
            rejected: Vec::new(),
            accepted: false,
            attempts_left,
            timeouts_left: MAX_TIMEOUTS,
            confirmed: Vec::new(),
            blocks_only: false,
        };
        bisection.halve(0..rows);
        bisection
    }

    pub(super) fn cause(&self) -> &ClassifiedError {
        &self.cause
    }

    /// Returns whether its statements have short timeouts.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// Records that the rows cannot be looked up in the table: some may be stored already.
    pub(super) fn lookup_failed(&mut self) {
        self.blocks_only = true;
    }

    fn halve(&mut self, range: Range<usize>) {
        let middle = range.start + range.len() / 2;
        for half in [middle..range.end, range.start..middle] {
            if !half.is_empty() {
                self.untried.push(Probe::Rows(half));
            }
        }
    }

    /// Returns the next rows to try, or `None` if the bisection is over.
    pub(super) fn next(&mut self) -> Option<Probe> {
        if (!self.accepted && self.attempts_left == 0) || self.timeouts_left == 0 {
            return None;
        }
        self.untried.pop()
    }

    /// Records that the database accepted the canary row, or some of the rows that were tried last.
    pub(super) fn accepted(&mut self) {
        self.accepted = true;
    }

    /// Records that the database rejected the canary row.
    pub(super) fn canary_rejected(&mut self) {
        self.attempts_left -= 1;
    }

    /// Records that the inbox of a row that timed out accepted another row instead.
    pub(super) fn suspect_accepts(&mut self, row: usize) {
        self.rejected.retain(|(rejected, _)| *rejected != row);
        self.untried.push(Probe::Again(row));
    }

    /// Records that the database rejected these rows. Returns a row that timed out alone: because of itself, or
    /// because its inbox or its shard is locked. Another row has to be tried in its inbox.
    pub(super) fn rejected(&mut self, probe: Probe, error: ClassifiedError) -> Option<usize> {
        self.attempts_left = self.attempts_left.saturating_sub(1);
        if matches!(error.class, ErrorClass::Heavy | ErrorClass::Locked | ErrorClass::Transient) {
            self.timeouts_left -= 1;
        }
        let is_suspect = error.class == ErrorClass::Heavy && !self.short;
        match probe {
            Probe::Again(row) => {
                self.confirmed.extend(is_suspect.then_some(row));
                self.rejected.push((row, error));
                None
            }
            Probe::Rows(rows) if rows.len() == 1 => {
                self.rejected.push((rows.start, error));
                is_suspect.then_some(rows.start)
            }
            Probe::Rows(rows) => {
                self.halve(rows);
                None
            }
        }
    }

    /// Ends the bisection. `is_huge` returns whether a row may be too large for the server's time or memory.
    pub(super) fn verdict(self, is_huge: impl Fn(usize) -> bool) -> Verdict {
        let ClassifiedError { class, text } = self.cause;
        let is_record = matches!(class, ErrorClass::Permanent | ErrorClass::TooLarge);
        match (self.accepted, self.rejected.is_empty()) {
            (true, false) => {
                let is_rejected = |(row, error): &(usize, ClassifiedError)| match error.class {
                    _ if self.blocks_only => false,
                    ErrorClass::Permanent | ErrorClass::TooLarge => true,
                    // Only a huge row, and only while its inbox accepts a small one.
                    ErrorClass::Heavy => is_huge(*row) && self.confirmed.contains(row),
                    _ => false,
                };
                let (rejected, blocked) = self.rejected.into_iter().partition(is_rejected);
                Verdict::Found { rejected, blocked }
            }
            _ if !is_record => Verdict::NoRecord(ClassifiedError { class, text }),
            (true, true) => {
                let text = format!("the database rejects the batch, and none of its records alone: {text}");
                Verdict::NoRecord(ClassifiedError { class: ErrorClass::Fatal, text })
            }
            (false, _) => {
                let text = format!("the database rejects every record, so no record is the cause: {text}");
                Verdict::NoRecord(ClassifiedError { class: ErrorClass::Fatal, text })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn rejection(class: ErrorClass) -> ClassifiedError {
        ClassifiedError { class, text: "no".into() }
    }

    fn reject_next(bisection: &mut Bisection, class: ErrorClass) -> Option<usize> {
        let probe = bisection.next().expect("a row is untried");
        bisection.rejected(probe, rejection(class))
    }

    /// Runs a bisection against a database that rejects these rows. Returns the verdict and the number of statements.
    fn run(rows: usize, bad: &BTreeSet<usize>, canary: bool) -> (Verdict, usize) {
        let mut bisection = Bisection::new(rows, rejection(ErrorClass::Permanent));
        if canary {
            bisection.accepted()
        } else {
            bisection.canary_rejected()
        }
        let mut statements = 1;
        while let Some(probe) = bisection.next() {
            statements += 1;
            if bad.range(probe.rows()).next().is_some() {
                bisection.rejected(probe, rejection(ErrorClass::Permanent));
            } else {
                bisection.accepted();
            }
        }
        (bisection.verdict(|_| false), statements)
    }

    #[test]
    fn bisection_ends_early_when_no_row_is_accepted() {
        let all: BTreeSet<usize> = (0..5000).collect();
        let (verdict, statements) = run(5000, &all, false);
        assert!(matches!(verdict, Verdict::NoRecord(ClassifiedError { class: ErrorClass::Fatal, .. })));
        assert!(statements < 50, "{statements}");
        assert!(matches!(run(1, &[0].into(), false).0, Verdict::NoRecord(_)));
    }

    #[test]
    fn single_row_is_rejected_when_the_canary_is_accepted() {
        assert!(matches!(run(1, &[0].into(), true).0, Verdict::Found { rejected, .. } if rejected.len() == 1));
    }

    #[test]
    fn no_record_is_rejected_when_each_is_accepted_alone() {
        assert!(matches!(
            run(7, &BTreeSet::new(), true).0,
            Verdict::NoRecord(ClassifiedError { class: ErrorClass::Fatal, .. })
        ));
    }

    #[test]
    fn slow_row_is_rejected_only_if_it_is_huge() {
        for (huge, rejected) in [(true, true), (false, false)] {
            let mut bisection = Bisection::new(1, rejection(ErrorClass::Heavy));
            bisection.accepted();
            assert_eq!(reject_next(&mut bisection, ErrorClass::Heavy), Some(0));
            bisection.suspect_accepts(0);
            assert_eq!(reject_next(&mut bisection, ErrorClass::Heavy), None, "a second time is enough");
            assert_eq!(
                found(bisection.verdict(|_| huge)),
                if rejected { (vec![0], vec![]) } else { (vec![], vec![0]) }
            );
        }
    }

    /// A shard may be locked while the rest of the table accepts rows.
    #[test]
    fn huge_row_is_blocked_when_its_inbox_accepts_none() {
        let mut bisection = Bisection::new(1, rejection(ErrorClass::Heavy));
        bisection.accepted();
        assert_eq!(reject_next(&mut bisection, ErrorClass::Heavy), Some(0));
        assert_eq!(found(bisection.verdict(|_| true)), (vec![], vec![0]));
    }

    #[test]
    fn error_that_no_record_causes_blocks_the_inbox() {
        use ErrorClass::{Conflict, Fatal, Heavy, Locked, Permanent, TooLarge, Transient};
        for (class, rejects) in [
            (Permanent, true),
            (TooLarge, true),
            (Conflict, false),
            (Locked, false),
            (Heavy, false),
            (Transient, false),
            (Fatal, false),
        ] {
            let mut bisection = Bisection::new(2, rejection(class));
            bisection.accepted();
            assert_eq!(reject_next(&mut bisection, class), None, "with short timeouts no record is a suspect");
            bisection.next().expect("the second one");
            bisection.accepted();
            let expected = if rejects { (vec![0], vec![]) } else { (vec![], vec![0]) };
            assert_eq!(found(bisection.verdict(|_| true)), expected, "{class:?}");
        }
    }

    /// A rule may be newer than a row that is stored, and the row cannot be looked up.
    #[test]
    fn no_record_is_rejected_without_a_lookup() {
        let mut bisection = Bisection::new(1, rejection(ErrorClass::Permanent));
        bisection.lookup_failed();
        bisection.accepted();
        reject_next(&mut bisection, ErrorClass::Permanent);
        assert_eq!(found(bisection.verdict(|_| true)), (vec![], vec![0]));
    }

    /// The whole server is affected: it accepts no row, so no inbox is blocked.
    #[test]
    fn locked_table_blocks_no_inbox() {
        let mut bisection = Bisection::new(100, rejection(ErrorClass::Locked));
        let mut statements = 0;
        while let Some(probe) = bisection.next() {
            bisection.rejected(probe, rejection(ErrorClass::Locked));
            statements += 1;
        }
        assert!(statements < 30, "{statements}");
        assert!(matches!(
            bisection.verdict(|_| true),
            Verdict::NoRecord(ClassifiedError { class: ErrorClass::Locked, .. })
        ));
    }

    fn found(verdict: Verdict) -> (Vec<usize>, Vec<usize>) {
        let rows = |rows: Vec<(usize, ClassifiedError)>| rows.into_iter().map(|(row, _)| row).collect();
        match verdict {
            Verdict::Found { rejected, blocked } => (rows(rejected), rows(blocked)),
            Verdict::NoRecord(error) => panic!("{error:?}"),
        }
    }

    proptest! {
        #[test]
        fn poison_records_are_found_in_few_statements(
            rows in 1..2000usize, bad in proptest::collection::btree_set(0..2000usize, 0..20),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|row| *row < rows).collect();
            let (verdict, statements) = run(rows, &bad, true);
            let log = rows.ilog2() as usize + 2;
            prop_assert!(statements <= 2 * bad.len() * log + 3, "{statements} for {} of {rows}", bad.len());
            if let Verdict::Found { rejected, blocked } = verdict {
                prop_assert!(blocked.is_empty());
                prop_assert_eq!(rejected.into_iter().map(|(row, _)| row).collect::<BTreeSet<_>>(), bad);
            } else {
                prop_assert!(bad.is_empty());
            }
        }
    }
}
