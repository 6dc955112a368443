//! Counts the time in which the process runs. If it was frozen for an hour, records that waited meanwhile say nothing
//! about whether it stores records now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// The time that counts if the process did not run for longer: a busy machine delays the task too.
const LONGEST: Duration = Duration::from_secs(5);

/// The time since the process started, without the times in which it did not run. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Awake(Arc<Mutex<(Duration, Instant)>>);

impl Awake {
    pub(super) fn new() -> Self {
        Awake(Arc::new(Mutex::new((Duration::ZERO, Instant::now()))))
    }

    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.now();
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Duration {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (awake, last) = *counted;
        let awake = awake + now.saturating_duration_since(last).min(LONGEST);
        *counted = (awake, now.max(last));
        awake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_process_did_not_run_does_not_count() {
        let awake = Awake::new();
        let start = awake.0.lock().expect("no holder panics").1;
        let seconds = Duration::from_secs;
        assert_eq!(awake.at(start + seconds(1)), seconds(1));
        assert_eq!(awake.at(start + seconds(4)), seconds(4));
        assert_eq!(awake.at(start + seconds(3604)), seconds(4) + LONGEST);
        assert_eq!(awake.at(start + seconds(3605)), seconds(5) + LONGEST);
    }
}
