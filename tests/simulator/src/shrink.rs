//! Shrinks a failing run: cuts and zeroes parts of its tape for as long as the same promise breaks.

use crate::run;

/// Maximum number of runs that shrinking may use.
const MAX_RUNS: usize = 20_000;

/// Returns the smallest tape found that breaks the same promise.
pub fn shrink(tape: Vec<u32>, violation: &str) -> Vec<u32> {
    let promise = promise(violation);
    smallest(tape, |tape| {
        let report = run::tape(tape.to_vec(), false);
        report.violation.is_some_and(|violation| self::promise(&violation) == promise).then_some(report.tape)
    })
}

/// Returns the smallest tape found for which `fails` returns a tape: the part that was used.
fn smallest(tape: Vec<u32>, fails: impl Fn(&[u32]) -> Option<Vec<u32>>) -> Vec<u32> {
    let mut runs_left = MAX_RUNS;
    let mut best = tape;
    let mut fails = |tape: &[u32]| {
        runs_left = runs_left.checked_sub(1)?;
        fails(tape)
    };
    loop {
        let before = (best.len(), weight(&best));
        let mut length = best.len().div_ceil(2).max(1);
        while length > 0 {
            let mut at = 0;
            while at < best.len() {
                let end = (at + length).min(best.len());
                let cut: Vec<u32> = best[..at].iter().chain(&best[end..]).copied().collect();
                if let Some(shorter) = fails(&cut).filter(|tape| tape.len() < best.len()) {
                    best = shorter;
                    continue;
                }
                if best[at..end].iter().any(|number| *number > 0) {
                    let mut zeroed = best.clone();
                    zeroed[at..end].fill(0);
                    if let Some(lighter) = fails(&zeroed).filter(|tape| is_smaller(tape, &best)) {
                        best = lighter;
                    }
                }
                at += length;
            }
            length /= 2;
        }
        if (best.len(), weight(&best)) >= before {
            return best;
        }
    }
}

fn is_smaller(tape: &[u32], other: &[u32]) -> bool {
    (tape.len(), weight(tape)) < (other.len(), weight(other))
}

fn weight(tape: &[u32]) -> u64 {
    tape.iter().map(|number| u64::from(*number)).sum()
}

/// Returns the promise's name, which is the text before the first colon.
fn promise(violation: &str) -> &str {
    violation.split_once(':').map_or(violation, |(promise, _)| promise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_keeps_only_the_cause_of_the_failure() {
        // Fails if a 7 comes after a 3.
        let fails = |tape: &[u32]| {
            let three = tape.iter().position(|number| *number == 3)?;
            tape[three..].contains(&7).then(|| tape.to_vec())
        };
        let tape: Vec<u32> = (0..500).map(|number| number * 37 % 10).collect();
        assert_eq!(smallest(tape, fails), [3, 7]);
    }
}
