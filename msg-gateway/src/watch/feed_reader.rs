//! Reads what is new in the watched inboxes, once for all who watch: behind hints at once, without hints from time to time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::status::Failure;
use crate::watch::feed::Feed;
use crate::watch::hint_monitor::HintMonitor;
use crate::watch::queries::WatchQueries;

/// One statement reads so many inboxes, rows of each, rows and bytes in all.
const INBOXES: usize = 256;
const PER_INBOX: usize = 32;
const ROWS: i64 = 2000;
const BYTES: i64 = 4 << 20;
/// Looks are spread over the round in steps of this, each of at most so many inboxes.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const MAX_CHECKS: usize = 1000;
/// The round while hints cannot be relied on.
const ROUND_WITHOUT_HINTS: Duration = Duration::from_secs(1);
/// How long to wait after the database did not answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Reads into the feed.
pub struct FeedReader {
    /// What is watched.
    pub feed: Arc<Feed>,
    /// Asks the table.
    pub queries: Arc<WatchQueries>,
    /// Whether hints can be relied on.
    pub monitor: Arc<HintMonitor>,
    /// How often each inbox is checked at while they can.
    pub round: Duration,
}

impl FeedReader {
    /// Reads until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.read()).await;
    }

    async fn read(&self) {
        let mut steps = tokio::time::interval(CHECK_INTERVAL);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = 0.0;
        loop {
            let checked = tokio::select! {
                () = self.feed.work.notified() => Ok(()),
                _ = steps.tick() => self.check(&mut due).await,
            };
            if let Err(failure) = checked.and(self.read_all().await) {
                tracing::debug!(?failure, "watched inboxes cannot be read");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    async fn read_all(&self) -> Result<(), Failure> {
        loop {
            let next = self.feed.next_unread(INBOXES);
            if next.is_empty() {
                return Ok(());
            }
            let per_inbox = i64::try_from(PER_INBOX).expect("it is small");
            match self.queries.after(&next, per_inbox, ROWS, BYTES).await {
                Ok((rows, cut)) => self.feed.publish(&next, rows, PER_INBOX, cut),
                Err(failure) => {
                    self.feed.put_back(&next);
                    return Err(failure);
                }
            }
        }
    }

    /// Looks at the next part of the round for what no hint told of. `due` is what was not yet checked at in the parts before.
    async fn check(&self, due: &mut f64) -> Result<(), Failure> {
        let round = if self.monitor.is_reliable() { self.round } else { ROUND_WITHOUT_HINTS };
        *due += self.feed.len() as f64 * CHECK_INTERVAL.as_secs_f64() / round.as_secs_f64();
        let count = (*due as usize).min(MAX_CHECKS);
        *due = if count == MAX_CHECKS { 0.0 } else { *due - count as f64 };
        let checks = self.feed.next_checks(count);
        if checks.is_empty() {
            return Ok(());
        }
        for (index, old) in self.queries.present(&checks).await? {
            let (recv_id, seq) = &checks[index];
            if self.feed.found_stored(recv_id, *seq) && old {
                self.monitor.mark_unreliable();
            }
        }
        Ok(())
    }
}
