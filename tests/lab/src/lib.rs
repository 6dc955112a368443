//! `msg-dev lab` runs real processes under load, injects faults, and checks the promises. The checker knows only what
//! callers were sent and what the database contains. This file owns the order of the steps; each step is in a file of
//! its own.
#![allow(clippy::print_stdout, reason = "a command line tool that prints its progress and its findings")]
#![expect(missing_docs, reason = "public only for our own programs: a comment has to add to the name")]

mod accounts;
mod args;
mod check;
mod disk;
mod error;
mod evidence;
mod facts;
mod history;
mod kind;
mod load;
mod loads;
mod message;
mod nemesis;
mod observe;
mod planned;
mod report;
mod schedule;
mod secure;
pub mod settle;
pub mod text;
mod topology;
mod world;

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use self::args::LabArgs;
pub use self::check::Finding;
pub use self::error::LabError;
use self::evidence::{Clock, Evidence, Limit, Measure};
use self::history::{Book, now};
use self::kind::Kind;
pub use self::load::planned::{Planned, Repeat};
pub use self::load::{Client, LoadArgs, run as run_load};
use self::message::Computed;
use self::observe::Observer;
pub use self::planned::{PlannedLoad, Verdict};
pub use self::report::verdict;
use self::schedule::Schedule;
use self::secure::Identities;
use self::world::World;

const LOAD_PROCESSES: u32 = 2;
/// How long the load runs before the first fault, and after the last.
const CALM: Duration = Duration::from_secs(5);
/// How long the transfers may need after a fault until the lag is no more than [`NEAR`] of the load.
const RECOVER_WITHIN: Duration = Duration::from_secs(600);
const NEAR: Duration = Duration::from_secs(3);
const SHOW_EVERY: Duration = Duration::from_secs(10);

/// Runs the lab, and ends all processes that it started, in every case.
pub async fn run(args: LabArgs) -> Result<(), LabError> {
    if args.list {
        print!("{}", schedule::list());
        return Ok(());
    }
    let mut stop = msg_stack::StopSignals::listen()?;
    let folder = match &args.state {
        Some(folder) => std::path::absolute(folder).map_err(LabError::io("resolve", folder))?,
        None => {
            let folder = tempfile::Builder::new().prefix("msg-lab-").tempdir();
            folder.map_err(LabError::io("create a folder in", std::env::temp_dir()))?.keep()
        }
    };
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let lab = Lab { command: command(seed), seed, folder, began: Instant::now(), args };
    lab.say(&format!("seed {seed}; everything is in {}", lab.folder.display()));
    // This future owns all processes: whichever branch ends first, they end with it.
    let ran = tokio::select! {
        ran = Box::pin(lab.work()) => ran,
        () = stop.requested() => Err(LabError::Interrupted),
    };
    match &ran {
        Ok(()) if lab.args.state.is_none() => {
            std::fs::remove_dir_all(&lab.folder).map_err(LabError::io("remove", &lab.folder))?;
        }
        Ok(()) => {}
        Err(_) => {
            println!("\nhistories, logs and data are in {}", lab.folder.display());
            println!("to repeat it: {}", lab.command);
        }
    }
    ran
}

/// Moves the observations into the evidence.
fn take_over(observer: &Observer, evidence: &mut Evidence) {
    let mut observed = observer.observed.lock().unwrap_or_else(PoisonError::into_inner);
    evidence.samples = std::mem::take(&mut observed.samples);
    evidence.commits = std::mem::take(&mut observed.commits);
    evidence.lag = std::mem::take(&mut observed.lag);
    evidence.health = std::mem::take(&mut observed.health);
    evidence.waiting = std::mem::take(&mut observed.waiting);
    evidence.lost_offsets = std::mem::take(&mut observed.lost_offsets).into_values().collect();
    evidence.foreign.append(&mut observed.ended);
}

/// Returns the command line that repeats the run.
fn command(seed: u64) -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if let Ok(program) = std::env::var("TOXIPROXY") {
        words.push(format!("--toxiproxy={program}"));
    }
    if !words.iter().any(|word| word.starts_with("--seed")) {
        words.push(format!("--seed={seed}"));
    }
    words.join(" ")
}

struct Lab {
    args: LabArgs,
    command: String,
    seed: u64,
    folder: PathBuf,
    began: Instant,
}

impl Lab {
    fn report_folder(&self) -> &Path {
        self.args.report.as_deref().unwrap_or(&self.folder)
    }

    fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.began.elapsed().as_secs_f64());
    }

    async fn work(&self) -> Result<(), LabError> {
        let mut schedule = Schedule::new(&self.args);
        for old in ["report.html", "report.json"] {
            // A report of an earlier run would look like this run's.
            let _ = std::fs::remove_file(self.report_folder().join(old));
        }
        let how = if self.args.secure { ", all with TLS and logins" } else { "" };
        self.say(&format!("starting three brokers, PostgreSQL, two gateways and the transfers{how}"));
        let world = Box::pin(World::start(&self.args, schedule.needs(), self.folder.clone())).await?;
        for _ in 0..LOAD_PROCESSES {
            world.loads.start(self.load_flags(&world), world.stack.logs())?;
        }
        let observer = Observer::default();
        observer.restarts_services.store(true, Ordering::Relaxed);
        let mut evidence = Evidence { clock: Clock::read(), began: now(), limits: limits(), ..Evidence::default() };
        let done = tokio::select! {
            done = Box::pin(self.break_things(&world, &observer, &mut schedule, &mut evidence)) => done,
            error = observer.watch(&world) => Err(error),
        };
        if let Err(error) = done {
            // Read no rows: the database may not respond. The histories are there.
            take_over(&observer, &mut evidence);
            save(&self.folder, &evidence)?;
            return Err(error);
        }
        self.say("everything is stored; reading the database");
        let book = self.collect(&world, &observer, &mut evidence).await?;
        self.say(&format!("checking {} messages and {} rows", book.messages.len(), evidence.rows.len()));
        self.judge(&book, &evidence)
    }

    /// Runs the load and injects every fault of the schedule, until everything is stored.
    async fn break_things(
        &self,
        world: &World,
        observer: &Observer,
        schedule: &mut Schedule,
        evidence: &mut Evidence,
    ) -> Result<(), LabError> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let end = self.args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
        let count = schedule.len();
        tokio::time::sleep(CALM).await;
        self.recovered(observer).await?;
        while end.is_none_or(|end| Instant::now() < end) {
            let kinds = schedule.next(&mut rng);
            if kinds.is_empty() {
                break;
            }
            let number = evidence.faults.len() + 1;
            let of = count.map(|count| format!("/{count}")).unwrap_or_default();
            let names: Vec<String> = kinds.iter().map(|kind| kind.name()).collect();
            self.say(&format!("{number}{of} {}{}", names.join(" and "), self.level(observer)));
            self.inject(&kinds, world, observer, &mut rng, evidence).await?;
            tokio::time::sleep(Duration::from_secs_f64(self.args.fault_interval)).await;
            self.recovered(observer).await?;
        }
        tokio::time::sleep(CALM).await;
        self.say(&format!("the load ends{}", self.level(observer)));
        world.loads.stop().await?;
        evidence.ended = now();
        settle::until_stored(&world.offsets).await?;
        // Measure every process once more, while it is idle.
        tokio::time::sleep(CALM).await;
        observer.restarts_services.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn inject(
        &self,
        kinds: &[Kind],
        world: &World,
        observer: &Observer,
        rng: &mut StdRng,
        evidence: &mut Evidence,
    ) -> Result<(), LabError> {
        let hold = self.args.fault_duration.map(Duration::from_secs_f64);
        let injections = kinds.iter().map(|kind| kind.inject(world, StdRng::from_rng(rng), hold));
        let all = futures_util::future::try_join_all(injections.collect::<Vec<_>>());
        for injected in self.shown(observer, Box::pin(all)).await? {
            let fault = injected.fault;
            let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
            self.say(&format!(
                "  {}: in force {:.1} s, undone in {:.1} s",
                fault.target,
                seconds(fault.broken, fault.over),
                seconds(fault.over, fault.healed)
            ));
            evidence.faults.push(fault);
            evidence.poison.extend(injected.seen.poison);
            evidence.topics.extend(injected.seen.topic);
            evidence.truncations.extend(injected.seen.truncation);
            evidence.growths.extend(injected.seen.growth);
        }
        Ok(())
    }

    /// Waits for the future, and prints the state every [`SHOW_EVERY`].
    async fn shown<T>(&self, observer: &Observer, future: impl Future<Output = T> + Unpin) -> T {
        let mut future = future;
        loop {
            tokio::select! {
                done = &mut future => return done,
                () = tokio::time::sleep(SHOW_EVERY) => self.say(&format!("  …{}", self.level(observer))),
            }
        }
    }

    /// Waits until the lag is no more than what the load sends in [`NEAR`].
    async fn recovered(&self, observer: &Observer) -> Result<(), LabError> {
        let most = (f64::from(self.args.rate) * NEAR.as_secs_f64()) as i64;
        let near = async {
            loop {
                let requested = now();
                tokio::time::sleep(Duration::from_millis(250)).await;
                let observed = observer.observed.lock().unwrap_or_else(PoisonError::into_inner);
                let last = observed.lag.last().copied();
                drop(observed);
                if last.is_some_and(|(at, lag)| {
                    at > requested.saturating_sub(2_000_000_000) && lag.is_some_and(|lag| lag <= most)
                }) {
                    return;
                }
            }
        };
        let late = |_| LabError::Stuck(format!("the lag is still more than {most} records after {RECOVER_WITHIN:?}"));
        self.shown(observer, Box::pin(tokio::time::timeout(RECOVER_WITHIN, near))).await.map_err(late)
    }

    /// Describes how many messages were accepted, and the lag.
    fn level(&self, observer: &Observer) -> String {
        let observed = observer.observed.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = observed.lag.last().and_then(|(_, lag)| *lag);
        let lag = lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
        format!("  ({} accepted, lag {lag})", observer.accepted.load(Ordering::Relaxed))
    }

    /// Collects the evidence for the checker.
    async fn collect(&self, world: &World, observer: &Observer, evidence: &mut Evidence) -> Result<Book, LabError> {
        tokio::task::block_in_place(|| observer.catch_up(world))?;
        evidence.ends = world.offsets.ends().await?;
        evidence.committed = world.offsets.committed().await?;
        evidence.progress = settle::progress(world).await?;
        facts::read(&world.database().await?, &Computed, evidence).await?;
        take_over(observer, evidence);
        Ok(std::mem::take(&mut observer.book.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn judge(&self, book: &Book, evidence: &Evidence) -> Result<(), LabError> {
        let mut findings = check::check(book, evidence);
        findings.push(check::got_through(book));
        let run = report::Run {
            title: self.args.plan.map_or_else(|| "faults".to_owned(), |plan| format!("{plan:?}").to_lowercase()),
            command: self.command.clone(),
            seed: self.seed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision(),
        };
        let summary = write_report(self.report_folder(), &run, book, evidence, &findings)?;
        println!("\n{summary}");
        match findings.iter().filter(|finding| finding.broken > 0).count() {
            0 => {
                self.say("every promise holds");
                Ok(())
            }
            broken => {
                save(&self.folder, evidence)?;
                Err(LabError::Broken { broken })
            }
        }
    }

    fn load_flags(&self, world: &World) -> Vec<String> {
        let mut flags: Vec<String> = Vec::new();
        for address in world.addresses() {
            flags.extend(["--gateway".to_owned(), address]);
        }
        flags.extend(world.identities.iter().flat_map(Identities::load_flags));
        let numbers = [
            ("--rate", (self.args.rate / LOAD_PROCESSES).max(1)),
            ("--inboxes", self.args.inboxes),
            ("--unary", 48),
            ("--batch", 4),
            ("--stream", 6),
            ("--pullers", 3),
            ("--watchers", 6),
        ];
        flags.extend(numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]));
        flags
    }
}

/// Returns the commit that is checked out in the working folder, if there is one.
fn revision() -> String {
    let described = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let described = described.ok().filter(|output| output.status.success());
    described.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn write_report(
    folder: &Path,
    run: &report::Run,
    book: &Book,
    evidence: &Evidence,
    findings: &[Finding],
) -> Result<report::Summary, LabError> {
    std::fs::create_dir_all(folder).map_err(LabError::io("create", folder))?;
    report::write(folder, run, book, evidence, findings).map_err(LabError::io("write the report to", folder))
}

/// Writes the evidence to files, for an analysis of a broken promise.
fn save(folder: &Path, evidence: &Evidence) -> Result<(), LabError> {
    let path = folder.join("evidence.json");
    let file = std::fs::File::create(&path).map_err(LabError::io("create", &path))?;
    serde_json::to_writer(std::io::BufWriter::new(file), evidence)
        .map_err(|error| LabError::io("write", &path)(error.into()))?;
    let path = folder.join("rows.csv");
    let broken = |error: csv::Error| LabError::io("write", folder.join("rows.csv"))(error.into());
    let mut rows = csv::Writer::from_path(&path).map_err(broken)?;
    for row in &evidence.rows {
        rows.serialize(row).map_err(broken)?;
    }
    rows.flush().map_err(LabError::io("write", path))
}

/// Returns the limits of each process: the services' own limits, and for memory what those add up to.
fn limits() -> Vec<Limit> {
    let limit = |process: &str, what, most| Limit { process: process.to_owned(), what, most };
    vec![
        limit("gateway", Measure::Inflight, 20_000.0),
        limit("gateway", Measure::InflightBytes, f64::from(64 << 20)),
        limit("gateway", Measure::Rss, f64::from(512 << 20)),
        limit("gateway", Measure::Fds, 1_000.0),
        // 30 each on two cores; tokio has more on more cores, and up to 512 for calls that block.
        limit("gateway", Measure::Threads, 200.0),
        // And the maximum that a transfer fetches from Kafka.
        limit("transfer", Measure::Inflight, 51_000.0),
        limit("transfer", Measure::InflightBytes, f64::from(64 << 20)),
        limit("transfer", Measure::Rss, f64::from(512 << 20)),
        limit("transfer", Measure::Fds, 500.0),
        limit("transfer", Measure::Threads, 200.0),
    ]
}
