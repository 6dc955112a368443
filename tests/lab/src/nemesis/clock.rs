//! Makes the clocks of services jump, by a library that is loaded into them.

use std::fs;
use std::path::{Path, PathBuf};

use super::injection::FaultInjection;
use crate::error::LabError;
use crate::history::now;
use crate::world::Node;

/// A gateway and a transfer are started with a clock of their own; it jumps an hour ahead, two hours back, and is right again.
pub(super) async fn jump(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    // Where Debian's package puts it.
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
    if !Path::new(&library).exists() {
        return Err(LabError::Setting(format!("clocks need {library}: apt-get install libfaketime")));
    }
    let world = strike.world;
    let nodes = [&world.gateways[1], &world.transfers[0]];
    strike.target(nodes.map(Node::name).join(" and "));
    let file = world.stack.state().folder().join("clock");
    set(&file, "+0")?;
    for node in nodes {
        node.stop().await;
        node.change(|spec| {
            // Durations are measured by the monotonic clock, which never jumps, also where the other does.
            spec.env("LD_PRELOAD", &library)
                .env("FAKETIME_TIMESTAMP_FILE", file.display())
                .env("FAKETIME_DONT_FAKE_MONOTONIC", 1)
                .env("FAKETIME_CACHE_DURATION", 1)
        })?;
        node.start().await?;
    }
    set(&file, "+3600")?;
    strike.hold().await;
    set(&file, "-3600")?;
    tokio::time::sleep(strike.hold).await;
    set(&file, "+0")?;
    strike.fault.over = now();
    for node in nodes {
        node.stop().await;
        node.change(|spec| spec)?;
        node.start().await?;
    }
    Ok(())
}

fn set(file: &PathBuf, offset: &str) -> Result<(), LabError> {
    // In one step: it is read at any time.
    let new = file.with_extension("new");
    fs::write(&new, offset).map_err(LabError::io("write", &new))?;
    fs::rename(&new, file).map_err(LabError::io("rename", new))
}
