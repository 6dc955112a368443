//! Counts of what happened: a corner that no run reaches is proven by none.

macro_rules! facts {
    ($($fact:ident $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fact { $($fact,)* }

        const TEXTS: &[&str] = &[$($text,)*];
    };
}

facts! {
    Record "records produced",
    Repeat "messages sent again",
    Conflicting "other messages under a known id",
    Committed "batches committed",
    Row "rows stored",
    Duplicate "duplicates found",
    DeadLetter "dead letters",
    Conflict "of these, conflicts of ids",
    Bisection "searches for refused records",
    Rejected "records that a search found",
    CanaryRejected "canaries refused",
    DeadLettersRequested "dead letters asked for",
    Halted "partitions halted",
    Breaker "of these, for too many dead letters",
    DeletedUnread "of these, for records deleted unread",
    NewerHalt "of these, for a newer version",
    DamageHalt "of these, for damaged records",
    Resumed "partitions resumed",
    Guarded "guards that found no predecessor",
    VisibleLater "commits seen only later",
    LockWait "waits for a lock",
    LockTimeout "lock time-outs",
    Deadlock "deadlocks",
    SeqCollision "collisions of seq",
    Fenced "records dropped because of a fence",
    Stale "connections refused as stale",
    SaveFailed "progress not saved",
    Restarted "partitions started anew",
    OutOfOrder "offsets that went back",
    Throttled "partitions throttled",
    Unthrottled "partitions unthrottled",
    Full "intakes stopped at the limits",
    Join "joins of the group",
    Rebalance "rebalances",
    Assigned "partitions assigned",
    Revoked "partitions revoked",
    Lost "partitions lost",
    RespondedBeforeEvent "of these, answered before they were seen",
    DrainExpired "drains past their deadline",
    ReleaseExpired "releases past their deadline",
    OffsetsCommitted "commits of offsets accepted",
    OffsetsRejected "commits of offsets refused",
    OffsetsNotConfirmed "commits of offsets not answered",
    Killed "processes killed",
    Started "processes started again",
    Frozen "processes frozen",
    Stopped "processes stopped",
    Expelled "members expelled",
    Takeover "static members that came back in time",
    ConnectionBroken "connections broken",
    ResultLost "statements carried out, not answered",
    CommitResultLost "of these, COMMITs",
    ZombieStatement "statements carried out after their client was gone",
    ZombieCommit "of these, COMMITs of rows",
    ExpelledCommit "rows committed by a process that was expelled",
    ServerRestart "restarts of the database",
    Restore "databases put back",
    RestoredRows "rows lost by it",
    NoConnection "connections not made",
    StatementFailed "statements that failed by themselves",
    RejectingAll "phases in which every message is refused",
    ReadOnly "phases without writes",
    Slow "phases in which all is slow",
    BlockedPhase "phases in which an inbox is blocked",
    BlockedFound "records found blocked",
    BlockedRetry "attempts to store a blocked inbox",
    BlockedEnd "runs that end with blocked inboxes first",
    ClientTimeout "statements given up by the client",
    LeaderLost "leaders gone",
    FetchError "errors of a fetch",
    RecordAsEvent "records that came by the queue of events",
    NotForwarded "fetches into a queue that is not forwarded",
    FetchFailing "fetches to be retried after a wait",
    FetchRecovered "fetches that recovered",
    PartitionAdded "partitions added",
    TopicRecreated "topics made anew",
    RecordsDeletedUnread "records deleted unread",
    LostTail "logs that lost their tail",
    OutOfRange "fetches that found it",
    Lowered "progress rows lowered",
    LostOffsets "offsets counted as lost",
    HealingRounds "rounds of healing",
}

/// The counts of one run, or of many.
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

    /// Adds another run's.
    pub fn merge(&mut self, other: &Facts) {
        for (mine, others) in self.0.iter_mut().zip(other.0) {
            *mine += others;
        }
    }

    /// Each with its name.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        TEXTS.iter().copied().zip(self.0)
    }
}
