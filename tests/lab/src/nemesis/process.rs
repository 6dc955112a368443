//! Breaks services and clients: killed, frozen, restarted, deployed, scaled.

use std::path::Path;

use msg_stack::Signal;

use super::injection::FaultInjection;
use crate::accounts::without_files;
use crate::error::LabError;
use crate::history::now;
use crate::topology::TRANSFERS;
use crate::world::Node;

pub(super) async fn kill<'a>(strike: &mut FaultInjection<'a>, nodes: &'a [Node]) -> Result<(), LabError> {
    let node = strike.pick(nodes);
    strike.target(node.name());
    node.kill().await;
    strike.fault.kills = 1;
    strike.hold().await;
    Ok(node.start().await?)
}

pub(super) async fn kill_services(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let nodes: Vec<&Node> = strike.world.gateways.iter().chain(strike.world.running_transfers()).collect();
    strike.target(format!("{} services", nodes.len()));
    futures_util::future::join_all(nodes.iter().map(|node| node.kill())).await;
    strike.fault.kills = u32::try_from(nodes.len()).expect("few services");
    strike.hold().await;
    futures_util::future::try_join_all(nodes.iter().map(|node| node.start())).await?;
    Ok(())
}

pub(super) async fn kill_client(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, rng) = (strike.world, &mut strike.rng);
    let pick = |count| rand::RngExt::random_range(rng, 0..count);
    if let Some(name) = world.loads.kill_one(pick, world.stack.logs()).await? {
        strike.target(name);
        strike.fault.kills = 1;
    }
    strike.hold().await;
    Ok(())
}

pub(super) async fn freeze<'a>(strike: &mut FaultInjection<'a>, nodes: &'a [Node]) -> Result<(), LabError> {
    let node = strike.pick(nodes);
    strike.target(node.name());
    if !node.service().signal(Signal::Stop) {
        return Err(LabError::Stuck(format!("{} does not run", node.name())));
    }
    strike.hold().await;
    node.service().signal(Signal::Cont);
    Ok(())
}

pub(super) async fn restart(strike: &mut FaultInjection<'_>, nodes: &[Node]) -> Result<(), LabError> {
    strike.target(format!("{} one after the other", nodes.len()));
    strike.fault.broken = now();
    for node in nodes {
        stop(node).await?;
        node.start().await?;
    }
    strike.fault.over = now();
    Ok(())
}

/// A gateway and a transfer that say much, into a pipe that nothing reads.
pub(super) async fn unread_logs(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let world = strike.world;
    let nodes = [&world.gateways[1], &world.transfers[0]];
    strike.target(nodes.map(Node::name).join(" and "));
    for node in nodes {
        stop(node).await?;
        node.change(|mut spec| {
            // The service takes the shell's place, and its process ID.
            let command = format!("exec {} 2> >(exec sleep 600)", quoted(&spec.binary));
            spec.args = vec!["-c".to_owned(), command];
            spec.binary = "/bin/bash".to_owned();
            spec.env("LOG_LEVEL", "debug")
        })?;
        node.start().await?;
    }
    strike.hold().await;
    for node in nodes {
        stop(node).await?;
        node.change(|spec| spec)?;
        node.start().await?;
    }
    Ok(())
}

/// The program's path, for a shell.
fn quoted(binary: &str) -> String {
    let path =
        msg_stack::service::find_binary(binary).map_or_else(|_| binary.to_owned(), |path| path.display().to_string());
    format!("'{}'", path.replace('\'', "'\\''"))
}

/// To the other version and back. Without one, to other settings of this one.
pub(super) async fn deploy(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let other = strike.world.other.clone();
    let what = if other.is_some() { "the other version and back" } else { "other settings of this version and back" };
    strike.target(what);
    strike.fault.broken = now();
    let nodes: Vec<&Node> = strike.world.gateways.iter().chain(strike.world.running_transfers()).collect();
    for node in &nodes {
        replace(node, other.as_deref(), true).await?;
    }
    tokio::time::sleep(strike.hold).await;
    for node in &nodes {
        replace(node, other.as_deref(), false).await?;
    }
    strike.fault.over = now();
    Ok(())
}

async fn replace(node: &Node, other: Option<&Path>, forth: bool) -> Result<(), LabError> {
    stop(node).await?;
    node.change(|mut spec| match (forth, other) {
        (false, _) => spec,
        (true, Some(folder)) => {
            // An older one may know no files.
            spec = without_files(spec);
            spec.binary = folder.join(&spec.binary).display().to_string();
            spec
        }
        (true, None) => spec.env("LANES", 2).env("BATCH_RECORDS", 500).env("LINGER", "5ms"),
    })?;
    Ok(node.start().await?)
}

async fn stop(node: &Node) -> Result<(), LabError> {
    match node.stop().await {
        true => Ok(()),
        // It may be of the other version: what it says is in its log.
        false => Err(LabError::Stuck(format!("{} did not end in its orderly way after SIGTERM", node.name()))),
    }
}

/// Up, and down again; as often as the time allows with `hold` between.
pub(super) async fn scale(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let before = strike.world.running_transfers().len();
    strike.target(format!("{before} to {TRANSFERS} to 1 to {before}"));
    strike.fault.broken = now();
    for count in [TRANSFERS, 1] {
        strike.world.scale_to(count).await?;
        tokio::time::sleep(strike.hold).await;
    }
    strike.world.scale_to(before).await?;
    strike.fault.over = now();
    Ok(())
}
