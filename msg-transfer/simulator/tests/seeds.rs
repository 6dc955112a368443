//! A few seeds hold, and a seed is the same run for ever.

use simulator::run;

#[test]
fn a_few_hundred_seeds_hold() {
    let sum = run::seeds(0..400, 2, |_| ());
    assert_eq!(sum.failed, None);
    assert_eq!(sum.seeds, 400);
}

#[test]
fn a_seed_and_its_tape_are_the_same_run() {
    for number in [3, 5, 8] {
        let first = run::seed(number, true);
        assert!(first.trace.len() > 50, "something happens");
        assert_eq!(run::seed(number, true).trace, first.trace);
        assert_eq!(run::tape(first.tape, true).trace, first.trace);
    }
}

#[test]
fn a_tape_that_is_cut_or_empty_is_a_run_too() {
    assert_eq!(run::tape(Vec::new(), false).violation, None);
    let tape = run::seed(1, false).tape;
    for length in [1, 10, 50, 200] {
        assert_eq!(run::tape(tape[..length.min(tape.len())].to_vec(), false).violation, None);
    }
}
