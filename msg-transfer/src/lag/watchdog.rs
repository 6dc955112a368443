//! Reads the lag of the whole topic regularly, sets the gauges, and reports stalled partitions: records wait and none
//! is stored.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::partition::Partition;
use tokio::time::MissedTickBehavior;

use super::states::{Owned, States};
use super::{Lag, LagError, LagReader, PartitionLag, gauges};

/// The interval at which the lag in records is read. Each time costs a few requests to Kafka.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The interval at which the age of the oldest record is read as well. That record has to be fetched.
const AGES_INTERVAL: Duration = Duration::from_secs(30);

/// The task that reports stalled partitions.
pub(crate) struct Watchdog {
    /// Reads the end offsets and the progress rows.
    pub reader: LagReader,
    /// The partitions that this process owns.
    pub states: States,
    pub readiness: Readiness,
    pub topic: String,
    pub group: String,
    /// How long records may wait while none is stored.
    pub stall_timeout: Duration,
    /// The time that the group needs to detect that a member has died.
    pub session_timeout: Duration,
}

/// A partition in which records wait and none is stored.
struct Stalled {
    partition: Partition,
    /// The first offset that is not completed, and the end offset; `None` if no leader responds.
    rest: Option<(i64, i64)>,
    owned: Option<Owned>,
}

impl Watchdog {
    /// Watches until it is dropped.
    pub(crate) async fn run(self) {
        gauges::describe();
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut observed, mut ages_read) = (Observed::default(), None::<Instant>);
        let mut unknown_since = None;
        loop {
            ticks.tick().await;
            let mut lag = match self.reader.count().await {
                Ok(lag) => lag,
                Err(error) => {
                    self.unknown(&error, &mut unknown_since);
                    match error {
                        LagError::Kafka(_) => observed.interrupt(),
                        // An outage of the database has a reason of its own.
                        LagError::Database(_) => observed = Observed::default(),
                    }
                    continue;
                }
            };
            if unknown_since.take().is_some() {
                self.readiness.ready("lag");
            }
            // The topic can be described, so an error of the whole topic that the consumer reported is over.
            self.readiness.ready("topic");
            gauges::records(&lag);
            if ages_read.is_none_or(|read| read.elapsed() >= AGES_INTERVAL) {
                ages_read = Some(Instant::now());
                match self.reader.add_ages(&mut lag).await {
                    Ok(()) => gauges::ages(&lag, SystemTime::now()),
                    // The gauges keep their last values; readiness reports what is unavailable.
                    Err(error) => {
                        tracing::debug!(error = chain(&error), "could not read the lag time, will be retried");
                    }
                }
            }
            let stalled = self.stalled(&mut observed, &lag).await;
            gauges::stalled(stalled.len());
            self.report(&stalled).await;
        }
    }

    async fn stalled(&self, observed: &mut Observed, lag: &Lag) -> Vec<Stalled> {
        let now = Instant::now();
        let owned = self.states.all();
        let mut found = Vec::new();
        for (partition, waited) in observed.observe(now, &lag.partitions, &lag.unreachable) {
            let state = owned.get(&partition).cloned();
            let since_assigned = state.as_ref().map_or(Duration::MAX, |owned| now.duration_since(owned.assigned));
            let limit = self.stall_timeout + if state.is_some() { Duration::ZERO } else { self.session_timeout };
            if waited.min(since_assigned) < limit {
                continue;
            }
            let lag = lag.partitions.iter().find(|lag| lag.partition == partition);
            found.push(Stalled { partition, rest: lag.map(|lag| (lag.unstored_from(), lag.end)), owned: state });
        }
        // A transaction marker at the end of the log has an offset and is no record.
        let unknown = found.iter().filter(|stalled| !observed.is_empty(stalled));
        let unknown: Vec<_> = unknown.filter_map(|stalled| Some((stalled.partition, stalled.rest?.0))).collect();
        let empty = self.reader.without_records(unknown).await;
        let rests = found.iter().filter(|stalled| empty.contains(&stalled.partition));
        observed.empty.extend(rests.filter_map(|stalled| Some((stalled.partition, stalled.rest?))));
        found.retain(|stalled| !observed.is_empty(stalled));
        found
    }

    async fn report(&self, stalled: &[Stalled]) {
        // Another member reports its own partitions. If there is none, this process reports them.
        let foreign = stalled.iter().any(|stalled| stalled.owned.is_none());
        let alone = foreign && self.is_alone().await;
        let reported = stalled.iter().filter(|stalled| stalled.owned.is_some() || alone);
        let texts: Vec<String> = reported.map(|stalled| self.describe(stalled)).collect();
        if texts.is_empty() {
            self.readiness.ready("stalled");
        } else {
            self.readiness.not_ready("stalled", format!("records wait and none is stored: {}", texts.join("; ")));
        }
    }

    /// Describes a stalled partition without numbers that change, because each change of a reason is logged.
    fn describe(&self, stalled: &Stalled) -> String {
        let (topic, partition) = (&self.topic, stalled.partition);
        let Some((from, _)) = stalled.rest else {
            return format!("{topic} partition {partition} has no leader that responds");
        };
        let state = match &stalled.owned {
            Some(owned) => owned.state.describe(),
            None => "no member of the group has it",
        };
        format!("{topic} partition {partition} from offset {from} on ({state})")
    }

    async fn is_alone(&self) -> bool {
        matches!(self.reader.group(&self.group).await, Ok(group) if group.as_ref().is_none_or(|group| group.members <= 1))
    }

    fn unknown(&self, error: &LagError, since: &mut Option<(Instant, bool)>) {
        tracing::debug!(error = chain(error), "could not read the lag, will be retried");
        let LagError::Kafka(error) = error else { return };
        let (since, reported) = since.get_or_insert((Instant::now(), false));
        // Only once, because each change of a reason is logged, and the error's text may differ each time.
        if !*reported && since.elapsed() >= self.stall_timeout {
            *reported = true;
            let topic = &self.topic;
            self.readiness.not_ready("lag", format!("not known whether records of {topic} wait: {}", chain(error)));
        }
    }
}

/// How long each partition has waited, as far as this process has seen it.
#[derive(Default)]
struct Observed {
    waiting: HashMap<Partition, Waiting>,
    /// Partitions that contain no record from the first to the second offset.
    empty: HashMap<Partition, (i64, i64)>,
    last: Option<Instant>,
}

struct Waiting {
    next: Option<i64>,
    lasts: Duration,
}

impl Observed {
    /// Updates the waiting partitions, and returns how long each has waited.
    fn observe(
        &mut self,
        now: Instant,
        lags: &[PartitionLag],
        unreachable: &[Partition],
    ) -> BTreeMap<Partition, Duration> {
        // If this process was frozen, it does not know whether records were stored in that time.
        let passed = self.last.map_or(Duration::ZERO, |last| now.duration_since(last).min(2 * CHECK_INTERVAL));
        self.last = Some(now);
        let before = std::mem::take(&mut self.waiting);
        let behind = lags.iter().filter(|lag| lag.records() > 0);
        let waiting = behind.map(|lag| (lag.partition, Some(lag.next())));
        for (partition, next) in waiting.chain(unreachable.iter().map(|partition| (*partition, None))) {
            let same = before.get(&partition).filter(|before| before.next == next);
            let lasts = same.map_or(Duration::ZERO, |before| before.lasts + passed);
            self.waiting.insert(partition, Waiting { next, lasts });
        }
        self.waiting.iter().map(|(partition, waiting)| (*partition, waiting.lasts)).collect()
    }

    fn is_empty(&self, stalled: &Stalled) -> bool {
        stalled.rest.is_some() && self.empty.get(&stalled.partition) == stalled.rest.as_ref()
    }

    /// Records that the lag could not be read this time.
    fn interrupt(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag((partition, progress, end): (Partition, i64, i64)) -> PartitionLag {
        PartitionLag { partition, committed: None, progress: Some(progress), start: 0, end, oldest: None }
    }

    #[test]
    fn waiting_counts_only_without_progress_and_while_seen() {
        let (mut observed, start) = (Observed::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut waited = |seconds, lags: &[(Partition, i64, i64)], unreachable: &[Partition]| {
            let lags: Vec<_> = lags.iter().copied().map(lag).collect();
            let waits = observed.observe(at(seconds), &lags, unreachable);
            (0..3).map(|partition| waits.get(&partition).map(Duration::as_secs)).collect::<Vec<_>>()
        };
        assert_eq!(waited(0, &[(0, 5, 9), (1, 5, 5)], &[2]), [Some(0), None, Some(0)]);
        assert_eq!(waited(5, &[(0, 5, 9), (1, 5, 5)], &[2]), [Some(5), None, Some(5)]);
        assert_eq!(waited(10, &[(0, 5, 12), (1, 5, 6)], &[2]), [Some(10), Some(0), Some(10)]);
        assert_eq!(waited(15, &[(0, 6, 12), (1, 5, 6), (2, 0, 0)], &[]), [Some(0), Some(5), None]);
        // The process was frozen for an hour.
        assert_eq!(waited(3615, &[(0, 6, 12)], &[]), [Some(10), None, None]);
        observed.interrupt();
        assert_eq!(observed.observe(at(3625), &[lag((0, 6, 12))], &[])[&0].as_secs(), 10);
    }
}
