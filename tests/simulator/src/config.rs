//! The configuration of one run: its sizes, and the faults that can occur in it. Each run has only some of the faults,
//! so that no fault hides another ("swarm testing").

use std::num::NonZeroUsize;

use machine::Partition;
use machine::consumer::{Limit, Settings};
use machine::driver::Times;

use crate::choices::Choices;
use crate::kafka::log::RecordKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    Freeze,
    Stop,
    Expel,
    BreakConnection,
    RestartServer,
    Restore,
    RefuseConnections,
    RejectAll,
    ReadOnly,
    SlowServer,
    BlockInbox,
    FailStatement,
    LoseResult,
    LockTimeout,
    ClientTimeout,
    LoseLeader,
    RewindFetch,
    DamageBatch,
    AddPartition,
    RecreateTopic,
    DeleteRecords,
    LoseTail,
    LoseCommit,
    Resume,
    Rebalance,
}

impl Fault {
    pub(crate) const ALL: [Fault; 26] = [
        Fault::Kill,
        Fault::Freeze,
        Fault::Stop,
        Fault::Expel,
        Fault::BreakConnection,
        Fault::RestartServer,
        Fault::Restore,
        Fault::RefuseConnections,
        Fault::RejectAll,
        Fault::ReadOnly,
        Fault::SlowServer,
        Fault::BlockInbox,
        Fault::FailStatement,
        Fault::LoseResult,
        Fault::LockTimeout,
        Fault::ClientTimeout,
        Fault::LoseLeader,
        Fault::RewindFetch,
        Fault::DamageBatch,
        Fault::AddPartition,
        Fault::RecreateTopic,
        Fault::DeleteRecords,
        Fault::LoseTail,
        Fault::LoseCommit,
        Fault::Resume,
        Fault::Rebalance,
    ];

    /// Returns the number of runs of which one, on average, can have this fault.
    fn rarity(self) -> u32 {
        match self {
            Fault::RecreateTopic | Fault::DeleteRecords => 8,
            Fault::LoseTail => 5,
            Fault::Restore | Fault::Kill | Fault::Expel | Fault::Rebalance => 2,
            _ => 3,
        }
    }
}

/// The records that must be completed although some inboxes are blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockedEnd {
    /// With limits that are never reached: all records of every other inbox.
    OtherInboxes,
    /// With small limits: all records of every other partition.
    OtherPartitions,
}

/// The sizes and probabilities of a run. A probability is given as `n`: once in `n` times, or never if `n` is 0.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) processes: usize,
    pub(crate) lanes: usize,
    pub(crate) partitions: Partition,
    pub(crate) inboxes: usize,
    pub(crate) records: usize,
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) chunk: usize,
    pub(crate) settings: Settings,
    pub(crate) cached_inboxes: NonZeroUsize,
    /// Whether rows can become visible after the result of their COMMIT has arrived. The lanes then use the sequence
    /// guard.
    pub(crate) visible_later: bool,
    pub(crate) guard: bool,
    pub(crate) insert_new: bool,
    pub(crate) eager: bool,
    pub(crate) static_members: bool,
    /// Whether the dead-letter limit is so small that the oracle can check it.
    pub(crate) strict_breaker: bool,
    pub(crate) repeats: u32,
    pub(crate) conflicts: u32,
    pub(crate) holes: u32,
    pub(crate) record_kinds: Vec<RecordKind>,
    pub(crate) special_records: u32,
    /// How often a lane waits before it sends a request.
    pub(crate) delayed_sends: u32,
    /// How often a lane reads a result that has arrived; 0 is immediately.
    pub(crate) delayed_reads: u32,
    pub(crate) times: Times,
    /// How often librdkafka recreates its object of a partition when a fetch starts.
    pub(crate) recreated_partitions: u32,
    /// The records that must be completed at the end while inboxes are still blocked.
    pub(crate) blocked_end: Option<BlockedEnd>,
    pub(crate) faults: Vec<Fault>,
    /// The weight of a fault next to the weights of the ordinary steps in `World::step`.
    pub(crate) fault_weight: u32,
    /// How often a statement has a fault.
    pub(crate) statement_faults: u32,
}

impl Config {
    pub(crate) fn choose(choices: &mut Choices) -> Self {
        let processes = 1 + choices.weighted(&[30, 40, 15, 8, 7]);
        let quiet = choices.one_in(12);
        let has = |choices: &mut Choices, fault: &Fault| choices.one_in(fault.rarity());
        let faults: Vec<Fault> =
            if quiet { Vec::new() } else { Fault::ALL.into_iter().filter(|fault| has(choices, fault)).collect() };
        let strict_breaker = choices.one_in(3);
        let limit = if strict_breaker { choices.between(1, 3) } else { 1000 };
        let inflight = choices.between(3, 24);
        let commits_rarely = choices.one_in(3);
        let mut settings = Settings {
            commit_records: if commits_rarely { 100 } else { choices.between(1, 10) },
            commit_interval: choices.between(1, 10) as u64 * if commits_rarely { 500 } else { 20 },
            max_inflight_bytes: if choices.one_in(4) { 10 * inflight / 2 } else { 10 * inflight },
            max_inflight_records: inflight,
            max_partition_bytes: 10_000,
            max_partition_records: if choices.one_in(2) { choices.between(2, 6) } else { inflight },
            dead_letters: Limit { count: limit, percent: 0, window: 10_000 },
            fetch_backoff: |attempts| 40 << (attempts.min(3) - 1),
            fetch_recovery: 300,
        };
        let mut chunk = choices.between(1, 8);
        // If the next record of a partition is damaged or lost, the partition waits until all earlier records are
        // stored, also those of blocked inboxes.
        let waits_for_predecessors = faults.contains(&Fault::DamageBatch) || faults.contains(&Fault::LoseTail);
        let blocked_end = match choices.choose(12) {
            _ if waits_for_predecessors => None,
            0..3 if !quiet => Some(BlockedEnd::OtherInboxes),
            3 if !quiet => Some(BlockedEnd::OtherPartitions),
            _ => None,
        };
        match blocked_end {
            Some(BlockedEnd::OtherInboxes) => {
                (settings.max_inflight_records, settings.max_partition_records) = (2000, 1000);
                (settings.max_inflight_bytes, settings.max_partition_bytes) = (200_000, 100_000);
            }
            Some(BlockedEnd::OtherPartitions) => {
                // The chunk is so small that three partitions never fill the limits, even if each has its whole share
                // in flight when its inbox is found to be blocked.
                chunk = chunk.min(2);
                (settings.max_inflight_records, settings.max_partition_records) = (24, 6);
                (settings.max_inflight_bytes, settings.max_partition_bytes) = (200_000, 100_000);
            }
            None => {}
        }
        let visible_later = choices.one_in(6);
        let special_kinds = [
            RecordKind::Huge,
            RecordKind::Undecodable,
            RecordKind::Invalid,
            RecordKind::Newer,
            RecordKind::Rejected,
            RecordKind::RejectedAtCommit,
            RecordKind::TooLarge,
            RecordKind::Slow,
        ];
        let record_kinds: Vec<RecordKind> = special_kinds.into_iter().filter(|_| choices.one_in(3)).collect();
        Config {
            processes,
            lanes: choices.between(1, 4),
            partitions: i32::try_from(choices.between(1, 4)).expect("few"),
            inboxes: choices.between(1, 6),
            records: choices.between(12, 44),
            steps: choices.between(2, 14) * 60,
            batch: choices.between(1, 8),
            chunk,
            blocked_end,
            settings,
            cached_inboxes: NonZeroUsize::new(choices.between(1, 6)).expect("at least 1"),
            visible_later,
            guard: visible_later || choices.one_in(8),
            insert_new: choices.one_in(2),
            eager: choices.one_in(5),
            static_members: choices.one_in(4),
            strict_breaker,
            repeats: [0, 12, 5, 3][choices.index(4)],
            conflicts: [0, 20, 8][choices.index(3)],
            holes: [0, 0, 6][choices.index(3)],
            special_records: if record_kinds.is_empty() { 0 } else { [30, 12, 5, 3][choices.index(4)] },
            record_kinds,
            delayed_sends: [0, 0, 8, 3][choices.index(4)],
            fault_weight: if faults.is_empty() { 0 } else { [1, 2, 4, 8][choices.index(4)] },
            statement_faults: [120, 50, 20, 10][choices.index(4)],
            delayed_reads: [0, 0, 4, 16][choices.index(4)],
            times: Times {
                wait: 0,
                idle_wait: 0,
                drain: [60, 240, 1000][choices.index(3)],
                last_commit: [60, 240][choices.index(2)],
                commit: [40, 400][choices.index(2)],
                check: [150, 600][choices.index(2)],
            },
            recreated_partitions: [0, 0, 4][choices.index(3)],
            faults,
        }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}
