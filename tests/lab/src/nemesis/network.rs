//! Injects faults of connections, with the proxies between any two parties.

use msg_stack::{Proxies, Toxic};

use super::broker;
use super::injection::FaultInjection;
use crate::error::LabError;
use crate::kind::{Effect, Link};
use crate::topology::{BROKERS, GATEWAYS};

fn toxic(effect: Effect) -> Toxic {
    match effect {
        Effect::Delay => Toxic::Delay { ms: 100, jitter: 80 },
        Effect::Cut => Toxic::Cut,
        Effect::Blackhole => Toxic::BlackHole,
        Effect::HalfOpen => Toxic::HalfOpen,
        Effect::Slow => Toxic::Bandwidth(100),
    }
}

/// Returns the names of the proxies between the two parties.
fn proxies_on(link: Link) -> Vec<String> {
    let brokers = |network: &str| (1..=BROKERS).map(|broker| format!("{network}-{broker}")).collect();
    match link {
        Link::Clients => (1..=GATEWAYS).map(|number| format!("clients-gateway-{number}")).collect(),
        Link::GatewaysKafka => brokers("GATEWAYS"),
        Link::TransfersKafka => brokers("TRANSFERS"),
        Link::Transfer1Kafka => brokers("TRANSFER1"),
        Link::Brokers => brokers(msg_stack::kafka::BETWEEN_BROKERS),
        Link::GatewaysPostgres => vec!["gateways-postgres".into()],
        Link::TransfersPostgres => vec!["transfers-postgres".into()],
        Link::Transfer1Postgres => vec!["transfer1-postgres".into()],
    }
}

pub(super) async fn disturb(injection: &mut FaultInjection<'_>, link: Link, effect: Effect) -> Result<(), LabError> {
    let names = proxies_on(link);
    injection.target(if names.len() == 1 { names[0].clone() } else { format!("{} proxies", names.len()) });
    put(proxies(injection)?, &names, toxic(effect)).await?;
    injection.hold().await;
    proxies(injection)?.reset().await?;
    if link == Link::Brokers { broker::in_sync(injection.world).await } else { Ok(()) }
}

/// Every broker runs and reaches the controllers; no follower gets another broker's records.
pub(super) async fn cut_replication(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    injection.target("all followers");
    injection.fault.no_ok = true;
    put(proxies(injection)?, &proxies_on(Link::Brokers), Toxic::Cut).await?;
    injection.hold().await;
    proxies(injection)?.reset().await?;
    broker::in_sync(injection.world).await
}

async fn put(proxies: &Proxies, names: &[String], toxic: Toxic) -> Result<(), LabError> {
    for name in names {
        proxies.put(name, toxic).await?;
    }
    Ok(())
}

fn proxies<'a>(injection: &FaultInjection<'a>) -> Result<&'a Proxies, LabError> {
    let proxies = injection.world.proxies.as_ref();
    proxies.ok_or_else(|| LabError::Setting("the stack was started without proxies".into()))
}
