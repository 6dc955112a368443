//! Breaks connections, by the proxies that stand between any two parties.

use clap::ValueEnum;
use msg_dev::stack::{Proxies, Toxic};

use super::{LabError, Strike, broker};
use crate::lab::world::{BROKERS, GATEWAYS};

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

impl Effect {
    fn toxic(self) -> Toxic {
        match self {
            Effect::Delay => Toxic::Delay { ms: 100, jitter: 80 },
            Effect::Cut => Toxic::Cut,
            Effect::Blackhole => Toxic::BlackHole,
            Effect::HalfOpen => Toxic::HalfOpen,
            Effect::Slow => Toxic::Bandwidth(100),
        }
    }
}

impl Link {
    /// The proxies on it.
    fn proxies(self) -> Vec<String> {
        let brokers = |network: &str| (1..=BROKERS).map(|broker| format!("{network}-{broker}")).collect();
        match self {
            Link::Clients => (1..=GATEWAYS).map(|number| format!("clients-gateway-{number}")).collect(),
            Link::GatewaysKafka => brokers("GATEWAYS"),
            Link::TransfersKafka => brokers("TRANSFERS"),
            Link::Transfer1Kafka => brokers("TRANSFER1"),
            Link::Brokers => brokers(msg_dev::stack::kafka::BETWEEN_BROKERS),
            Link::GatewaysPostgres => vec!["gateways-postgres".into()],
            Link::TransfersPostgres => vec!["transfers-postgres".into()],
            Link::Transfer1Postgres => vec!["transfer1-postgres".into()],
        }
    }
}

pub(super) async fn strike(strike: &mut Strike<'_>, link: Link, effect: Effect) -> Result<(), LabError> {
    let names = link.proxies();
    strike.target(if names.len() == 1 { names[0].clone() } else { format!("{} proxies", names.len()) });
    put(proxies(strike)?, &names, effect.toxic()).await?;
    strike.hold().await;
    proxies(strike)?.reset().await?;
    if link == Link::Brokers { broker::in_sync(strike.world).await } else { Ok(()) }
}

/// Every broker runs and has the controllers; none gets another's records.
pub(super) async fn cut_replication(strike: &mut Strike<'_>) -> Result<(), LabError> {
    strike.target("all followers");
    strike.fault.no_ok = true;
    put(proxies(strike)?, &Link::Brokers.proxies(), Toxic::Cut).await?;
    strike.hold().await;
    proxies(strike)?.reset().await?;
    broker::in_sync(strike.world).await
}

async fn put(proxies: &Proxies, names: &[String], toxic: Toxic) -> Result<(), LabError> {
    for name in names {
        proxies.put(name, toxic).await?;
    }
    Ok(())
}

fn proxies<'a>(strike: &Strike<'a>) -> Result<&'a Proxies, LabError> {
    let proxies = strike.world.proxies.as_ref();
    proxies.ok_or_else(|| LabError::Setting("the stack was started without proxies".into()))
}
