//! Owns what is broken on purpose: the names of all faults, what each needs, and the frame in which one is done. The faults themselves are
//! in files by what they break.

mod broker;
mod clock;
mod database;
mod disk;
mod group;
mod network;
mod process;
mod records;

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

pub(crate) use self::network::{Effect, Link};
use super::error::LabError;
use super::evidence::Fault;
use super::history::now;
use super::world::World;

/// For a fault to be done and undone, besides the time that it lasts.
const UNDONE_WITHIN: Duration = Duration::from_secs(300);

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Processes, disks, clocks, records.
    One(One),
    /// The connections between two parties.
    Network(Link, Effect),
}

/// Everything but the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum One {
    /// SIGKILL to a gateway, which is started again soon after
    KillGateway,
    /// SIGKILL to a transfer
    KillTransfer,
    /// SIGKILL to a broker
    KillBroker,
    /// SIGKILL to the broker that is the active controller
    KillController,
    /// SIGKILL to a backend of PostgreSQL, which makes the server end all others and recover
    KillBackend,
    /// SIGKILL to every process of PostgreSQL
    KillPostgres,
    /// SIGKILL to a process of clients
    KillClient,
    /// SIGKILL to both gateways and all transfers at once
    KillServices,
    /// SIGSTOP, and SIGCONT later, to a gateway
    FreezeGateway,
    /// The same to a transfer, for longer than its session: it wakes up as one whose partitions are others'
    FreezeTransfer,
    /// The same to a broker
    FreezeBroker,
    /// The same to a backend that serves a transfer, with its transaction open
    FreezeBackend,
    /// The same to every process of PostgreSQL
    FreezePostgres,
    /// SIGTERM to one gateway after the other, each started again before the next
    RestartGateways,
    /// The same with the transfers
    RestartTransfers,
    /// The same with the brokers, each in sync again before the next
    RestartBrokers,
    /// All services become another version, one after the other, and back
    Deploy,
    /// Every partition's leader becomes another broker
    MoveLeaders,
    /// SIGKILL to two of three brokers
    LoseMinInsync,
    /// No follower reaches a leader: the in-sync replicas become too few while all brokers run
    CutReplication,
    /// PostgreSQL stops in its fast way and starts again
    RestartPostgresFast,
    /// The same in its immediate way, as a crash
    RestartPostgresImmediate,
    /// PostgreSQL is away
    PostgresAway,
    /// The disk under PostgreSQL is full
    FillPostgresDisk,
    /// The disk under a broker is full
    FillBrokerDisk,
    /// Another session holds the next row of one inbox: only that inbox waits
    BlockInbox,
    /// Another session holds an ACCESS EXCLUSIVE lock on the table of messages
    LockTable,
    /// Every session of PostgreSQL is read-only
    ReadOnlyPostgres,
    /// The first of two database hosts accepts connections and never responds
    SilentHost,
    /// Nothing reads the logs of a gateway and a transfer, which write many
    UnreadLogs,
    /// A consumer with another assignor is in the group: the transfers cannot join
    ForeignConsumer,
    /// The clocks of a gateway and a transfer jump by an hour, forth and back
    JumpClocks,
    /// Eight transfers, and one again
    Scale,
    /// Records that hold no message are written to the topic
    Poison,
    /// The topic gets more partitions; later the gateways use them, as the documentation says
    GrowTopic,
    /// The topic is deleted and made anew
    RecreateTopic,
}

/// What the stack must have for some faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    pub(crate) proxies: bool,
    pub(crate) disks: bool,
}

impl Kind {
    /// Every fault, in an order in which each can follow the one before.
    pub(crate) fn all() -> Vec<Kind> {
        let (last, others): (Vec<One>, Vec<One>) =
            One::value_variants().iter().partition(|one| matches!(one, One::GrowTopic | One::RecreateTopic));
        let links = Link::value_variants().iter();
        let network =
            links.flat_map(|link| Effect::value_variants().iter().map(|effect| Kind::Network(*link, *effect)));
        others.into_iter().map(Kind::One).chain(network).chain(last.into_iter().map(Kind::One)).collect()
    }

    /// As `--fault` takes it.
    pub(crate) fn name(self) -> String {
        match self {
            Kind::One(one) => word(&one),
            Kind::Network(link, effect) => format!("{}-{}", word(&effect), word(&link)),
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Kind, String> {
        let found = Kind::all().into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| "no such fault; --list shows all".to_owned())
    }

    /// What it does, in a line.
    pub(crate) fn about(self) -> String {
        let help = |value: Option<clap::builder::PossibleValue>| {
            value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
        };
        match self {
            Kind::One(one) => help(one.to_possible_value()),
            Kind::Network(link, effect) => {
                format!("{}: {}", help(link.to_possible_value()), help(effect.to_possible_value()))
            }
        }
    }

    pub(crate) fn needs(self) -> Needs {
        Needs {
            proxies: matches!(self, Kind::Network(..) | Kind::One(One::CutReplication)),
            disks: matches!(self, Kind::One(One::FillPostgresDisk | One::FillBrokerDisk)),
        }
    }

    /// Two faults of different areas can be in force at once.
    pub(crate) fn area(self) -> Area {
        match self {
            Kind::Network(..) | Kind::One(One::CutReplication) => Area::Network,
            Kind::One(one) => match one {
                One::KillBroker
                | One::KillController
                | One::FreezeBroker
                | One::RestartBrokers
                | One::MoveLeaders
                | One::LoseMinInsync
                | One::FillBrokerDisk
                | One::GrowTopic
                | One::RecreateTopic => Area::Brokers,
                One::KillBackend
                | One::KillPostgres
                | One::FreezeBackend
                | One::FreezePostgres
                | One::RestartPostgresFast
                | One::RestartPostgresImmediate
                | One::PostgresAway
                | One::BlockInbox
                | One::LockTable
                | One::ReadOnlyPostgres
                | One::FillPostgresDisk => Area::Postgres,
                One::KillClient => Area::Clients,
                One::Poison => Area::Records,
                _ => Area::Services,
            },
        }
    }

    /// How long it lasts unless told otherwise, in seconds.
    fn hold(self) -> f64 {
        match self {
            Kind::Network(..) => 5.0,
            Kind::One(one) => match one {
                One::KillGateway | One::KillTransfer | One::KillPostgres | One::KillServices => 2.0,
                One::FreezeTransfer => 16.0,
                One::FreezeBroker | One::JumpClocks => 10.0,
                One::CutReplication | One::FillPostgresDisk | One::PostgresAway => 15.0,
                // Longer than the 30 s within which health has to say so.
                One::BlockInbox | One::LockTable | One::ReadOnlyPostgres | One::ForeignConsumer => 45.0,
                One::Scale | One::LoseMinInsync | One::FillBrokerDisk | One::FreezeBackend => 10.0,
                _ => 6.0,
            },
        }
    }

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

/// What a fault has to itself while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    Services,
    Brokers,
    Postgres,
    Network,
    Clients,
    Records,
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_fault_has_a_name_of_its_own() {
        let all = Kind::all();
        let names: HashSet<String> = all.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), all.len());
        for kind in all {
            assert_eq!(Kind::parse(&kind.name()), Ok(kind));
            assert!(!kind.about().is_empty());
        }
    }
}
