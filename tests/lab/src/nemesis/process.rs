//! Injects faults of services and load processes: kills, freezes, restarts, deploys and scales them.

use std::path::Path;

use msg_stack::Signal;

use super::injection::FaultInjection;
use crate::accounts::without_files;
use crate::error::LabError;
use crate::history::now;
use crate::topology::TRANSFERS;
use crate::world::Node;

pub(super) async fn kill<'a>(injection: &mut FaultInjection<'a>, nodes: &'a [Node]) -> Result<(), LabError> {
    let node = injection.pick(nodes);
    injection.target(node.name());
    node.kill().await;
    injection.fault.kills = 1;
    injection.hold().await;
    Ok(node.start().await?)
}

pub(super) async fn kill_services(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let nodes: Vec<&Node> = injection.world.gateways.iter().chain(injection.world.running_transfers()).collect();
    injection.target(format!("{} services", nodes.len()));
    futures_util::future::join_all(nodes.iter().map(|node| node.kill())).await;
    injection.fault.kills = u32::try_from(nodes.len()).expect("few services");
    injection.hold().await;
    futures_util::future::try_join_all(nodes.iter().map(|node| node.start())).await?;
    Ok(())
}

pub(super) async fn kill_client(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, rng) = (injection.world, &mut injection.rng);
    let pick = |count| rand::RngExt::random_range(rng, 0..count);
    if let Some(name) = world.loads.kill_one(pick, world.stack.logs()).await? {
        injection.target(name);
        injection.fault.kills = 1;
    }
    injection.hold().await;
    Ok(())
}

pub(super) async fn freeze<'a>(injection: &mut FaultInjection<'a>, nodes: &'a [Node]) -> Result<(), LabError> {
    let node = injection.pick(nodes);
    injection.target(node.name());
    if !node.service().signal(Signal::Stop) {
        return Err(LabError::Stuck(format!("{} does not run", node.name())));
    }
    injection.hold().await;
    node.service().signal(Signal::Cont);
    Ok(())
}

pub(super) async fn restart(injection: &mut FaultInjection<'_>, nodes: &[Node]) -> Result<(), LabError> {
    injection.target(format!("{} one after the other", nodes.len()));
    injection.fault.broken = now();
    for node in nodes {
        stop(node).await?;
        node.start().await?;
    }
    injection.fault.over = now();
    Ok(())
}

/// Lets a gateway and a transfer write many log lines to a pipe that no process reads.
pub(super) async fn unread_logs(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let world = injection.world;
    let nodes = [&world.gateways[1], &world.transfers[0]];
    injection.target(nodes.map(Node::name).join(" and "));
    for node in nodes {
        stop(node).await?;
        node.change(|mut spec| {
            // `exec` lets the service replace the shell, so it has the shell's process ID.
            let command = format!("exec {} 2> >(exec sleep 600)", quoted(&spec.binary));
            spec.args = vec!["-c".to_owned(), command];
            spec.binary = "/bin/bash".to_owned();
            spec.env("LOG_LEVEL", "debug")
        })?;
        node.start().await?;
    }
    injection.hold().await;
    for node in nodes {
        stop(node).await?;
        node.change(|spec| spec)?;
        node.start().await?;
    }
    Ok(())
}

/// Returns the program's path, quoted for a shell.
fn quoted(binary: &str) -> String {
    let path =
        msg_stack::service::find_binary(binary).map_or_else(|_| binary.to_owned(), |path| path.display().to_string());
    format!("'{}'", path.replace('\'', "'\\''"))
}

/// Deploys the other version and then this one again. Without another version, deploys other settings.
pub(super) async fn deploy(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let other = injection.world.other.clone();
    let what = if other.is_some() { "the other version and back" } else { "other settings of this version and back" };
    injection.target(what);
    injection.fault.broken = now();
    let nodes: Vec<&Node> = injection.world.gateways.iter().chain(injection.world.running_transfers()).collect();
    for node in &nodes {
        replace(node, other.as_deref(), true).await?;
    }
    tokio::time::sleep(injection.hold).await;
    for node in &nodes {
        replace(node, other.as_deref(), false).await?;
    }
    injection.fault.over = now();
    Ok(())
}

async fn replace(node: &Node, other: Option<&Path>, forth: bool) -> Result<(), LabError> {
    stop(node).await?;
    node.change(|mut spec| match (forth, other) {
        (false, _) => spec,
        (true, Some(folder)) => {
            // Use no files: an older version may not know the settings that name files.
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
        // The process may be of the other version: its log shows the reason.
        false => Err(LabError::Stuck(format!("{} did not stop gracefully after SIGTERM", node.name()))),
    }
}

/// Scales up, down to one, and back, with `hold` between.
pub(super) async fn scale(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let before = injection.world.running_transfers().len();
    injection.target(format!("{before} to {TRANSFERS} to 1 to {before}"));
    injection.fault.broken = now();
    for count in [TRANSFERS, 1] {
        injection.world.scale_to(count).await?;
        tokio::time::sleep(injection.hold).await;
    }
    injection.world.scale_to(before).await?;
    injection.fault.over = now();
    Ok(())
}
