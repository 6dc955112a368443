//! Makes the clocks of services jump, with a library that is loaded into them.

use std::fs;
use std::path::{Path, PathBuf};

use super::injection::FaultInjection;
use crate::error::LabError;
use crate::history::now;
use crate::world::Node;

/// Restarts a gateway and a transfer with a clock of their own, which jumps an hour ahead, two hours back, and is then
/// right again.
pub(super) async fn jump(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    // The folder of Debian's package.
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
    if !Path::new(&library).exists() {
        return Err(LabError::Setting(format!("clocks need {library}: apt-get install libfaketime")));
    }
    let world = injection.world;
    let nodes = [&world.gateways[1], &world.transfers[0]];
    injection.target(nodes.map(Node::name).join(" and "));
    let file = world.stack.state().folder().join("clock");
    set(&file, "+0")?;
    for node in nodes {
        node.stop().await;
        node.change(|spec| {
            // Leave the monotonic clock alone: it measures durations and never jumps on a real machine.
            spec.env("LD_PRELOAD", &library)
                .env("FAKETIME_TIMESTAMP_FILE", file.display())
                .env("FAKETIME_DONT_FAKE_MONOTONIC", 1)
                .env("FAKETIME_CACHE_DURATION", 1)
        })?;
        node.start().await?;
    }
    set(&file, "+3600")?;
    injection.hold().await;
    set(&file, "-3600")?;
    tokio::time::sleep(injection.hold).await;
    set(&file, "+0")?;
    injection.fault.over = now();
    for node in nodes {
        node.stop().await;
        node.change(|spec| spec)?;
        node.start().await?;
    }
    Ok(())
}

fn set(file: &PathBuf, offset: &str) -> Result<(), LabError> {
    // Replace the file in one step: the services read it at any time.
    let new = file.with_extension("new");
    fs::write(&new, offset).map_err(LabError::io("write", &new))?;
    fs::rename(&new, file).map_err(LabError::io("rename", new))
}
