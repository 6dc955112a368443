//! Owns the frame in which a fault is injected and undone. The faults are in files by what they break.

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

/// How long injecting and undoing a fault may take, in addition to its duration.
const UNDONE_WITHIN: Duration = Duration::from_secs(300);

impl Kind {
    /// Injects the fault and undoes it. An error ends the lab.
    pub(crate) async fn inject(
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
        let mut injection = FaultInjection { world, rng, hold, fault, seen: Seen::default() };
        let done = async {
            match self {
                Kind::Network(link, effect) => network::disturb(&mut injection, link, effect).await,
                Kind::One(one) => Box::pin(inject(&mut injection, one)).await,
            }
        };
        // Some faults need several times `hold`: they treat one process after the other.
        let late = |_| LabError::Stuck(format!("{} was not injected and undone in time", self.name()));
        tokio::time::timeout(3 * hold + UNDONE_WITHIN, done).await.map_err(late)??;
        let FaultInjection { mut fault, seen, .. } = injection;
        fault.healed = now();
        Ok(InjectedFault { fault, seen })
    }
}

async fn inject(injection: &mut FaultInjection<'_>, one: One) -> Result<(), LabError> {
    let world = injection.world;
    match one {
        One::KillGateway => process::kill(injection, world.gateways.as_slice()).await,
        One::KillTransfer => process::kill(injection, world.running_transfers()).await,
        One::KillServices => process::kill_services(injection).await,
        One::KillClient => process::kill_client(injection).await,
        One::FreezeGateway => process::freeze(injection, world.gateways.as_slice()).await,
        One::FreezeTransfer => process::freeze(injection, world.running_transfers()).await,
        One::RestartGateways => process::restart(injection, world.gateways.as_slice()).await,
        One::RestartTransfers => process::restart(injection, world.running_transfers()).await,
        One::Deploy => process::deploy(injection).await,
        One::Scale => process::scale(injection).await,
        One::KillBroker => broker::kill(injection).await,
        One::KillController => broker::kill_controller(injection).await,
        One::FreezeBroker => broker::freeze(injection).await,
        One::RestartBrokers => broker::restart(injection).await,
        One::MoveLeaders => broker::move_leaders(injection).await,
        One::LoseMinInsync => broker::lose_min_insync(injection).await,
        One::CutReplication => network::cut_replication(injection).await,
        One::KillBackend => database::kill_backend(injection).await,
        One::KillPostgres => database::kill(injection).await,
        One::FreezeBackend => database::freeze_backend(injection).await,
        One::FreezePostgres => database::freeze(injection).await,
        One::RestartPostgresFast => database::restart(injection, msg_stack::Signal::Int).await,
        One::RestartPostgresImmediate => database::restart(injection, msg_stack::Signal::Quit).await,
        One::PostgresAway => database::stop(injection).await,
        One::FillPostgresDisk => disk::fill_postgres(injection).await,
        One::FillBrokerDisk => disk::fill_broker(injection).await,
        One::BlockInbox => database::block_inbox(injection).await,
        One::LockTable => database::lock_table(injection).await,
        One::ReadOnlyPostgres => database::read_only(injection).await,
        One::SilentHost => database::silent_host(injection).await,
        One::UnreadLogs => process::unread_logs(injection).await,
        One::ForeignConsumer => group::foreign_consumer(injection).await,
        One::WithdrawRead => account::withdraw_read(injection).await,
        One::WithdrawGroup => account::withdraw_group(injection).await,
        One::WithdrawWrite => account::withdraw_write(injection).await,
        One::RotatePassword => account::rotate_password(injection).await,
        One::RotateKafkaPassword => account::rotate_kafka_password(injection).await,
        One::RotateCertificates => account::rotate_certificates(injection).await,
        One::DemotePrimary => primary::replace(injection, primary::Old::ReadOnly).await,
        One::FreezePrimary => primary::replace(injection, primary::Old::Frozen).await,
        One::DamageBatch => log::damage_batch(injection).await,
        One::TruncateLog => log::truncate_log(injection).await,
        One::JumpClocks => clock::jump(injection).await,
        One::Poison => records::poison(injection).await,
        One::GrowTopic => records::grow(injection).await,
        One::RecreateTopic => records::recreate(injection).await,
    }
}
