//! Judges a topic: whether the gateway can use it, and what may lose accepted messages.

use std::time::Duration;

use metrics::gauge;
use msg_common::kafka::topic::{RetentionClock, Topic, TopicRequirements};
use msg_common::partition::Partition;

use crate::metrics::{TOPIC_EXTRA_PARTITIONS, TOPIC_UNSAFE_SETTINGS};

/// The topic that the gateway needs.
#[derive(Clone, Debug)]
pub(crate) struct PreflightRequirements {
    pub(crate) safe: TopicRequirements,
    /// Whether an unsafe topic is used.
    pub(crate) allow_unsafe: bool,
    /// The number of partitions that are used.
    pub(crate) partitions: Partition,
    pub(crate) record_bytes: usize,
    /// The size of the largest content, in bytes. It is a part of the record.
    pub(crate) content_bytes: usize,
}

/// If a clock is further ahead than this, its messages are kept noticeably longer than the topic's retention.
const MAX_CLOCK_LEAD: Duration = Duration::from_secs(86_400);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Why the topic cannot be used; empty if it can.
    pub(super) problems: Vec<String>,
    /// Problems of a topic that can be used.
    pub(super) warnings: Vec<String>,
    /// Whether the only problem is that the largest messages do not fit.
    pub(super) only_too_small: bool,
}

impl PreflightRequirements {
    /// Returns what is wrong with this topic, and updates the gauges of the topic. `may_write` is whether the gateway's
    /// user may write to it, if that is known: without sends, nothing else shows that this right is missing.
    pub(super) fn judge(&self, topic: &Topic, may_write: Option<bool>) -> Verdict {
        let mut verdict = Verdict::default();
        if topic.partitions < self.partitions {
            verdict.problems.push(format!(
                "the topic has {} partitions, fewer than --topic-partitions {}",
                topic.partitions, self.partitions
            ));
        }
        if topic.partitions > self.partitions {
            verdict.warnings.push(format!(
                "the topic has {} partitions, and the first {} are used (--topic-partitions)",
                topic.partitions, self.partitions
            ));
        }
        if topic.max_message_bytes < self.record_bytes {
            let rest = self.record_bytes - self.content_bytes;
            let fits = topic.max_message_bytes.saturating_sub(rest);
            verdict.problems.push(format!(
                "max.message.bytes is {}: raise it to {}, or lower --max-content-bytes from {} to {fits} (ids, attributes \
                 and the rest need {rest})",
                topic.max_message_bytes, self.record_bytes, self.content_bytes
            ));
        }
        let too_small = !verdict.problems.is_empty() && topic.partitions >= self.partitions;
        if may_write == Some(false) {
            verdict.problems.push("the gateway's Kafka user lacks a right on the topic: grant it WRITE".to_owned());
        }
        self.judge_replicas(topic, &mut verdict);
        if let RetentionClock::Producers { ahead, .. } = topic.clock
            && ahead.is_none_or(|ahead| ahead > MAX_CLOCK_LEAD)
        {
            verdict.warnings.push(
                "message.timestamp.type is CreateTime, and message.timestamp.after.max.ms allows more than a day: if a \
                 gateway's clock is ahead, Kafka keeps its messages that much longer"
                    .into(),
            );
        }
        let found = self.safe.unsafe_settings(topic);
        if !found.is_empty() {
            let problem = format!("an accepted message could be lost: {}", found.join(", "));
            if self.allow_unsafe {
                verdict.warnings.push(problem);
            } else {
                verdict.problems.push(format!("{problem} (--allow-unsafe-topic accepts that)"));
            }
        }
        verdict.only_too_small = too_small && verdict.problems.len() == 1;
        gauge!(TOPIC_UNSAFE_SETTINGS).set(u32::try_from(found.len()).unwrap_or(u32::MAX));
        gauge!(TOPIC_EXTRA_PARTITIONS).set((topic.partitions - self.partitions).max(0));
        verdict
    }

    /// Kafka confirms no record to a partition that has no leader, or too few in-sync replicas.
    fn judge_replicas(&self, topic: &Topic, verdict: &mut Verdict) {
        let used = topic.in_sync.iter().take(usize::try_from(self.partitions).unwrap_or(0));
        let count = used.len();
        let short: Vec<usize> =
            used.enumerate().filter(|(_, n)| **n < topic.min_insync.max(1)).map(|(at, _)| at).collect();
        let min = topic.min_insync;
        if short.is_empty() {
            return;
        }
        if short.len() == count {
            verdict
                .problems
                .push(format!("no partition has a leader and {min} in-sync replicas (min.insync.replicas)"));
        } else {
            verdict.warnings.push(format!(
                "sends to the partitions {short:?} are not confirmed: they have no leader, or fewer than {min} in-sync \
                 replicas (min.insync.replicas)"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn requirements() -> PreflightRequirements {
        PreflightRequirements {
            safe: TopicRequirements { required_replicas: 3, required_min_insync: 2, required_retention: 3 * DAY },
            allow_unsafe: false,
            partitions: 16,
            record_bytes: 1 << 20,
            content_bytes: 1_000_000,
        }
    }

    fn good() -> Topic {
        Topic {
            partitions: 16,
            replicas: 3,
            min_insync: 2,
            unclean_election: false,
            cleanup_policy: "delete".into(),
            retention: Some(7 * DAY),
            retention_bytes: None,
            max_message_bytes: 2 << 20,
            clock: RetentionClock::Brokers,
            in_sync: vec![3; 16],
        }
    }

    #[test]
    fn safe_topic_is_used() {
        assert_eq!(requirements().judge(&good(), None), Verdict::default());
    }

    #[test]
    fn topic_that_cannot_work_is_rejected_even_if_unsafe_is_allowed() {
        for (topic, text) in [
            (Topic { partitions: 15, ..good() }, "--topic-partitions 16"),
            (Topic { max_message_bytes: 1000, ..good() }, "max.message.bytes is 1000"),
        ] {
            for allow_unsafe in [false, true] {
                let verdict = PreflightRequirements { allow_unsafe, ..requirements() }.judge(&topic, None);
                assert!(verdict.problems.len() == 1 && verdict.problems[0].contains(text), "{verdict:?}");
            }
        }
    }

    #[test]
    fn missing_right_to_write_is_a_problem_without_a_send() {
        let problems = |may_write| requirements().judge(&good(), may_write).problems;
        assert!(problems(Some(false)).concat().contains("grant it WRITE"), "{:?}", problems(Some(false)));
        assert!(problems(Some(true)).is_empty() && problems(None).is_empty());
    }

    #[test]
    fn grown_topic_is_used_with_the_pinned_count() {
        let verdict = requirements().judge(&Topic { partitions: 17, ..good() }, None);
        assert_eq!((verdict.problems.len(), verdict.warnings.len()), (0, 1));
    }

    #[test]
    fn partitions_without_in_sync_replicas_warn_unless_it_is_all() {
        let in_sync = |short: usize| (0..16).map(|at| if at < short { 1 } else { 2 }).collect();
        let judge = |short| {
            let verdict = requirements().judge(&Topic { in_sync: in_sync(short), ..good() }, None);
            (verdict.problems.len(), verdict.warnings.len())
        };
        assert_eq!((judge(0), judge(3), judge(16)), ((0, 0), (0, 1), (1, 0)));
    }

    #[test]
    fn clock_that_may_be_far_ahead_is_a_warning() {
        let judge = |ahead| {
            let clock = RetentionClock::Producers { behind: Some(DAY), ahead };
            requirements().judge(&Topic { clock, ..good() }, None)
        };
        assert_eq!(judge(Some(Duration::from_secs(3600))), Verdict::default());
        assert_eq!((judge(None).problems.len(), judge(None).warnings.len()), (0, 1));
    }

    #[test]
    fn kafkas_default_message_limit_fits_the_default_content() {
        let limits = <crate::config::Config as clap::Parser>::parse_from(["msg-gateway"]).limits;
        let requirements = PreflightRequirements {
            record_bytes: limits.max_record_bytes(),
            content_bytes: limits.max_content_bytes,
            ..requirements()
        };
        assert_eq!(requirements.judge(&Topic { max_message_bytes: 1_048_588, ..good() }, None), Verdict::default());
        let problems = requirements.judge(&Topic { max_message_bytes: 1_000_000, ..good() }, None).problems;
        assert!(problems[0].contains("from 1000000 to 962240"), "{problems:?}");
    }

    #[test]
    fn unsafe_topic_is_used_only_if_allowed() {
        let topic = Topic { replicas: 1, min_insync: 1, ..good() };
        let verdict = requirements().judge(&topic, None);
        assert_eq!((verdict.problems.len(), verdict.warnings.len()), (1, 0));
        let verdict = PreflightRequirements { allow_unsafe: true, ..requirements() }.judge(&topic, None);
        assert_eq!((verdict.problems.len(), verdict.warnings.len()), (0, 1));
    }
}
