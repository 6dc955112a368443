//! Runs seeds: one, or many on all cores, up to the first violation.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::choices::Choices;
use crate::facts::Facts;
use crate::world::World;

thread_local! {
    /// The seed that this thread runs, for whoever reads of a panic.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// What did not hold.
    pub violation: Option<String>,
    /// What was chosen.
    pub tape: Vec<u32>,
    /// Each step in words, if they were asked for.
    pub trace: Vec<String>,
    /// What happened.
    pub facts: Facts,
    /// Steps before the healing.
    pub steps: usize,
}

/// Runs one seed.
pub fn seed(seed: u64, traced: bool) -> Report {
    SEED.set(Some(seed));
    let report = run(Choices::from_seed(seed), traced);
    SEED.set(None);
    report
}

/// Runs what a tape says.
pub fn tape(tape: Vec<u32>, traced: bool) -> Report {
    run(Choices::from_tape(tape), traced)
}

fn run(choices: Choices, traced: bool) -> Report {
    let mut world = World::new(choices, traced);
    // A panic of a machine is a violation like any other, where it unwinds.
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    if let Some(panic) = panicked {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.env.violate(format!("panic: {}", text.unwrap_or_default()));
    }
    Report {
        violation: world.env.violation.take(),
        trace: world.env.trace.take().unwrap_or_default(),
        facts: world.env.facts,
        steps: world.steps,
        tape: world.env.choices.into_tape(),
    }
}

/// Says at a panic which seed it was, and nothing where it is caught and told later.
#[allow(clippy::print_stderr, reason = "it is a command's")]
pub fn report_seed_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        if cfg!(panic = "abort") {
            let seed = SEED.get().map_or_else(|| "a tape".to_owned(), |seed| format!("seed {seed}"));
            eprintln!("{seed}: {info}");
        }
    }));
}

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Sum {
    /// Seeds that were run.
    pub seeds: u64,
    /// Their steps.
    pub steps: u64,
    /// What happened in them.
    pub facts: Facts,
    /// The lowest seed with a violation, and what it is.
    pub failed: Option<(u64, String)>,
}

/// Runs these seeds on so many threads, and stops after a violation. `tell` hears now and then how many are done.
pub fn seeds(range: std::ops::Range<u64>, threads: usize, on_progress: impl Fn(u64) + Sync) -> Sum {
    let next = AtomicU64::new(range.start);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut mine = Sum::default();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= range.end {
                        break;
                    }
                    let report = seed(number, false);
                    mine.seeds += 1;
                    mine.steps += report.steps as u64;
                    mine.facts.merge(&report.facts);
                    if (number + 1 - range.start).is_multiple_of(10_000) {
                        on_progress(number + 1 - range.start);
                    }
                    if let Some(violation) = report.violation {
                        mine.failed = Some((number, violation));
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                let mut sum = sum.lock().expect("nobody panics with it");
                sum.add(mine);
            });
        }
    });
    sum.into_inner().expect("nobody panics with it")
}

impl Sum {
    fn add(&mut self, other: Sum) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.facts.merge(&other.facts);
        if let Some(failed) = other.failed
            && self.failed.as_ref().is_none_or(|(seed, _)| failed.0 < *seed)
        {
            self.failed = Some(failed);
        }
    }
}
