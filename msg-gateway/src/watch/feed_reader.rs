//! Reads new rows of the watched inboxes, once for all watchers: immediately after a hint, and by regular checks
//! without one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::status::Failure;
use crate::watch::RETRY_INTERVAL;
use crate::watch::feed::Feed;
use crate::watch::hint_monitor::HintMonitor;
use crate::watch::queries::WatchQueries;

/// One statement reads up to this many inboxes, rows of each inbox, rows and bytes.
const INBOXES: usize = 256;
const PER_INBOX: usize = 32;
const ROWS: i64 = 2000;
const BYTES: i64 = 4 << 20;
/// The checks of a round are spread over it at this interval, up to `MAX_CHECKS` inboxes each time.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const MAX_CHECKS: usize = 1000;
/// The duration of a round while hints are unreliable.
const ROUND_WITHOUT_HINTS: Duration = Duration::from_secs(1);

/// The task that reads rows into the feed.
pub(crate) struct FeedReader {
    pub(crate) feed: Arc<Feed>,
    pub(crate) queries: Arc<WatchQueries>,
    pub(crate) monitor: Arc<HintMonitor>,
    /// The interval between two checks of an inbox while hints are reliable.
    pub(crate) round: Duration,
}

impl FeedReader {
    pub(crate) async fn run(self, stop: CancellationToken) {
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
                tracing::debug!(?failure, "cannot read watched inboxes");
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

    /// Checks the next inboxes of the round for rows without a hint. `due` is the number of inboxes whose check is
    /// due, with its fraction.
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
