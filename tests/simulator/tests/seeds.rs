//! Some seeds break no promise, and a seed always gives the same run.

use simulator::run;

#[test]
fn first_400_seeds_break_no_promise() {
    let sum = run::seeds(0..400, 2, |_| ());
    assert_eq!(sum.failed, None);
    assert_eq!(sum.seeds, 400);
}

#[test]
fn seed_and_its_tape_give_the_same_run() {
    for number in [3, 5, 8] {
        let first = run::seed(number, true);
        assert!(first.trace.len() > 50, "the run has steps");
        assert_eq!(run::seed(number, true).trace, first.trace);
        assert_eq!(run::tape(first.tape, true).trace, first.trace);
    }
}

#[test]
fn cut_or_empty_tape_gives_a_run_without_violation() {
    assert_eq!(run::tape(Vec::new(), false).violation, None);
    let tape = run::seed(1, false).tape;
    for length in [1, 10, 50, 200] {
        assert_eq!(run::tape(tape[..length.min(tape.len())].to_vec(), false).violation, None);
    }
}
