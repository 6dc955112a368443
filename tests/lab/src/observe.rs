//! Observes the run: follows the histories, measures the processes, reads offsets, and restarts services that ended
//! unexpectedly.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use msg_stack::{Process, sum_of};

use super::error::LabError;
use super::evidence::{Clock, Commits, Health, LostOffsets, Sample, Waiting};
use super::history::{Book, Event, HistoryFollower, Nanos, now};
use super::world::{Node, World};

const INTERVAL: Duration = Duration::from_secs(1);
/// The interval for offsets. It is shorter: a record that was committed too early is stored soon, so a longer one would
/// miss it.
const OFFSETS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(crate) struct Observed {
    pub(crate) samples: Vec<Sample>,
    pub(crate) commits: Vec<Commits>,
    pub(crate) lag: Vec<(Nanos, Option<i64>)>,
    pub(crate) health: Vec<Health>,
    pub(crate) waiting: Vec<Waiting>,
    /// The lost offsets that each process counted, by process and partition.
    pub(crate) lost_offsets: BTreeMap<(u32, i32), LostOffsets>,
    /// Processes that ended unexpectedly, in words.
    pub(crate) ended: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Observer {
    pub(crate) observed: Mutex<Observed>,
    pub(crate) book: Mutex<Book>,
    /// The position in each history.
    tails: Mutex<Vec<HistoryFollower>>,
    /// Number of accepted messages, including repeats.
    pub(crate) accepted: AtomicU64,
    /// Whether services that ended are started again.
    pub(crate) restarts_services: AtomicBool,
}

impl Observer {
    /// Observes for as long as the future is polled. An error is an error of the lab itself.
    pub(crate) async fn watch(&self, world: &World) -> LabError {
        tokio::select! {
            error = self.follow(world) => error,
            error = self.measure(world) => error,
            () = self.offsets(world) => unreachable!("it never ends"),
        }
    }

    fn observed(&self) -> std::sync::MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the histories as they grow.
    async fn follow(&self, world: &World) -> LabError {
        loop {
            tokio::time::sleep(INTERVAL / 2).await;
            if let Err(error) = tokio::task::block_in_place(|| self.catch_up(world)) {
                return error;
            }
        }
    }

    /// Reads what the histories have gained since the last call.
    pub(crate) fn catch_up(&self, world: &World) -> Result<(), LabError> {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tails.len();
        tails.extend(world.loads.new_histories(known));
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        for (file, tail) in tails.iter_mut().enumerate() {
            let file = u32::try_from(file).expect("few files");
            let add = |event| {
                if let Event::Outcomes { results, .. } = &event {
                    let accepted = results.iter().filter(|(_, outcome)| outcome.position().is_some()).count();
                    self.accepted.fetch_add(accepted as u64, Ordering::Relaxed);
                }
                book.add(file, event);
            };
            tail.more(add).map_err(LabError::io("read", format!("history {file}")))?;
        }
        Ok(())
    }

    async fn measure(&self, world: &World) -> LabError {
        let mut every = tokio::time::interval(INTERVAL);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            for node in world.gateways.iter().chain(&world.transfers) {
                if let Err(error) = self.node(node).await {
                    return error;
                }
            }
            let brokers = (1..=3).filter_map(|id| Some((format!("broker-{id}"), world.stack.kafka().process(id)?)));
            let postgres = world.stack.postgres().process().map(|process| ("postgresql".to_owned(), process));
            for (name, process) in brokers.chain(postgres) {
                if process.exit_status().is_none() {
                    self.observed().samples.extend(sample(name, &process, None));
                }
            }
        }
    }

    async fn node(&self, node: &Node) -> Result<(), LabError> {
        let service = node.service();
        let Some(process) = service.process() else { return Ok(()) };
        if let Some(status) = process.exit_status() {
            if node.is_wanted() && self.restarts_services.load(Ordering::Relaxed) {
                self.observed().ended.push(format!("{} ended unexpectedly ({status})", node.name()));
                node.launch()?;
            }
            return Ok(());
        }
        let metrics = service.metrics().await.unwrap_or_default();
        let kind = node.name().split('-').next().unwrap_or_default();
        let (count, bytes) = match kind {
            "gateway" => ("msg_gateway_inflight_msgs", "msg_gateway_inflight_bytes"),
            _ => ("msg_transfer_inflight_records", "msg_transfer_inflight_bytes"),
        };
        let inflight = sum_of(&metrics, count).zip(sum_of(&metrics, bytes));
        for lost in lost_offsets(&metrics) {
            self.observed().lost_offsets.insert((process.pid(), lost.partition), lost);
        }
        // A service whose admin port does not respond is not ready.
        if !metrics.is_empty() {
            let (ready, text) = service.readiness().await.unwrap_or_default();
            let reason = if ready { String::new() } else { text };
            self.observed().health.push(Health { at: now(), process: node.name().to_owned(), ready, reason });
        }
        self.observed().samples.extend(sample(node.name().to_owned(), &process, inflight));
        Ok(())
    }

    async fn offsets(&self, world: &World) {
        let mut every = tokio::time::interval(OFFSETS_INTERVAL);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0_u32;
        loop {
            every.tick().await;
            let committed = logged(world.offsets.committed().await);
            if let Some(next) = &committed {
                let at = Clock::read().micros;
                self.observed().commits.push(Commits { at, next: next.clone() });
            }
            if round.is_multiple_of(5) {
                let ends = logged(world.offsets.ends().await);
                let at = now();
                let waiting = ends.zip(committed).map(|(ends, committed)| Waiting { at, ends, committed });
                let mut observed = self.observed();
                observed.lag.push((at, waiting.as_ref().map(Waiting::records)));
                observed.waiting.extend(waiting);
            }
            round = round.wrapping_add(1);
        }
    }
}

fn logged<T>(offsets: rdkafka::error::KafkaResult<T>) -> Option<T> {
    offsets.inspect_err(|error| tracing::warn!("reading offsets from Kafka: {error}")).ok()
}

/// Measures a process; returns none if it has ended.
fn sample(process: String, of: &Process, inflight: Option<(f64, f64)>) -> Option<Sample> {
    let pid = of.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (mut fds, mut sockets) = (0, 0);
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        fds += 1;
        let is_socket = fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        sockets += u32::from(is_socket);
    }
    Some(Sample {
        at: now(),
        process,
        pid,
        rss: field("VmRSS:")? << 10,
        fds,
        sockets,
        threads: u32::try_from(field("Threads:")?).ok()?,
        inflight,
    })
}

/// Returns the lost offsets that a transfer reports, by partition.
fn lost_offsets(metrics: &str) -> impl Iterator<Item = LostOffsets> {
    metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("msg_transfer_lost_offsets_total{partition=\"")?;
        let (partition, count) = rest.split_once("\"} ")?;
        Some(LostOffsets { partition: partition.parse().ok()?, count: count.trim().parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_offsets_are_read_by_partition() {
        let metrics = "msg_transfer_lost_offsets_total{partition=\"3\"} 20\nmsg_transfer_lost_offsets_totals 1\n";
        assert_eq!(lost_offsets(metrics).collect::<Vec<_>>(), [LostOffsets { partition: 3, count: 20.0 }]);
    }
}
