//! `sim`: runs seeds, replays one seed, and plants bugs.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the output of a command")]

use clap::{Parser, Subcommand};
use simulator::mutants::{Bench, Expected, MUTANTS, Mutant, MutantResult};
use simulator::{run, shrink};
use std::process::ExitCode;
use std::time::Instant;

/// Runs msg-transfer's machines against models of Kafka and PostgreSQL, one run per seed.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs many seeds, up to the first violation.
    Run {
        /// The seeds, as FROM..TO (without TO).
        #[arg(long, default_value = "0..100000", value_parser = range)]
        seeds: std::ops::Range<u64>,
        /// Number of threads; the number of cores unless configured.
        #[arg(long)]
        jobs: Option<usize>,
        /// Print only the result.
        #[arg(long)]
        brief: bool,
    },
    /// Prints each step of one seed. A run with a violation is shrunk first.
    Replay {
        seed: u64,
        /// Do not shrink a run with a violation.
        #[arg(long)]
        whole: bool,
    },
    /// Plants bugs in a copy of the machine, one at a time, and reports which of them are found. Must run in the
    /// workspace's top folder.
    Mutants {
        /// Only the mutants with this text in their description, or in the path of a file that they change.
        name: Option<String>,
        /// Maximum number of seeds for each mutant.
        #[arg(long, default_value_t = 200_000)]
        seeds: u64,
    },
}

fn range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected FROM..TO")?;
    let number = |text: &str| text.replace('_', "").parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

fn main() -> ExitCode {
    run::silence_panics();
    match Cli::parse().command {
        Command::Run { seeds, jobs, brief } => run_seeds(seeds, jobs, brief),
        Command::Replay { seed, whole } => replay(seed, whole),
        Command::Mutants { name, seeds } => try_mutants(name.as_deref().unwrap_or_default(), seeds),
    }
}

fn run_seeds(seeds: std::ops::Range<u64>, jobs: Option<usize>, brief: bool) -> ExitCode {
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let sum = run::seeds(seeds, jobs.unwrap_or(cores), |done| eprint!("\r{done} seeds"));
    eprintln!();
    if !brief {
        for (text, count) in sum.facts.each() {
            println!("{count:>12}  {text}");
        }
        println!("{} seeds, {} steps, {:.1} s", sum.seeds, sum.steps, start.elapsed().as_secs_f64());
    }
    let Some((seed, violation)) = sum.failed else {
        println!("every promise held");
        return ExitCode::SUCCESS;
    };
    if !brief {
        replay(seed, false);
        println!("to repeat: target/sim/sim replay {seed}");
    }
    println!("seed {seed}: {violation}");
    ExitCode::FAILURE
}

fn replay(seed: u64, whole: bool) -> ExitCode {
    let mut report = run::seed(seed, true);
    if !whole && let Some(violation) = &report.violation {
        let tape = shrink::shrink(report.tape, violation);
        report = run::tape(tape, true);
    }
    for line in &report.trace {
        println!("{line}");
    }
    let Some(violation) = report.violation else { return ExitCode::SUCCESS };
    println!("seed {seed}: {violation}");
    ExitCode::FAILURE
}

fn try_mutants(name: &str, seeds: u64) -> ExitCode {
    let bench = match Bench::new(std::path::Path::new(".")) {
        Ok(bench) => bench,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("| planted bug | seeds | what broke |\n|---|---|---|");
    let mut unexpected = 0;
    let wanted =
        |mutant: &&Mutant| mutant.name.contains(name) || mutant.edits.iter().any(|edit| edit.file.contains(name));
    for mutant in MUTANTS.iter().filter(wanted) {
        let seeds = if mutant.expected == Expected::Found { seeds } else { seeds / 20 };
        let (line, as_expected) = match (bench.try_one(mutant, seeds), mutant.expected) {
            (Ok(MutantResult::After(count, violation)), expected) => {
                (format!("{count} | {violation}"), !matches!(expected, Expected::Harmless(_)))
            }
            (Ok(MutantResult::Never), Expected::Harmless(why)) => (format!("none of {seeds} | harmless: {why}"), true),
            (Ok(MutantResult::Never), Expected::Rare(why)) => (format!("none of {seeds} | rare: {why}"), true),
            (Ok(MutantResult::Never), Expected::Found) => (format!("none of {seeds} | NOT FOUND"), false),
            (Err(error), _) => (error, false),
        };
        println!("| {} | {line} |", mutant.name);
        unexpected += usize::from(!as_expected);
    }
    if unexpected == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
