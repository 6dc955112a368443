//! Owns what is broken on purpose: the frame in which a fault is done. The faults themselves are in files by what they break.

mod account;
mod broker;
mod clock;
mod database;
mod disk;
mod group;
mod injection;
mod log;
mod network;
mod primary;
mod process;
mod records;

use std::time::Duration;

use rand::rngs::StdRng;

use self::injection::{FaultInjection, InjectedFault, Seen};
use super::error::LabError;
use super::evidence::Fault;
use super::history::now;
use super::kind::{Kind, One};
use super::world::World;

/// For a fault to be done and undone, besides the time that it lasts.
const UNDONE_WITHIN: Duration = Duration::from_secs(300);

impl Kind {
    /// Does it and undoes it. An error means that the lab itself is at its end.
    pub(crate) async fn strike(
        self,
        world: &World,
        rng: StdRng,
        hold: Option<Duration>,
    ) -> Result<InjectedFault, LabError> {
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
        let mut strike = FaultInjection { world, rng, hold, fault, seen: Seen::default() };
        let done = async {
            match self {
                Kind::Network(link, effect) => network::strike(&mut strike, link, effect).await,
                Kind::One(one) => Box::pin(inject(&mut strike, one)).await,
            }
        };
        // Several times `hold` for those that do a thing to one after the other.
        let late = |_| LabError::Stuck(format!("{} is not done and undone in time", self.name()));
        tokio::time::timeout(3 * hold + UNDONE_WITHIN, done).await.map_err(late)??;
        let FaultInjection { mut fault, seen, .. } = strike;
        fault.healed = now();
        Ok(InjectedFault { fault, seen })
    }
}

async fn inject(strike: &mut FaultInjection<'_>, one: One) -> Result<(), LabError> {
    let world = strike.world;
    match one {
        One::KillGateway => process::kill(strike, world.gateways.as_slice()).await,
        One::KillTransfer => process::kill(strike, world.running_transfers()).await,
        One::KillServices => process::kill_services(strike).await,
        One::KillClient => process::kill_client(strike).await,
        One::FreezeGateway => process::freeze(strike, world.gateways.as_slice()).await,
        One::FreezeTransfer => process::freeze(strike, world.running_transfers()).await,
        One::RestartGateways => process::restart(strike, world.gateways.as_slice()).await,
        One::RestartTransfers => process::restart(strike, world.running_transfers()).await,
        One::Deploy => process::deploy(strike).await,
        One::Scale => process::scale(strike).await,
        One::KillBroker => broker::kill(strike).await,
        One::KillController => broker::kill_controller(strike).await,
        One::FreezeBroker => broker::freeze(strike).await,
        One::RestartBrokers => broker::restart(strike).await,
        One::MoveLeaders => broker::move_leaders(strike).await,
        One::LoseMinInsync => broker::lose_min_insync(strike).await,
        One::CutReplication => network::cut_replication(strike).await,
        One::KillBackend => database::kill_backend(strike).await,
        One::KillPostgres => database::kill(strike).await,
        One::FreezeBackend => database::freeze_backend(strike).await,
        One::FreezePostgres => database::freeze(strike).await,
        One::RestartPostgresFast => database::restart(strike, msg_stack::Signal::Int).await,
        One::RestartPostgresImmediate => database::restart(strike, msg_stack::Signal::Quit).await,
        One::PostgresAway => database::away(strike).await,
        One::FillPostgresDisk => disk::fill_postgres(strike).await,
        One::FillBrokerDisk => disk::fill_broker(strike).await,
        One::BlockInbox => database::block_inbox(strike).await,
        One::LockTable => database::lock_table(strike).await,
        One::ReadOnlyPostgres => database::read_only(strike).await,
        One::SilentHost => database::silent_host(strike).await,
        One::UnreadLogs => process::unread_logs(strike).await,
        One::ForeignConsumer => group::foreign_consumer(strike).await,
        One::WithdrawRead => account::withdraw_read(strike).await,
        One::WithdrawGroup => account::withdraw_group(strike).await,
        One::WithdrawWrite => account::withdraw_write(strike).await,
        One::RotatePassword => account::rotate_password(strike).await,
        One::RotateKafkaPassword => account::rotate_kafka_password(strike).await,
        One::DemotePrimary => primary::replace(strike, primary::Old::ReadOnly).await,
        One::FreezePrimary => primary::replace(strike, primary::Old::Frozen).await,
        One::DamageBatch => log::damage_batch(strike).await,
        One::TruncateLog => log::truncate_log(strike).await,
        One::JumpClocks => clock::jump(strike).await,
        One::Poison => records::poison(strike).await,
        One::GrowTopic => records::grow(strike).await,
        One::RecreateTopic => records::recreate(strike).await,
    }
}
