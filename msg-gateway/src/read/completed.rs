//! Determines whether every record that a partition's leader had appended is completed: a row or a dead letter. ADR 33.
//!
//! Kafka returns a client the end of the committed records. The leader may have appended a record behind it that is not yet
//! replicated, because the followers are frozen or isolated. Such a record can still become a message, minutes later.

use std::time::Duration;

use crate::status::Failure;

/// How often to poll whether the transfers have reached an end offset that was just read, and the interval.
const POLLS: usize = 10;
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A busy partition has grown before its end is confirmed. So a bound that is this far ahead is confirmed and awaited.
const AHEAD: i64 = 128;

pub(crate) trait Log {
    /// Returns the offset of the oldest record, and the offset after the last committed one.
    async fn committed(&self) -> Result<(i64, i64), Failure>;

    /// Returns whether the leader's log, with records that are not committed, ends before `offset`. `false` if that is
    /// not known in time.
    async fn ends_before(&self, offset: i64) -> Result<bool, Failure>;

    /// Returns the next offset to complete: every record below it is completed.
    async fn next(&self) -> Result<i64, Failure>;

    /// Returns whether the message was found meanwhile. Then the offsets do not matter any more.
    async fn is_found(&self) -> Result<bool, Failure>;

    /// Waits for [`POLL_INTERVAL`] between two calls of [`Log::next`].
    async fn pause(&self);
}

/// How far a partition is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completed {
    /// It is completed up to the end of the leader's log, as it was after the request arrived.
    All,
    /// At least this many records are not completed, or may still be appended.
    Ahead(i64),
}

/// Determines whether every record that was in the leader's log when this was called is completed. Read the row after
/// this, not before: a record may be completed in between.
pub(crate) async fn completed(log: &impl Log) -> Result<Completed, Failure> {
    let (low, end) = log.committed().await?;
    let next = log.next().await?.max(low);
    if next < end {
        return Ok(Completed::Ahead(end - next));
    }
    // Most messages are found now. The next request costs more, and only one runs at a time.
    if log.is_found().await? || log.ends_before(end.saturating_add(1)).await? {
        return Ok(Completed::All);
    }
    // The leader has more records: they were just written, or one is not replicated.
    let (low, end) = log.committed().await?;
    let bound = end.saturating_add(AHEAD);
    if !log.ends_before(bound.saturating_add(1)).await? {
        return Ok(Completed::Ahead(1));
    }
    match wait(log, low, bound).await? {
        None => Ok(Completed::All),
        // The number of records is not known, but those up to the committed end are.
        Some(ahead) => Ok(Completed::Ahead((ahead - AHEAD).max(1))),
    }
}

/// Waits until every record below `end` is completed. After all polls it returns how many are not.
async fn wait(log: &impl Log, low: i64, end: i64) -> Result<Option<i64>, Failure> {
    // Records that retention deleted are not waited for.
    let mut next = log.next().await?.max(low);
    for _ in 0..POLLS {
        if next >= end {
            return Ok(None);
        }
        log.pause().await;
        next = log.next().await?.max(low);
    }
    Ok((next < end).then_some(end - next))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Three replicas, `acks=all`: the committed end is the lowest end of the in-sync replicas. A replica that lacks
    /// the end of the log may be elected.
    struct World {
        random: StdRng,
        leader: i64,
        followers: [i64; 2],
        committed: i64,
        next: i64,
        /// The end of the records that were in the leader's log when the request arrived and were not truncated since.
        end_at_request: i64,
        /// Frozen followers do not fetch, and stay in sync because the controller is frozen too.
        frozen: bool,
    }

    impl World {
        fn step(&mut self) {
            match self.random.random_range(0..10) {
                0 | 1 => self.leader += self.random.random_range(1..3),
                2 | 3 if !self.frozen => {
                    let follower = self.random.random_range(0..2);
                    self.followers[follower] = self.leader;
                }
                4 | 5 => self.next = self.random.random_range(self.next..=self.committed),
                6 | 7 => self.next = self.committed,
                8 if !self.frozen => {
                    let elected = self.followers[self.random.random_range(0..2)];
                    self.leader = elected;
                    self.followers = self.followers.map(|follower| follower.min(elected));
                    self.end_at_request = self.end_at_request.min(elected);
                }
                _ => self.frozen = self.random.random_bool(0.5),
            }
            self.committed = self.committed.max(self.followers[0].min(self.followers[1]).min(self.leader));
        }

        fn steps(&mut self) {
            for _ in 0..self.random.random_range(0..4) {
                self.step();
            }
        }
    }

    struct Model {
        world: RefCell<World>,
        /// Whether to trust the committed end alone.
        trusting: bool,
    }

    impl Model {
        fn new(seed: u64, trusting: bool) -> Self {
            let random = StdRng::seed_from_u64(seed);
            let mut world =
                World { random, leader: 0, followers: [0; 2], committed: 0, next: 0, end_at_request: 0, frozen: false };
            (0..20).for_each(|_| world.step());
            world.end_at_request = world.leader;
            Model { world: RefCell::new(world), trusting }
        }
    }

    impl Log for Model {
        async fn committed(&self) -> Result<(i64, i64), Failure> {
            let mut world = self.world.borrow_mut();
            world.steps();
            Ok((0, world.committed))
        }

        async fn ends_before(&self, offset: i64) -> Result<bool, Failure> {
            let mut world = self.world.borrow_mut();
            world.steps();
            Ok(self.trusting || world.leader < offset)
        }

        async fn next(&self) -> Result<i64, Failure> {
            let mut world = self.world.borrow_mut();
            world.steps();
            Ok(world.next)
        }

        async fn is_found(&self) -> Result<bool, Failure> {
            Ok(false)
        }

        async fn pause(&self) {}
    }

    /// Runs a thousand worlds. Returns how many reported that all is completed, and how many of those were wrong.
    async fn results(trusting: bool) -> (usize, usize) {
        let (mut all, mut wrong) = (0, 0);
        for seed in 0..1000 {
            let model = Model::new(seed, trusting);
            if completed(&model).await.expect("the model does not fail") == Completed::All {
                let world = model.world.borrow();
                all += 1;
                wrong += usize::from(world.next < world.end_at_request);
            }
        }
        (all, wrong)
    }

    #[tokio::test]
    async fn appended_records_are_not_missed() {
        let (all, wrong) = results(false).await;
        assert_eq!(wrong, 0, "of {all}");
        assert!(all > 150, "only {all} of 1000 are definite");
    }

    /// The fault that `ends_before` is for: the model has it.
    #[tokio::test]
    async fn committed_end_alone_misses_records() {
        let (_, wrong) = results(true).await;
        assert!(wrong > 50, "only {wrong} of 1000");
    }

    /// A partition at these offsets, without a writer.
    struct Still {
        committed: i64,
        leader: i64,
        next: i64,
    }

    impl Log for Still {
        async fn committed(&self) -> Result<(i64, i64), Failure> {
            Ok((0, self.committed))
        }

        async fn ends_before(&self, offset: i64) -> Result<bool, Failure> {
            Ok(self.leader < offset)
        }

        async fn next(&self) -> Result<i64, Failure> {
            Ok(self.next)
        }

        async fn is_found(&self) -> Result<bool, Failure> {
            Ok(false)
        }

        async fn pause(&self) {}
    }

    #[tokio::test]
    async fn quiet_partition_has_a_definite_result() {
        for (committed, leader, next, expected) in [
            (0, 0, 0, Completed::All),
            (7, 7, 7, Completed::All),
            (7, 7, 4, Completed::Ahead(3)),
            // One record is appended and not committed; then more than the bound.
            (7, 8, 7, Completed::Ahead(1)),
            (7, 900, 7, Completed::Ahead(1)),
        ] {
            assert_eq!(
                completed(&Still { committed, leader, next }).await,
                Ok(expected),
                "{committed} {leader} {next}"
            );
        }
    }
}
