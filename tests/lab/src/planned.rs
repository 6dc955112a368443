//! Owns a load that runs in this process and sends a plan, and its verdict by the lab's checker. The demo is such a
//! load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use msg_stack::Offsets;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch as flag;
use tokio::task::JoinSet;
use tokio_postgres::Client as Database;

use super::check::{Finding, check};
use super::error::LabError;
use super::evidence::{Clock, Commits, Evidence};
use super::history::{Book, Nanos, Outcome, Writer, now};
use super::load::caller::Caller;
use super::load::connect::{Access, links};
use super::load::planned::{Plan, Planned, Progress, run};
use super::load::status::Accepted;
use super::load::{Client, Load};
use super::{facts, settle};

/// Connections that the senders share; the gateway serves each on a task of its own.
const CONNECTIONS: usize = 2;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A load whose messages are planned, and its history.
#[derive(Debug)]
pub struct PlannedLoad {
    plan: Arc<Plan>,
    load: Arc<Load>,
    progress: Arc<Progress>,
    connections: Vec<Vec<Client>>,
    clock: Clock,
}

/// The findings of the checker, and the measurements of the load.
#[derive(Debug)]
pub struct Verdict {
    /// The findings, one for each thing that must hold.
    pub findings: Vec<Finding>,
    /// When the first message was sent.
    pub began: SystemTime,
    /// The time from the first message to the last outcome.
    pub sending: Duration,
    /// The duration of each call whose message was accepted.
    pub accepted: Vec<Duration>,
    /// Number of attempts that were reported as not sent.
    pub not_sent: usize,
    /// Number of attempts with an unknown outcome.
    pub unknown: usize,
    /// `send_time` and `stored_time` of each row.
    pub rows: Vec<(SystemTime, SystemTime)>,
    pub dead_letters: usize,
}

impl PlannedLoad {
    /// Prepares the load, and sends nothing yet. The messages of one stream are sent one after the other.
    pub fn new(gateway: &str, streams: Vec<Vec<Planned>>) -> Result<PlannedLoad, LabError> {
        let plan = Arc::new(Plan::new(streams));
        let load = Load {
            history: Writer::Book(Default::default()),
            calls: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            messages: Box::new(Arc::clone(&plan)),
            stored_share: 0.0,
            accepted: Accepted::default(),
            call_timeout: CALL_TIMEOUT,
            stop: flag::channel(false).1,
        };
        let connections = links(&[gateway.to_owned()], CONNECTIONS, &Access::Plain)?;
        Ok(PlannedLoad { plan, load: Arc::new(load), progress: Arc::default(), connections, clock: Clock::read() })
    }

    pub fn messages(&self) -> usize {
        self.plan.messages()
    }

    /// Returns the number of messages whose outcomes are all known.
    pub fn settled(&self) -> u64 {
        self.progress.settled.load(Ordering::Relaxed)
    }

    /// Returns a client of the gateway that shares a connection with the load.
    pub fn client(&self) -> Client {
        self.connections[0][0].clone()
    }

    /// Sends all streams, `concurrency` of them concurrently, and returns when every message is accepted.
    pub async fn send(&self, concurrency: usize) -> Result<(), LabError> {
        let mut senders = JoinSet::new();
        for number in 0..concurrency {
            let links = self.connections[number % CONNECTIONS].clone();
            let rng = StdRng::seed_from_u64(number as u64);
            let caller = Caller::new(Arc::clone(&self.load), links, 0, rng);
            senders.spawn(run(caller, Arc::clone(&self.plan), Arc::clone(&self.progress)));
        }
        while let Some(ended) = senders.join_next().await {
            ended.expect("a sender does not panic")?;
        }
        Ok(())
    }

    /// Reads the tables and the offsets after everything is stored, and checks every promise. `commits` are offsets
    /// that the group had committed earlier, each with the time of the response.
    pub async fn judge(
        &self,
        database: &Database,
        offsets: &Offsets,
        commits: Vec<(SystemTime, Vec<i64>)>,
    ) -> Result<Verdict, LabError> {
        let commits = commits.into_iter().map(|(at, next)| Commits { at: micros(at), next });
        let mut evidence = Evidence {
            clock: self.clock,
            began: self.clock.at,
            ended: now(),
            ends: offsets.ends().await?,
            // Read these before the progress rows: progress rows that are read later can only be higher.
            committed: offsets.committed().await?,
            commits: commits.collect(),
            ..Evidence::default()
        };
        evidence.progress = settle::progress_rows(database, evidence.ends.len()).await?;
        facts::read(database, &self.plan, &mut evidence).await?;
        Ok(Verdict::of(&self.load.history.take_book(), &evidence))
    }
}

impl Verdict {
    fn of(book: &Book, evidence: &Evidence) -> Verdict {
        let count = |of: fn(&Outcome) -> bool| book.attempts.iter().filter(|attempt| of(&attempt.outcome)).count();
        let accepted = book.attempts.iter().filter(|attempt| attempt.outcome.position().is_some());
        let between = |from: Nanos, to: Nanos| Duration::from_nanos(to.saturating_sub(from));
        let first = book.attempts.first().map_or(evidence.began, |attempt| attempt.sent);
        let last = book.attempts.iter().filter_map(|attempt| attempt.responded).max().unwrap_or(first);
        Verdict {
            findings: check(book, evidence),
            began: time(evidence.clock.micros) + between(evidence.clock.at, first),
            sending: between(first, last),
            accepted: accepted.filter_map(|attempt| Some(between(attempt.sent, attempt.responded?))).collect(),
            not_sent: count(|outcome| matches!(outcome, Outcome::NotSent(_))),
            unknown: count(|outcome| matches!(outcome, Outcome::Unknown(_))),
            rows: evidence.rows.iter().map(|row| (time(row.sent), time(row.stored))).collect(),
            dead_letters: evidence.dead_letters.len(),
        }
    }
}

fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs())
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(since.as_micros()).expect("for 290,000 years")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Row;
    use crate::history::{Event, Way};

    /// Returns the broken promises of a message that was accepted at offset 0 of the only partition, with these rows.
    fn broken(rows: Vec<Row>) -> Vec<String> {
        let mut book = Book::default();
        let (way, msgs) = (Way::Unary, vec![(0, 0)]);
        let (stream, stored, altered) = (None, false, false);
        book.add(0, Event::Send { call: 0, at: 1_000, sender: 0, way, stream, stored, altered, gateway: 0, msgs });
        book.add(0, Event::Outcomes { call: 0, at: 9_000, results: vec![(0, Outcome::Ok(0, 0))] });
        let (ends, committed, progress) = (vec![1], vec![1], vec![1]);
        let verdict = Verdict::of(&book, &Evidence { rows, ends, committed, progress, ..Evidence::default() });
        assert_eq!((verdict.accepted.len(), verdict.sending), (1, Duration::from_micros(8)));
        let broken = verdict.findings.iter().filter(|finding| !finding.holds());
        broken.map(|finding| format!("{} {}", finding.promise, finding.what)).collect()
    }

    #[test]
    fn verdict_of_a_lost_or_altered_row_is_broken() {
        let good = Row { inbox: 0, seq: 1, sender: 0, n: 0, partition: 0, offset: 0, sent: 5, stored: 10, same: true };
        assert_eq!(broken(vec![good.clone()]), [""; 0]);
        assert_eq!(broken(Vec::new()), ["P1 each accepted message is a row, or a dead letter at its position"]);
        let altered = Row { same: false, ..good };
        assert_eq!(
            broken(vec![altered]),
            [" each row has exactly the bytes that were sent, in the inbox that they were sent to"]
        );
    }
}
