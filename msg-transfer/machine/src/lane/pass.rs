//! Looks for the records of a batch that the database refuses, in a transaction that is rolled back: halves that are
//! refused are halved again. A record is to blame only if it is refused alone while another one is taken, and only for what
//! a record can cause. Whatever else is said of it alone, its inbox cannot be written for now.

use std::ops::Range;

use crate::failure::Class;

/// What the database said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What follows from it.
    pub class: Class,
    /// What an operator may be told.
    pub text: String,
}

/// Refusals that each took a time-out, in one pass: what was found until then is enough for now.
const MOST_SLOW: usize = 40;

/// One pass over the rows of a batch.
#[derive(Debug)]
pub(super) struct Pass {
    cause: Failure,
    /// What is still to be tried; the last one is next.
    untried: Vec<Range<usize>>,
    current: Range<usize>,
    refused: Vec<(usize, Failure)>,
    /// The database took some row in this pass.
    taken: bool,
    /// Refusals without anything taken that are left before we give up.
    patience: usize,
    /// Refusals by a time-out that are left.
    slow: usize,
    /// With short time-outs: it finds inboxes, and blames no record for its time.
    short: bool,
    /// The row that was refused alone for its time, until it was tried whether its inbox takes another one.
    suspect: Option<usize>,
    /// The suspect whose inbox took another row: it is tried once more, or a lock that ended just then would blame it.
    again: Option<usize>,
    /// Rows that were refused again after that.
    guilty: Vec<usize>,
}

/// What a pass came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something is wrong with these alone.
    Found {
        /// These rows are to blame.
        rejected: Vec<(usize, Failure)>,
        /// The inboxes of these cannot be written for now.
        blocked: Vec<(usize, Failure)>,
    },
    /// None is: this is what to tell.
    NoRecord(Failure),
}

impl Pass {
    /// Over so many rows, after this.
    pub(super) fn new(rows: usize, cause: Failure) -> Self {
        let patience = 2 * rows.max(1).ilog2() as usize + 8;
        let is_timeout = matches!(cause.class, Class::Heavy | Class::Locked | Class::Transient);
        let mut pass = Pass {
            // One row alone gets the server's whole time: what is said of it then is the last word.
            short: is_timeout && (rows > 1 || cause.class != Class::Heavy),
            cause,
            untried: Vec::new(),
            current: 0..0,
            refused: Vec::new(),
            taken: false,
            patience,
            slow: MOST_SLOW,
            suspect: None,
            again: None,
            guilty: Vec::new(),
        };
        pass.halve(0..rows);
        pass
    }

    /// What it looks for the cause of.
    pub(super) fn cause(&self) -> &Failure {
        &self.cause
    }

    /// Whether its statements have short time-outs.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    fn halve(&mut self, range: Range<usize>) {
        let middle = range.start + range.len() / 2;
        for half in [middle..range.end, range.start..middle] {
            if !half.is_empty() {
                self.untried.push(half);
            }
        }
    }

    /// The next rows to try, if any are left.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        if (!self.taken && self.patience == 0) || self.slow == 0 {
            return None;
        }
        self.current = self.untried.pop()?;
        Some(self.current.clone())
    }

    /// The database took the canary, or some of the rows that were tried last.
    pub(super) fn taken(&mut self) {
        self.taken = true;
    }

    /// It refused the canary.
    pub(super) fn canary_refused(&mut self) {
        self.patience -= 1;
    }

    /// A row that may have taken too long by itself, or because its inbox, or its shard, is locked.
    pub(super) fn suspect(&self) -> Option<usize> {
        self.suspect
    }

    /// Whether the database took another row in the suspect's place.
    pub(super) fn suspect_tried(&mut self, taken: bool) {
        let Some(row) = self.suspect.take().filter(|_| taken) else { return };
        self.refused.retain(|(refused, _)| *refused != row);
        self.untried.push(row..row + 1);
        self.again = Some(row);
    }

    /// It refused the rows that were tried last.
    pub(super) fn refused(&mut self, failure: Failure) {
        self.patience = self.patience.saturating_sub(1);
        if matches!(failure.class, Class::Heavy | Class::Locked | Class::Transient) {
            self.slow -= 1;
        }
        let range = self.current.clone();
        if range.len() == 1 {
            let is_suspect = failure.class == Class::Heavy && !self.short;
            if self.again.take() == Some(range.start) {
                self.guilty.extend(is_suspect.then_some(range.start));
            } else {
                self.suspect = is_suspect.then_some(range.start);
            }
            self.refused.push((range.start, failure));
        } else {
            self.halve(range);
        }
    }

    /// `is_huge` tells of a row whether it may be too large for the server's time or memory.
    pub(super) fn verdict(self, is_huge: impl Fn(usize) -> bool) -> Verdict {
        let Failure { class, text } = self.cause;
        let is_record = matches!(class, Class::Permanent | Class::TooLarge);
        match (self.taken, self.refused.is_empty()) {
            (true, false) => {
                let is_guilty = |(row, failure): &(usize, Failure)| match failure.class {
                    Class::Permanent | Class::TooLarge => true,
                    // Only a huge one, and only while its inbox takes a small one.
                    Class::Heavy => is_huge(*row) && self.guilty.contains(row),
                    _ => false,
                };
                let (rejected, blocked) = self.refused.into_iter().partition(is_guilty);
                Verdict::Found { rejected, blocked }
            }
            _ if !is_record => Verdict::NoRecord(Failure { class, text }),
            (true, true) => {
                let text = format!("the batch is refused, and none of its records alone: {text}");
                Verdict::NoRecord(Failure { class: Class::Fatal, text })
            }
            (false, _) => {
                let text = format!("every record is refused, so it is not the records' fault: {text}");
                Verdict::NoRecord(Failure { class: Class::Fatal, text })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn refusal(class: Class) -> Failure {
        Failure { class, text: "no".into() }
    }

    /// Runs a pass against a database that refuses these rows; returns the verdict and the statements it took.
    fn run(rows: usize, bad: &BTreeSet<usize>, canary: bool) -> (Verdict, usize) {
        let mut pass = Pass::new(rows, refusal(Class::Permanent));
        if canary {
            pass.taken()
        } else {
            pass.canary_refused()
        }
        let mut statements = 1;
        while let Some(range) = pass.next() {
            statements += 1;
            if bad.range(range).next().is_some() {
                pass.refused(refusal(Class::Permanent));
            } else {
                pass.taken();
            }
        }
        (pass.verdict(|_| false), statements)
    }

    #[test]
    fn when_nothing_is_taken_no_record_is_to_blame_and_we_stop_early() {
        let all: BTreeSet<usize> = (0..5000).collect();
        let (verdict, statements) = run(5000, &all, false);
        assert!(matches!(verdict, Verdict::NoRecord(Failure { class: Class::Fatal, .. })));
        assert!(statements < 50, "{statements}");
        assert!(matches!(run(1, &[0].into(), false).0, Verdict::NoRecord(_)));
    }

    #[test]
    fn one_alone_is_to_blame_when_the_canary_is_taken() {
        assert!(matches!(run(1, &[0].into(), true).0, Verdict::Found { rejected, .. } if rejected.len() == 1));
    }

    #[test]
    fn a_batch_of_which_each_record_is_taken_blames_none() {
        assert!(matches!(run(7, &BTreeSet::new(), true).0, Verdict::NoRecord(Failure { class: Class::Fatal, .. })));
    }

    #[test]
    fn a_row_that_takes_too_long_is_to_blame_only_if_it_is_huge() {
        for (huge, rejected) in [(true, true), (false, false)] {
            let mut pass = Pass::new(1, refusal(Class::Heavy));
            pass.taken();
            pass.next().expect("there is one");
            pass.refused(refusal(Class::Heavy));
            assert_eq!(pass.suspect(), Some(0));
            pass.suspect_tried(true);
            assert_eq!(pass.next(), Some(0..1), "once more");
            pass.refused(refusal(Class::Heavy));
            assert_eq!(found(pass.verdict(|_| huge)), if rejected { (vec![0], vec![]) } else { (vec![], vec![0]) });
        }
    }

    /// A shard may be locked while the rest of the table takes rows.
    #[test]
    fn huge_row_is_not_blamed_when_its_inbox_takes_none() {
        let mut pass = Pass::new(1, refusal(Class::Heavy));
        pass.taken();
        pass.next().expect("there is one");
        pass.refused(refusal(Class::Heavy));
        pass.suspect_tried(false);
        assert_eq!(found(pass.verdict(|_| true)), (vec![], vec![0]));
    }

    #[test]
    fn only_a_records_own_fault_rejects_it() {
        use Class::{Conflict, Fatal, Heavy, Locked, Permanent, TooLarge, Transient};
        for (class, rejects) in [
            (Permanent, true),
            (TooLarge, true),
            (Conflict, false),
            (Locked, false),
            (Heavy, false),
            (Transient, false),
            (Fatal, false),
        ] {
            let mut pass = Pass::new(2, refusal(class));
            pass.taken();
            pass.next().expect("the first one");
            pass.refused(refusal(class));
            pass.next().expect("the second one");
            assert_eq!(pass.suspect(), None, "with short time-outs nothing is blamed for its time");
            pass.taken();
            let expected = if rejects { (vec![0], vec![]) } else { (vec![], vec![0]) };
            assert_eq!(found(pass.verdict(|_| true)), expected, "{class:?}");
        }
    }

    /// The whole server: nothing is taken, so no inbox is called blocked.
    #[test]
    fn locked_table_blames_no_inbox() {
        let mut pass = Pass::new(100, refusal(Class::Locked));
        let mut statements = 0;
        while pass.next().is_some() {
            pass.refused(refusal(Class::Locked));
            statements += 1;
        }
        assert!(statements < 30, "{statements}");
        assert!(matches!(pass.verdict(|_| true), Verdict::NoRecord(Failure { class: Class::Locked, .. })));
    }

    fn found(verdict: Verdict) -> (Vec<usize>, Vec<usize>) {
        let rows = |rows: Vec<(usize, Failure)>| rows.into_iter().map(|(row, _)| row).collect();
        match verdict {
            Verdict::Found { rejected, blocked } => (rows(rejected), rows(blocked)),
            Verdict::NoRecord(failure) => panic!("{failure:?}"),
        }
    }

    proptest! {
        #[test]
        fn those_and_only_those_are_found_in_few_statements(
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
