//! Reads the lag of the whole topic regularly, sets the gauges, and reports stalled partitions: records wait and none
//! is stored.

use std::time::{Duration, Instant, SystemTime};

use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::kafka::RequestError;
use msg_common::partition::Partition;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::task::AbortOnDropHandle;

use super::awake::Awake;
use super::background::Background;
use super::kafka::Oldest;
use super::members::{Group, Holders};
use super::states::{Owned, States};
use super::unknown::Unknown;
use super::waiting::Observed;
use super::{Lag, LagError, LagReader, gauges};
use crate::consumer::io::Explainer;

/// The interval at which the lag in records is read. Each time costs a few requests to Kafka. A stalled partition is
/// reported at most this much later than `STALL_TIMEOUT`.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The time after which a response is slow: then the stalled partitions are reported without it.
const SLOW: Duration = Duration::from_secs(1);

/// The interval at which the age of the oldest record is read as well. That record has to be fetched.
const AGES_INTERVAL: Duration = Duration::from_secs(30);

/// The task that reports stalled partitions.
pub(crate) struct Watchdog {
    /// Reads the end offsets and the progress rows.
    pub reader: LagReader,
    /// The partitions that this process owns.
    pub states: States,
    pub readiness: Readiness,
    /// Reports why the consumer is in no group.
    pub explainer: Explainer,
    pub topic: String,
    pub group: String,
    /// The `client.id` of the transfers. A member of the group with another one is no transfer.
    pub client_id: String,
    /// How long records may wait while none is stored.
    pub stall_timeout: Duration,
}

/// A partition in which records wait and none is stored.
struct Stalled {
    partition: Partition,
    waits_for: WaitsFor,
    owned: Option<Owned>,
}

enum WaitsFor {
    Leader,
    /// An open transaction, whose first record has this offset.
    Transaction(i64),
    /// A transfer. The first offset that is not completed.
    Transfer(i64),
}

/// The time when a lag was read, that lag, and its oldest records.
type OldestOf = (Duration, Lag, Result<Oldest, RequestError>);

/// What the watchdog knows. The requests that may need several seconds run in the background, because they must not
/// delay the report of another partition.
struct Watch {
    awake: Awake,
    /// The lag that was read last.
    lag: Option<Lag>,
    observed: Observed,
    holders: Holders,
    unknown: Unknown,
    oldest: Background<OldestOf>,
    oldest_read: Option<Instant>,
    group: Background<Result<Option<Group>, RequestError>>,
}

impl Watchdog {
    pub(crate) async fn run(self) {
        gauges::describe();
        let awake = Awake::new();
        let _counting = AbortOnDropHandle::new(tokio::spawn(awake.clone().run()));
        let mut watch = Watch {
            lag: None,
            observed: Observed::default(),
            holders: Holders::new(self.client_id.clone()),
            unknown: Unknown::new(awake.now()),
            oldest: Background::default(),
            oldest_read: None,
            group: Background::default(),
            awake,
        };
        loop {
            let started = watch.awake.now();
            match self.count(&mut watch).await {
                Ok(lag) => self.counted(&mut watch, started, lag).await,
                Err(error) => {
                    tracing::debug!(error = chain(&error), "could not read the lag, will be retried");
                    if let LagError::Kafka(error) = &error
                        && let Some(detail) = error.missing_coordinator()
                    {
                        // The consumer receives no error of this.
                        let code = RDKafkaErrorCode::CoordinatorNotAvailable;
                        self.explainer.explain(&KafkaError::Global(code), detail);
                    }
                    self.not_counted(&mut watch, Some(&error));
                }
            }
            let pause = self.report(&watch);
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads the lag. While the response is slow, it reports what is known without it.
    async fn count(&self, watch: &mut Watch) -> Result<Lag, LagError> {
        let mut count = std::pin::pin!(self.reader.count());
        loop {
            if let Ok(counted) = tokio::time::timeout(SLOW, &mut count).await {
                return counted;
            }
            self.not_counted(watch, None);
            self.report(watch);
        }
    }

    /// Reports that the lag is not known, after the stall timeout. Without an error there is no response yet.
    fn not_counted(&self, watch: &mut Watch, error: Option<&LagError>) {
        match error {
            None if self.reports_database() => return,
            Some(LagError::Database(_)) if self.reports_database() => {
                // The records wait for the database, and that is reported.
                watch.observed.reset();
                watch.unknown.reported_by_another();
                self.readiness.ready("stalled");
                return self.readiness.ready("lag");
            }
            _ => {}
        }
        let reason = watch.unknown.reason(watch.awake.now(), self.stall_timeout, error);
        if let Some(reason) = reason {
            self.readiness.not_ready("lag", format!("not known whether records of {} wait: {reason}", self.topic));
        }
    }

    /// Returns whether a lane or the consumer reports that the database is unavailable.
    fn reports_database(&self) -> bool {
        let is_database = |(component, reason): (&String, &String)| match component.as_str() {
            "starts" => reason.starts_with("database"),
            component => component == "progress" || component.starts_with("database"),
        };
        self.readiness.reasons().iter().any(is_database)
    }

    /// Updates what is known with a lag whose reading started at a time, and sets the gauges.
    async fn counted(&self, watch: &mut Watch, started: Duration, lag: Lag) {
        let now = watch.awake.now();
        watch.unknown.known(now);
        self.readiness.ready("lag");
        // The topic can be described, so an error of the whole topic that the consumer reported is over.
        self.readiness.ready("topic");
        gauges::records(&lag);
        if let Some(oldest) = watch.oldest.finished().await {
            use_oldest(watch, now, oldest);
        }
        if let Some(group) = watch.group.finished().await {
            watch.holders.update(now, group);
        }
        watch.observed.observe(started, &lag.partitions, &lag.unreachable);
        self.read_more(watch, started, &lag);
        watch.lag = Some(lag);
    }

    /// Starts the requests that are needed now.
    ///
    /// The oldest records are read for the gauges. Of a partition that may become stalled, they also show whether it has
    /// a record: a transaction marker at the end of the log has an offset and is no record.
    ///
    /// The group is read if this process does not own a partition that may become stalled: no transfer may have it. It
    /// is read several times before the stall timeout, because it does not show who has a partition during a rebalance.
    fn read_more(&self, watch: &mut Watch, started: Duration, lag: &Lag) {
        let (owned, observed) = (self.states.all(), &watch.observed);
        let late: Vec<Partition> = observed
            .waits(started)
            .filter(|(_, waited)| *waited >= self.stall_timeout / 2)
            .map(|(partition, _)| partition)
            .collect();
        let needs_probe = late.iter().any(|late| lag.of(*late).is_some_and(|lag| observed.needs_probe(lag)));
        let is_due = watch.oldest_read.is_none_or(|read| read.elapsed() >= AGES_INTERVAL);
        if watch.oldest.is_idle() && (needs_probe || is_due) {
            watch.oldest_read = Some(Instant::now());
            let (reader, lag) = (self.reader.clone(), lag.clone());
            watch.oldest.start(async move {
                let oldest = reader.oldest(&lag).await;
                (started, lag, oldest)
            });
        }
        if watch.group.is_idle() && late.iter().any(|late| !owned.contains_key(late)) {
            let (reader, group) = (self.reader.clone(), self.group.clone());
            watch.group.start(async move { reader.group(&group).await });
        }
    }

    /// Reports the stalled partitions. Returns the time until the lag has to be read again.
    fn report(&self, watch: &Watch) -> Duration {
        let now = watch.awake.now();
        // If the lag was read longer ago, records may have been stored since then.
        let is_recent = watch.unknown.lasts(now) <= self.stall_timeout / 3;
        let Some(lag) = watch.lag.as_ref().filter(|_| is_recent) else { return CHECK_INTERVAL };
        let (stalled, next) = self.stalled(watch, now, lag);
        gauges::stalled(stalled.len());
        let texts: Vec<String> = stalled.iter().filter_map(|stalled| self.describe(watch, now, stalled)).collect();
        if texts.is_empty() {
            self.readiness.ready("stalled");
        } else {
            self.readiness.not_ready("stalled", format!("records wait and none is stored: {}", texts.join("; ")));
        }
        next.min(CHECK_INTERVAL)
    }

    /// Returns the stalled partitions, and the time until another one may be stalled.
    fn stalled(&self, watch: &Watch, now: Duration, lag: &Lag) -> (Vec<Stalled>, Duration) {
        let owned = self.states.all();
        let (mut found, mut next) = (Vec::new(), Duration::MAX);
        for (partition, waited) in watch.observed.waits(now) {
            let owned = owned.get(&partition).cloned();
            let since_assigned = owned.as_ref().map_or(Duration::MAX, |owned| owned.assigned.elapsed());
            let left = self.stall_timeout.saturating_sub(waited.min(since_assigned));
            if !left.is_zero() {
                next = next.min(left);
                continue;
            }
            let waits_for = lag.of(partition).map_or(WaitsFor::Leader, |lag| match watch.observed.held_at(lag) {
                Some(offset) => WaitsFor::Transaction(offset),
                None => WaitsFor::Transfer(lag.unstored_from()),
            });
            found.push(Stalled { partition, waits_for, owned });
        }
        (found, next)
    }

    /// Describes a stalled partition without numbers that change, because each change of a reason is logged. Returns
    /// `None` if another transfer reports it.
    fn describe(&self, watch: &Watch, now: Duration, stalled: &Stalled) -> Option<String> {
        let (topic, partition) = (&self.topic, stalled.partition);
        let state = match &stalled.owned {
            Some(owned) => owned.state.describe().to_owned(),
            None => watch.holders.problem(now, partition, self.stall_timeout / 2)?,
        };
        Some(match stalled.waits_for {
            WaitsFor::Leader => format!("{topic} partition {partition} has no leader that responds"),
            WaitsFor::Transaction(offset) => held(topic, partition, offset),
            WaitsFor::Transfer(offset) => format!("{topic} partition {partition} from offset {offset} on ({state})"),
        })
    }
}

/// Sets the gauges, and updates which partitions have a record.
fn use_oldest(watch: &mut Watch, now: Duration, (read, mut lag, oldest): OldestOf) {
    let oldest = match oldest {
        Ok(oldest) => oldest,
        // The gauges keep their last values; readiness reports what is unavailable.
        Err(error) => return tracing::debug!(error = chain(&error), "could not read the lag time, will be retried"),
    };
    lag.add(&oldest);
    for lag in &lag.partitions {
        let has_record = oldest.written.contains_key(&lag.partition);
        if has_record || oldest.none.contains(&lag.partition) {
            watch.observed.probed(read, lag, has_record);
        }
    }
    gauges::ages(&lag, SystemTime::now(), |partition| {
        let waited = watch.observed.wait(now, partition);
        waited.or_else(|| oldest.none.contains(&partition).then_some(Duration::ZERO))
    });
}

/// Describes an open transaction that holds the records of a partition, and what an operator can do.
pub(crate) fn held(topic: &str, partition: Partition, offset: i64) -> String {
    format!(
        "an open transaction holds partition {partition} at offset {offset}: end the program that opened it, or run \
         kafka-transactions.sh abort --topic {topic} --partition {partition} --start-offset {offset}"
    )
}
