//! Owns a fault while it is done: what its functions are given, and what they leave for the checker.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::error::LabError;
use crate::evidence::{Fault, NewTopic, Says, Truncation};
use crate::history::{Nanos, now};
use crate::topology::BROKERS;
use crate::world::World;

/// For a service to be ready again without a restart: what fails again and again is retried once a minute.
const READY_AGAIN_WITHIN: Duration = Duration::from_secs(150);

/// Waits until every service is ready, by itself.
pub(super) async fn all_ready(world: &World) -> Result<(), LabError> {
    for node in world.gateways.iter().chain(world.running_transfers()) {
        node.service().wait_ready(READY_AGAIN_WITHIN).await?;
    }
    Ok(())
}

/// A fault that was done.
pub(crate) struct InjectedFault {
    pub(crate) fault: Fault,
    pub(crate) seen: Seen,
}

/// What else it left for the checker.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) poison: Vec<(i32, i64)>,
    pub(crate) topic: Option<NewTopic>,
    pub(crate) truncation: Option<Truncation>,
    pub(crate) growth: Option<(Nanos, i32)>,
}

/// A fault that is being done.
pub(crate) struct FaultInjection<'a> {
    pub(super) world: &'a World,
    pub(super) rng: StdRng,
    pub(super) hold: Duration,
    pub(super) fault: Fault,
    pub(super) seen: Seen,
}

impl<'a> FaultInjection<'a> {
    /// To whom it is done.
    pub(super) fn target(&mut self, target: impl Into<String>) {
        self.fault.target = target.into();
    }

    /// A process with this begin of its name has to name the cause with these words in `/readyz`, while it lasts.
    pub(super) fn must_say(&mut self, process: &str, words: &[&str]) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.fault.says.push(Says { process: process.to_owned(), words });
    }

    /// It is in force: it lasts from now on.
    pub(super) async fn hold(&mut self) {
        self.fault.broken = now();
        tokio::time::sleep(self.hold).await;
        self.fault.over = now();
    }

    pub(super) fn pick<T>(&mut self, all: &'a [T]) -> &'a T {
        all.choose(&mut self.rng).expect("there is one at least")
    }

    pub(super) fn broker(&mut self) -> usize {
        self.rng.random_range(1..=BROKERS)
    }
}
