//! Deliveries that fail repeatedly: counts them by code, logs them at growing intervals, and makes the gateway not
//! ready.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;
use msg_common::admin::Readiness;
use msg_common::partition::Partition;
use msg_common::repeat::Repeats;
use rdkafka::types::RDKafkaErrorCode;
use tokio_util::sync::CancellationToken;

use crate::metrics::DELIVERY_FAILURES;

pub(crate) const COMPONENT: &str = "deliveries";

/// How many failures without a success in between are a reason not to be ready.
const MIN_FAILURES: u32 = 3;
/// Failures that are closer together than this count as one: a batch fails as a whole.
const MIN_DISTANCE: Duration = Duration::from_millis(10);
/// How long after the last failure the gateway is not ready. Then it is ready again, so that a send can test Kafka:
/// otherwise it might get no sends, and never detect that Kafka works again.
const REPORTED_FOR: Duration = Duration::from_secs(30);
/// How often the readiness is updated.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

static LOGGED: Repeats = Repeats::new();

/// The failures since the last success.
#[derive(Default)]
pub(crate) struct Rejections {
    /// Whether any delivery failed: while none did, a success needs no lock.
    failing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rejections by brokers since the last success, by partition.
    partitions: HashMap<Partition, Failing>,
    /// Failures of any kind since the last success, over all partitions.
    all: Option<Failing>,
}

struct Failing {
    code: RDKafkaErrorCode,
    count: u32,
    since: Instant,
    last: Instant,
}

impl Failing {
    fn add(failing: &mut Option<Failing>, code: RDKafkaErrorCode, now: Instant) {
        match failing {
            Some(failing) => {
                if now.saturating_duration_since(failing.last) >= MIN_DISTANCE {
                    failing.count = failing.count.saturating_add(1);
                }
                (failing.code, failing.last) = (code, now);
            }
            None => *failing = Some(Failing { code, count: 1, since: now, last: now }),
        }
    }

    fn is_standing(&self, now: Instant) -> bool {
        self.count >= MIN_FAILURES && now.saturating_duration_since(self.last) <= REPORTED_FOR
    }
}

impl Rejections {
    pub(crate) fn confirmed(&self, partition: Partition) {
        if self.failing.load(Ordering::Relaxed) {
            let mut state = self.lock();
            state.partitions.remove(&partition);
            state.all = None;
            self.failing.store(!state.partitions.is_empty(), Ordering::Relaxed);
        }
    }

    /// Records that a delivery to this partition failed; `by_broker` if a broker rejected it.
    pub(crate) fn failed(&self, partition: Partition, code: RDKafkaErrorCode, by_broker: bool, now: Instant) {
        counter!(DELIVERY_FAILURES, "code" => format!("{code:?}")).increment(1);
        // Records that the gateway purged itself say nothing about Kafka.
        if matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
            return;
        }
        let mut state = self.lock();
        self.failing.store(true, Ordering::Relaxed);
        Failing::add(&mut state.all, code, now);
        if by_broker {
            let mut failing = state.partitions.remove(&partition);
            Failing::add(&mut failing, code, now);
            state.partitions.extend(failing.map(|failing| (partition, failing)));
        }
        drop(state);
        if let Some(repeated) = LOGGED.occurred(&format!("{code:?}")) {
            let advice = advice(code);
            tracing::warn!(?code, error = %code, partition, repeated, advice, "deliveries fail");
        }
    }

    /// Returns why the gateway is not ready, if deliveries fail repeatedly.
    pub(crate) fn reason(&self, now: Instant) -> Option<String> {
        let state = self.lock();
        let mut rejecting: Vec<_> = state.partitions.iter().filter(|(_, failing)| failing.is_standing(now)).collect();
        rejecting.sort_unstable_by_key(|(partition, _)| **partition);
        if let Some((partition, failing)) = rejecting.first() {
            let code = failing.code;
            let more = match rejecting.len() {
                1 => String::new(),
                count => format!(" and {} other partitions", count - 1),
            };
            return Some(format!(
                "Kafka rejects every record to partition {partition}{more}: {code:?} ({code}): {}",
                advice(code)
            ));
        }
        let failing = state.all.as_ref().filter(|failing| failing.is_standing(now))?;
        let code = failing.code;
        Some(format!("no record is confirmed, all deliveries fail: {code:?} ({code}): {}", advice(code)))
    }

    /// Returns since when every delivery has timed out, if several have. librdkafka does not report that it is
    /// stalled.
    pub(crate) fn timing_out_since(&self, now: Instant) -> Option<Instant> {
        let state = self.lock();
        let failing = state.all.as_ref().filter(|failing| failing.is_standing(now))?;
        (failing.code == RDKafkaErrorCode::MessageTimedOut).then_some(failing.since)
    }

    /// Turns readiness off while Kafka rejects records, until `stop`.
    pub(crate) async fn follow(&self, readiness: Readiness, stop: CancellationToken) {
        let follow = async {
            loop {
                match self.reason(Instant::now()) {
                    Some(reason) => readiness.not_ready(COMPONENT, reason),
                    None => readiness.ready(COMPONENT),
                }
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what an operator can do about a code.
pub(crate) fn advice(code: RDKafkaErrorCode) -> &'static str {
    use RDKafkaErrorCode as Code;
    match code {
        Code::InvalidTimestamp => {
            "the gateway's clock and the brokers' differ by more than message.timestamp.before.max.ms or \
             message.timestamp.after.max.ms allow: correct the clock, or set message.timestamp.type=LogAppendTime"
        }
        Code::TopicAuthorizationFailed => "grant the gateway's Kafka user WRITE on the topic",
        Code::ClusterAuthorizationFailed => {
            "grant the gateway's Kafka user WRITE on the topic, and IDEMPOTENT_WRITE on the cluster if the brokers are \
             older than 3.0"
        }
        Code::MessageSizeTooLarge => "raise the topic's max.message.bytes, or lower MAX_CONTENT_BYTES",
        Code::MessageBatchTooLarge => "raise the topic's segment.bytes",
        Code::UnsupportedCompressionType => "set compression.type in KAFKA_PROPERTIES to one that the brokers support",
        Code::InvalidRecord | Code::InvalidDifferentRecord | Code::PolicyViolation => {
            "a rule of the topic or of the cluster rejects the records: see the log of the partition's leader"
        }
        Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::MessageTimedOut
        | Code::RequestTimedOut => {
            "check that the partition has a leader and as many in-sync replicas as min.insync.replicas"
        }
        Code::KafkaStorageError => "check the disks of the partition's leader",
        _ => "see the log of the partition's leader",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RDKafkaErrorCode as Code;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn repeated_rejections_are_a_reason_until_a_success() {
        let (rejections, start) = (Rejections::default(), Instant::now());
        for i in 0..2 {
            rejections.failed(3, Code::InvalidTimestamp, true, at(start, i * 100));
        }
        assert_eq!(rejections.reason(at(start, 200)), None);
        // A success of another partition does not count.
        rejections.confirmed(4);
        rejections.failed(3, Code::InvalidTimestamp, true, at(start, 200));
        let reason = rejections.reason(at(start, 200)).expect("three in a row");
        assert!(reason.contains("partition 3: InvalidTimestamp") && reason.contains("clock"), "{reason}");
        rejections.confirmed(3);
        assert_eq!(rejections.reason(at(start, 300)), None);
    }

    #[test]
    fn batch_that_fails_as_a_whole_counts_once() {
        let (rejections, start) = (Rejections::default(), Instant::now());
        (0..100).for_each(|_| rejections.failed(3, Code::InvalidRecord, true, start));
        assert_eq!(rejections.reason(start), None);
    }

    #[test]
    fn timeouts_are_a_reason_only_while_nothing_is_confirmed() {
        let (rejections, start) = (Rejections::default(), Instant::now());
        for i in 0..3 {
            rejections.confirmed(1);
            rejections.failed(3, Code::MessageTimedOut, false, at(start, i * 100));
        }
        assert_eq!(rejections.reason(at(start, 300)), None);
        (3..5).for_each(|i| rejections.failed(3, Code::MessageTimedOut, false, at(start, i * 100)));
        let reason = rejections.reason(at(start, 500)).expect("nothing is confirmed");
        assert!(reason.starts_with("no record is confirmed"), "{reason}");
    }

    #[test]
    fn timeouts_of_all_deliveries_are_reported_until_a_success() {
        let (rejections, start) = (Rejections::default(), Instant::now());
        (0..3).for_each(|i| {
            rejections.failed(i, Code::MessageTimedOut, false, at(start, u64::from(i.unsigned_abs()) * 100))
        });
        assert_eq!(rejections.timing_out_since(at(start, 300)), Some(start));
        rejections.failed(1, Code::InvalidRecord, true, at(start, 300));
        assert_eq!(rejections.timing_out_since(at(start, 300)), None, "a broker responds");
        rejections.failed(1, Code::MessageTimedOut, false, at(start, 400));
        rejections.confirmed(3);
        assert_eq!(rejections.timing_out_since(at(start, 400)), None);
    }

    #[test]
    fn gateway_without_sends_becomes_ready_again() {
        let (rejections, start) = (Rejections::default(), Instant::now());
        (0..5).for_each(|i| rejections.failed(3, Code::InvalidTimestamp, true, at(start, i * 100)));
        assert!(rejections.reason(at(start, 30_000)).is_some());
        assert_eq!(rejections.reason(at(start, 31_000)), None);
        rejections.failed(3, Code::InvalidTimestamp, true, at(start, 90_000));
        assert!(rejections.reason(at(start, 90_000)).is_some(), "one more failure is enough");
    }
}
