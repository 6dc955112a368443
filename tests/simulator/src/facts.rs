//! Counts of events in the runs: a case that no run reaches is not tested by any run.

macro_rules! facts {
    ($($fact:ident $text:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fact { $($fact,)* }

        const TEXTS: &[&str] = &[$($text,)*];
    };
}

facts! {
    Record "records produced",
    Repeat "messages sent again",
    Conflicting "conflicts sent",
    Committed "batches committed",
    Row "rows stored",
    Duplicate "duplicates found",
    DeadLetter "dead letters",
    Conflict "of these, conflicts",
    Bisection "bisections",
    Rejected "poison records found by bisections",
    CanaryRejected "canary rows rejected",
    DeadLettersRequested "dead letters requested",
    Halted "partitions halted",
    Breaker "of these, at the dead-letter limit",
    DeletedUnread "of these, for records deleted unread",
    NewerHalt "of these, for a record of a newer version",
    DamageHalt "of these, for damaged records",
    Resumed "partitions resumed",
    Guarded "sequence guards without a predecessor",
    VisibleLater "COMMITs visible only later",
    LockWait "waits for a lock",
    LockTimeout "lock timeouts",
    Deadlock "deadlocks",
    SeqCollision "seq collisions",
    Fenced "records dropped because of a fence",
    Stale "connections refused as stale",
    SaveFailed "progress rows not saved",
    Restarted "partitions restarted",
    FetchRewound "fetches rewound",
    Throttled "partitions throttled",
    Unthrottled "partitions unthrottled",
    AtLimit "turns at an in-flight limit",
    Join "joins of the group",
    Rebalance "rebalances",
    Assigned "partitions assigned",
    Revoked "partitions revoked",
    Lost "partitions lost",
    RespondedBeforeEvent "of these, responded to before the event was polled",
    DrainExpired "drains past their deadline",
    ReleaseExpired "releases past their deadline",
    OffsetsCommitted "offset commits accepted",
    OffsetsRejected "offset commits rejected",
    OffsetsNotConfirmed "offset commits not confirmed",
    Killed "processes killed",
    Started "processes restarted",
    Frozen "processes frozen",
    Stopped "processes stopped",
    Expelled "members expelled",
    Takeover "static members that restarted in time",
    ConnectionBroken "connections broken",
    ResultLost "statements executed whose result was lost",
    CommitResultLost "of these, COMMITs",
    ZombieStatement "statements executed after their client disconnected",
    ZombieCommit "of these, COMMITs of rows",
    ExpelledCommit "COMMITs of rows by an expelled process",
    ServerRestart "restarts of the database",
    Restore "databases restored to an earlier commit",
    RestoredRows "rows lost by that",
    NoConnection "connections refused",
    StatementFailed "statements that failed with a transient error",
    RejectingAll "phases in which every message is rejected",
    ReadOnly "read-only phases",
    Slow "slow phases",
    BlockedPhase "inboxes blocked",
    BlockedFound "records found blocked",
    BlockedRetry "retries of blocked inboxes",
    BlockedEnd "runs that end with blocked inboxes",
    ClientTimeout "statements timed out in the client",
    LeaderLost "partitions without a leader",
    FetchError "fetch errors",
    RecordAsEvent "records in the queue of events",
    NotForwarded "fetches into a queue that is not forwarded",
    FetchFailing "fetches with a backoff",
    FetchRecovered "fetches that recovered",
    PartitionAdded "partitions added",
    TopicRecreated "topics recreated",
    RecordsDeletedUnread "records deleted unread",
    LostTail "logs that lost their tail",
    OutOfRange "fetches out of range",
    Lowered "progress rows lowered",
    LostOffsets "offsets counted as lost",
    HealingRounds "rounds of healing",
}

/// The counts of one run, or the sums of many.
#[derive(Clone, Debug)]
pub struct Facts([u64; TEXTS.len()]);

impl Default for Facts {
    fn default() -> Self {
        Facts([0; TEXTS.len()])
    }
}

impl Facts {
    pub(crate) fn add(&mut self, fact: Fact, count: usize) {
        self.0[fact as usize] += count as u64;
    }

    /// Adds the counts of another run.
    pub fn merge(&mut self, other: &Facts) {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count += other;
        }
    }

    /// Returns each count with its label.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        TEXTS.iter().copied().zip(self.0)
    }
}
