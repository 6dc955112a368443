//! Owns the names of all faults: what each needs, which area it uses alone, and how long it lasts.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A fault of processes, disks, clocks or records.
    One(One),
    /// A fault of the connections between two parties.
    Network(Link, Effect),
}

/// A fault that is not a network fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum One {
    /// SIGKILL to a gateway, which is started again later
    KillGateway,
    /// SIGKILL to a transfer, which is started again later
    KillTransfer,
    /// SIGKILL to a broker, which is started again later
    KillBroker,
    /// SIGKILL to the broker that is the active controller
    KillController,
    /// SIGKILL to a backend of PostgreSQL; the server ends all other backends and recovers
    KillBackend,
    /// SIGKILL to every process of PostgreSQL
    KillPostgres,
    /// SIGKILL to a process of the load
    KillClient,
    /// SIGKILL to both gateways and all transfers concurrently
    KillServices,
    /// SIGSTOP, and SIGCONT later, to a gateway
    FreezeGateway,
    /// SIGSTOP to a transfer for longer than its session; when it resumes, others own its partitions
    FreezeTransfer,
    /// SIGSTOP, and SIGCONT later, to a broker
    FreezeBroker,
    /// SIGSTOP to a backend that serves a transfer, with its transaction open
    FreezeBackend,
    /// SIGSTOP to every process of PostgreSQL
    FreezePostgres,
    /// SIGTERM to one gateway after the other, each started again before the next
    RestartGateways,
    /// SIGTERM to one transfer after the other, each started again before the next
    RestartTransfers,
    /// SIGTERM to one broker after the other, each in sync again before the next
    RestartBrokers,
    /// Deploys another version to all services, one after the other, and then the first version again
    Deploy,
    /// Moves the leader of every partition to another broker
    MoveLeaders,
    /// SIGKILL to two of three brokers
    LoseMinInsync,
    /// Blocks replication: too few replicas are in sync while all brokers run
    CutReplication,
    /// Restarts PostgreSQL with a fast shutdown
    RestartPostgresFast,
    /// Restarts PostgreSQL with an immediate shutdown, as after a crash
    RestartPostgresImmediate,
    /// Stops PostgreSQL, and starts it later
    PostgresAway,
    /// Fills the disk of PostgreSQL
    FillPostgresDisk,
    /// Fills the disk of a broker
    FillBrokerDisk,
    /// Another session inserts the next row of one inbox and does not commit: only that inbox is blocked
    BlockInbox,
    /// Another session holds an ACCESS EXCLUSIVE lock on the table of messages
    LockTable,
    /// Makes every session of PostgreSQL read-only
    ReadOnlyPostgres,
    /// The first of two database hosts accepts connections and never responds
    SilentHost,
    /// A gateway and a transfer write many log lines to a pipe that no process reads
    UnreadLogs,
    /// A consumer with another assignor joins the group, so the transfers cannot join
    ForeignConsumer,
    /// Withdraws the transfers' right to read the topic, and grants it again
    WithdrawRead,
    /// Withdraws the transfers' right to use the consumer group, and grants it again
    WithdrawGroup,
    /// Withdraws the gateways' right to write to the topic, and grants it again
    WithdrawWrite,
    /// Changes the passwords in the database, and only later in the services' files
    RotatePassword,
    /// Changes the passwords of Kafka's users, and only later in the services' files
    RotateKafkaPassword,
    /// Replaces the certificates of the gateways and of PostgreSQL, and a process of the load; needs --secure
    RotateCertificates,
    /// Promotes a standby; the old primary stays up and is read-only. Later the roles change back
    DemotePrimary,
    /// Promotes a standby while the old primary is frozen. Later the roles change back
    FreezePrimary,
    /// Changes a byte of a batch that no transfer has read, in every replica. Later restores it and resumes the
    /// partition
    DamageBatch,
    /// Removes the end of a partition's log in every replica, with records that no transfer has read
    TruncateLog,
    /// The clocks of a gateway and a transfer jump by an hour, forth and back
    JumpClocks,
    /// Scales to eight transfers, and down to one
    Scale,
    /// Writes poison records to the topic
    Poison,
    /// Adds partitions to the topic; later the gateways use them, as the documentation says
    GrowTopic,
    /// Deletes the topic and recreates it
    RecreateTopic,
}

/// The two parties of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    /// The connections between clients and gateways
    Clients,
    /// The connections between gateways and brokers
    GatewaysKafka,
    /// Transfers and brokers, except for the first transfer
    TransfersKafka,
    /// The first transfer and brokers
    Transfer1Kafka,
    /// The connections of the brokers among each other
    Brokers,
    /// The connections between gateways and PostgreSQL
    GatewaysPostgres,
    /// Transfers and PostgreSQL, except for the first transfer
    TransfersPostgres,
    /// The first transfer and PostgreSQL
    Transfer1Postgres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Effect {
    /// Each byte arrives about 100 ms later, plus or minus 80 ms
    Delay,
    /// Connections are reset and new ones are refused
    Cut,
    /// Connections stay open and no byte arrives
    Blackhole,
    /// Requests arrive and responses do not
    HalfOpen,
    /// 100 KiB a second on each connection
    Slow,
}

/// What the stack must have for a fault.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    pub(crate) proxies: bool,
    pub(crate) disks: bool,
    /// Users with passwords and rights, in Kafka and in the database.
    pub(crate) accounts: bool,
    /// A second database server, which replicates the first.
    pub(crate) standby: bool,
    /// TLS and logins everywhere. A fault does not turn them on: it needs `--secure`.
    pub(crate) secure: bool,
}

impl Needs {
    /// Returns the needs of both faults.
    pub(crate) fn and(self, other: Needs) -> Needs {
        Needs {
            proxies: self.proxies | other.proxies,
            disks: self.disks | other.disks,
            accounts: self.accounts | other.accounts,
            standby: self.standby | other.standby,
            secure: self.secure | other.secure,
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

    /// Returns the name that `--fault` accepts.
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

    /// Returns a line that describes the fault.
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
            secure: matches!(self, Kind::One(One::RotateCertificates)),
        }
    }

    /// Returns the area. Two faults of different areas can be in force concurrently.
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

    /// Returns the default duration in seconds.
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
                // Longer than the 30 s within which `/readyz` has to name the cause.
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

/// The part of the stack that a fault uses alone while it lasts.
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
    fn fault_names_are_unique() {
        let all = Kind::all();
        let names: HashSet<String> = all.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), all.len());
        for kind in all {
            assert_eq!(Kind::parse(&kind.name()), Ok(kind));
            assert!(!kind.about().is_empty());
        }
    }
}
