//! Looks for the records of a batch that the database refuses, in a transaction that is rolled back: halves that are
//! refused are halved again. A record is to blame only if it is refused alone while another one is taken.

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
}

/// What a pass came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These rows are to blame.
    Rejected(Vec<(usize, Failure)>),
    /// None is: this is what to tell.
    NoRecord(Failure),
}

impl Pass {
    /// Over so many rows, after this.
    pub(super) fn new(rows: usize, cause: Failure) -> Self {
        let patience = 2 * rows.max(1).ilog2() as usize + 8;
        let mut pass = Pass { cause, untried: Vec::new(), current: 0..0, refused: Vec::new(), taken: false, patience };
        pass.halve(0..rows);
        pass
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
        if !self.taken && self.patience == 0 {
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

    /// It refused the rows that were tried last.
    pub(super) fn refused(&mut self, failure: Failure) {
        self.patience = self.patience.saturating_sub(1);
        let range = self.current.clone();
        if range.len() == 1 {
            self.refused.push((range.start, failure));
        } else {
            self.halve(range);
        }
    }

    /// `is_huge` tells of a row whether it may be too large for the server's time or memory.
    pub(super) fn verdict(self, is_huge: impl Fn(usize) -> bool) -> Verdict {
        let Failure { class, text } = self.cause;
        let fatal = |text: String| Verdict::NoRecord(Failure { class: Class::Fatal, text });
        if let Some((_, failure)) = self.refused.iter().find(|(row, f)| f.class == Class::Heavy && !is_huge(*row)) {
            // A small row that takes too long: it is the server.
            return Verdict::NoRecord(failure.clone());
        }
        match (self.taken, self.refused.is_empty()) {
            (true, false) => Verdict::Rejected(self.refused),
            _ if class == Class::Heavy => Verdict::NoRecord(Failure { class, text }),
            (true, true) => fatal(format!("the batch is refused, and none of its records alone: {text}")),
            (false, _) => fatal(format!("every record is refused, so it is not the records' fault: {text}")),
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
        assert!(matches!(run(1, &[0].into(), true).0, Verdict::Rejected(rows) if rows.len() == 1));
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
            assert_eq!(matches!(pass.verdict(|_| huge), Verdict::Rejected(_)), rejected);
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
            if let Verdict::Rejected(found) = verdict {
                prop_assert_eq!(found.into_iter().map(|(row, _)| row).collect::<BTreeSet<_>>(), bad);
            } else {
                prop_assert!(bad.is_empty());
            }
        }
    }
}
