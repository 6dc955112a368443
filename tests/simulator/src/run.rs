//! Runs one seed, or many on all cores, up to the first violation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::choices::Choices;
use crate::facts::Facts;
use crate::world::World;

#[derive(Debug)]
pub struct Report {
    /// The promise that was broken, and how.
    pub violation: Option<String>,
    /// The choices that the run made; they repeat it exactly.
    pub tape: Vec<u32>,
    /// The steps in words, if the run was traced.
    pub trace: Vec<String>,
    /// The number of times that each event occurred in the run.
    pub facts: Facts,
    /// The number of steps before the healing.
    pub steps: usize,
}

/// Runs the simulation with this seed, and returns what the oracle found.
pub fn seed(seed: u64, traced: bool) -> Report {
    run(Choices::from_seed(seed), traced)
}

/// Runs a recorded sequence of choices.
pub fn tape(tape: Vec<u32>, traced: bool) -> Report {
    run(Choices::from_tape(tape), traced)
}

fn run(choices: Choices, traced: bool) -> Report {
    let mut world = World::new(choices, traced);
    // A panic of a machine is a violation like any other.
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

/// Prints no panic: `run` reports it.
pub fn silence_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[derive(Debug, Default)]
pub struct Sum {
    pub seeds: u64,
    pub steps: u64,
    /// The counts of events in these seeds.
    pub facts: Facts,
    /// The lowest seed with a violation, and the violation.
    pub failed: Option<(u64, String)>,
}

/// Runs these seeds on `threads` threads, and stops after a violation. Calls `on_progress` every 10,000 seeds with the
/// number of seeds.
pub fn seeds(range: std::ops::Range<u64>, threads: usize, on_progress: impl Fn(u64) + Sync) -> Sum {
    let next = AtomicU64::new(range.start);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut partial = Sum::default();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= range.end {
                        break;
                    }
                    let report = seed(number, false);
                    partial.seeds += 1;
                    partial.steps += report.steps as u64;
                    partial.facts.merge(&report.facts);
                    if (number + 1 - range.start).is_multiple_of(10_000) {
                        on_progress(number + 1 - range.start);
                    }
                    if let Some(violation) = report.violation {
                        partial.failed = Some((number, violation));
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                let mut sum = sum.lock().expect("no thread panics while it holds the lock");
                sum.add(partial);
            });
        }
    });
    sum.into_inner().expect("no thread panics while it holds the lock")
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
