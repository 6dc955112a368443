//! Owns the names of all faults, what each needs, what it has to itself, and how long it lasts.

use clap::ValueEnum;

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
    /// The transfers lose their right to read the topic, and get it back
    WithdrawRead,
    /// The same with their right to use the consumer group
    WithdrawGroup,
    /// The gateways lose their right to write to the topic, and get it back
    WithdrawWrite,
    /// The database has new passwords, and the services' files have them only later
    RotatePassword,
    /// The same with the passwords of Kafka's users
    RotateKafkaPassword,
    /// A standby is promoted; the old primary stays up and is read-only. Later the roles change back
    DemotePrimary,
    /// The same with an old primary that is frozen
    FreezePrimary,
    /// A byte of a batch that is not read yet changes in every replica; later it is restored and the partition resumed
    DamageBatch,
    /// The end of a partition's log is lost in every replica, with records that no transfer has read
    TruncateLog,
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

/// Between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    /// Clients and gateways
    Clients,
    /// Gateways and brokers
    GatewaysKafka,
    /// Transfers and brokers, but for the first transfer
    TransfersKafka,
    /// The first transfer and brokers
    Transfer1Kafka,
    /// Brokers and brokers
    Brokers,
    /// Gateways and PostgreSQL
    GatewaysPostgres,
    /// Transfers and PostgreSQL, but for the first transfer
    TransfersPostgres,
    /// The first transfer and PostgreSQL
    Transfer1Postgres,
}

/// What happens to the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Effect {
    /// Everything arrives 100 ms later, more or less 80 ms
    Delay,
    /// Connections are reset and new ones refused
    Cut,
    /// Connections stay open and nothing arrives
    Blackhole,
    /// Requests arrive and answers do not
    HalfOpen,
    /// 100 KiB a second on each connection
    Slow,
}

/// What the stack must have for some faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    pub(crate) proxies: bool,
    pub(crate) disks: bool,
    /// Users with passwords and rights, in Kafka and in the database.
    pub(crate) accounts: bool,
    /// A second database server.
    pub(crate) standby: bool,
}

impl Needs {
    /// What the one or the other has.
    pub(crate) fn and(self, other: Needs) -> Needs {
        Needs {
            proxies: self.proxies | other.proxies,
            disks: self.disks | other.disks,
            accounts: self.accounts | other.accounts,
            standby: self.standby | other.standby,
        }
    }
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
            accounts: matches!(
                self,
                Kind::One(
                    One::WithdrawRead
                        | One::WithdrawGroup
                        | One::WithdrawWrite
                        | One::RotatePassword
                        | One::RotateKafkaPassword
                )
            ),
            standby: matches!(self, Kind::One(One::DemotePrimary | One::FreezePrimary)),
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
                | One::RotateKafkaPassword
                | One::TruncateLog
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
                | One::RotatePassword
                | One::DemotePrimary
                | One::FreezePrimary
                | One::FillPostgresDisk => Area::Postgres,
                One::KillClient => Area::Clients,
                One::Poison => Area::Records,
                _ => Area::Services,
            },
        }
    }

    /// How long it lasts unless told otherwise, in seconds.
    pub(crate) fn hold(self) -> f64 {
        match self {
            Kind::Network(..) => 5.0,
            Kind::One(one) => match one {
                One::KillGateway | One::KillTransfer | One::KillPostgres | One::KillServices => 2.0,
                One::FreezeTransfer => 16.0,
                One::JumpClocks => 10.0,
                One::FillPostgresDisk | One::PostgresAway => 15.0,
                // Longer than every timeout between a message and its `settles_by`.
                One::FreezeBroker | One::CutReplication => 60.0,
                // Longer than the 30 s within which health has to say so.
                One::BlockInbox
                | One::LockTable
                | One::ReadOnlyPostgres
                | One::ForeignConsumer
                | One::WithdrawRead
                | One::WithdrawGroup
                | One::WithdrawWrite
                | One::RotatePassword
                | One::RotateKafkaPassword
                | One::DamageBatch => 45.0,
                One::DemotePrimary | One::FreezePrimary => 20.0,
                One::Scale | One::LoseMinInsync | One::FillBrokerDisk | One::FreezeBackend => 10.0,
                _ => 6.0,
            },
        }
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
