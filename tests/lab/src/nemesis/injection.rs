//! Owns a fault while it is injected: what its functions need, and what they record for the checker.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::error::LabError;
use crate::evidence::{Fault, NewTopic, Says, Truncation};
use crate::history::{Nanos, now};
use crate::topology::BROKERS;
use crate::world::World;

/// How long a service may need to be ready again without a restart: it retries some operations only once a minute.
const READY_AGAIN_WITHIN: Duration = Duration::from_secs(150);

/// Waits until every service is ready. None is restarted.
pub(super) async fn all_ready(world: &World) -> Result<(), LabError> {
    for node in world.gateways.iter().chain(world.running_transfers()) {
        node.service().wait_ready(READY_AGAIN_WITHIN).await?;
    }
    Ok(())
}

pub(crate) struct InjectedFault {
    pub(crate) fault: Fault,
    pub(crate) seen: Seen,
}

/// What else the fault recorded for the checker.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) poison: Vec<(i32, i64)>,
    pub(crate) topic: Option<NewTopic>,
    pub(crate) truncation: Option<Truncation>,
    pub(crate) growth: Option<(Nanos, i32)>,
}

pub(crate) struct FaultInjection<'a> {
    pub(super) world: &'a World,
    pub(super) rng: StdRng,
    pub(super) hold: Duration,
    pub(super) fault: Fault,
    pub(super) seen: Seen,
}

impl<'a> FaultInjection<'a> {
    pub(super) fn target(&mut self, target: impl Into<String>) {
        self.fault.target = target.into();
    }

    /// Requires that, while the fault lasts, a process with this name prefix names the cause in `/readyz` with these
    /// words.
    pub(super) fn must_report(&mut self, process: &str, words: &[&str]) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.fault.says.push(Says { process: process.to_owned(), words });
    }

    /// Marks the fault as in force, and waits for its duration.
    pub(super) async fn hold(&mut self) {
        self.fault.broken = now();
        tokio::time::sleep(self.hold).await;
        self.fault.over = now();
    }

    pub(super) fn pick<T>(&mut self, all: &'a [T]) -> &'a T {
        all.choose(&mut self.rng).expect("there is at least one")
    }

    pub(super) fn broker(&mut self) -> usize {
        self.rng.random_range(1..=BROKERS)
    }
}
