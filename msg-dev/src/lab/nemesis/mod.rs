//! Owns what is broken on purpose: the frame in which a fault is done. The faults themselves are in files by what they break.

mod account;
mod broker;
mod clock;
mod database;
mod disk;
mod group;
mod kind;
mod log;
mod network;
mod primary;
mod process;
mod records;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

pub(crate) use self::kind::{Kind, Needs, One};
pub(crate) use self::network::{Effect, Link};
use super::error::LabError;
use super::evidence::{Fault, Says, Truncation};
use super::history::now;
use super::world::World;

/// For a fault to be done and undone, besides the time that it lasts.
const UNDONE_WITHIN: Duration = Duration::from_secs(300);
/// For a service to be ready again without a restart: what fails again and again is retried once a minute.
const READY_AGAIN_WITHIN: Duration = Duration::from_secs(150);

/// Waits until every service is ready, by itself.
async fn all_ready(world: &World) -> Result<(), LabError> {
    for node in world.gateways.iter().chain(world.running_transfers()) {
        node.service().wait_ready(READY_AGAIN_WITHIN).await?;
    }
    Ok(())
}

impl Kind {
    /// Does it and undoes it. An error means that the lab itself is at its end.
    pub(crate) async fn strike(self, world: &World, rng: StdRng, hold: Option<Duration>) -> Result<Struck, LabError> {
        let hold = hold.unwrap_or(Duration::from_secs_f64(self.hold()));
        let fault = Fault {
            name: self.name(),
            target: String::new(),
            began: now(),
            broken: 0,
            over: 0,
            healed: 0,
            no_ok: false,
            kills: 0,
            says: Vec::new(),
        };
        let mut strike = Strike { world, rng, hold, fault, seen: Seen::default() };
        let done = async {
            match self {
                Kind::Network(link, effect) => network::strike(&mut strike, link, effect).await,
                Kind::One(one) => Box::pin(strike.one(one)).await,
            }
        };
        // Several times `hold` for those that do a thing to one after the other.
        let late = |_| LabError::Stuck(format!("{} is not done and undone in time", self.name()));
        tokio::time::timeout(3 * hold + UNDONE_WITHIN, done).await.map_err(late)??;
        let Strike { mut fault, seen, .. } = strike;
        fault.healed = now();
        Ok(Struck { fault, seen })
    }
}

/// A fault that was done.
pub(crate) struct Struck {
    pub(crate) fault: Fault,
    pub(crate) seen: Seen,
}

/// What else it left for the checker.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) poison: Vec<(i32, i64)>,
    pub(crate) topic: Option<super::evidence::NewTopic>,
    pub(crate) truncation: Option<Truncation>,
    pub(crate) growth: Option<(super::history::Nanos, i32)>,
}

/// A fault that is being done.
pub(crate) struct Strike<'a> {
    world: &'a World,
    rng: StdRng,
    hold: Duration,
    fault: Fault,
    seen: Seen,
}

impl<'a> Strike<'a> {
    async fn one(&mut self, one: One) -> Result<(), LabError> {
        match one {
            One::KillGateway => process::kill(self, self.world.gateways.as_slice()).await,
            One::KillTransfer => process::kill(self, self.world.running_transfers()).await,
            One::KillServices => process::kill_services(self).await,
            One::KillClient => process::kill_client(self).await,
            One::FreezeGateway => process::freeze(self, self.world.gateways.as_slice()).await,
            One::FreezeTransfer => process::freeze(self, self.world.running_transfers()).await,
            One::RestartGateways => process::restart(self, self.world.gateways.as_slice()).await,
            One::RestartTransfers => process::restart(self, self.world.running_transfers()).await,
            One::Deploy => process::deploy(self).await,
            One::Scale => process::scale(self).await,
            One::KillBroker => broker::kill(self).await,
            One::KillController => broker::kill_controller(self).await,
            One::FreezeBroker => broker::freeze(self).await,
            One::RestartBrokers => broker::restart(self).await,
            One::MoveLeaders => broker::move_leaders(self).await,
            One::LoseMinInsync => broker::lose_min_insync(self).await,
            One::CutReplication => network::cut_replication(self).await,
            One::KillBackend => database::kill_backend(self).await,
            One::KillPostgres => database::kill(self).await,
            One::FreezeBackend => database::freeze_backend(self).await,
            One::FreezePostgres => database::freeze(self).await,
            One::RestartPostgresFast => database::restart(self, msg_dev::stack::Signal::Int).await,
            One::RestartPostgresImmediate => database::restart(self, msg_dev::stack::Signal::Quit).await,
            One::PostgresAway => database::away(self).await,
            One::FillPostgresDisk => disk::fill_postgres(self).await,
            One::FillBrokerDisk => disk::fill_broker(self).await,
            One::BlockInbox => database::block_inbox(self).await,
            One::LockTable => database::lock_table(self).await,
            One::ReadOnlyPostgres => database::read_only(self).await,
            One::SilentHost => database::silent_host(self).await,
            One::UnreadLogs => process::unread_logs(self).await,
            One::ForeignConsumer => group::foreign_consumer(self).await,
            One::WithdrawRead => account::withdraw_read(self).await,
            One::WithdrawGroup => account::withdraw_group(self).await,
            One::WithdrawWrite => account::withdraw_write(self).await,
            One::RotatePassword => account::rotate_password(self).await,
            One::RotateKafkaPassword => account::rotate_kafka_password(self).await,
            One::DemotePrimary => primary::replace(self, primary::Old::ReadOnly).await,
            One::FreezePrimary => primary::replace(self, primary::Old::Frozen).await,
            One::DamageBatch => log::damage_batch(self).await,
            One::TruncateLog => log::truncate_log(self).await,
            One::JumpClocks => clock::jump(self).await,
            One::Poison => records::poison(self).await,
            One::GrowTopic => records::grow(self).await,
            One::RecreateTopic => records::recreate(self).await,
        }
    }

    /// To whom it is done.
    fn target(&mut self, target: impl Into<String>) {
        self.fault.target = target.into();
    }

    /// A process with this begin of its name has to name the cause with these words in `/readyz`, while it lasts.
    fn must_say(&mut self, process: &str, words: &[&str]) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.fault.says.push(Says { process: process.to_owned(), words });
    }

    /// It is in force: it lasts from now on.
    async fn hold(&mut self) {
        self.fault.broken = now();
        tokio::time::sleep(self.hold).await;
        self.fault.over = now();
    }

    fn pick<T>(&mut self, all: &'a [T]) -> &'a T {
        all.choose(&mut self.rng).expect("there is one at least")
    }

    fn broker(&mut self) -> usize {
        rand::RngExt::random_range(&mut self.rng, 1..=super::world::BROKERS)
    }
}
