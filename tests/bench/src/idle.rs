//! What an idle pipe costs: the CPU time of each process while no message is sent.

use std::time::Duration;

use msg_stack::Stack;

use super::cost::Watched;
use super::figure::Output;
use super::{Error, PARTITIONS, start};

/// The time after the start in which the processes still work: the JVM compiles, and PostgreSQL writes a checkpoint.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Idle {
    /// Duration of the measurement in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Additional setting of the services, as NAME=VALUE; repeat the flag for more
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

pub(crate) async fn run(stack: &Stack, options: &Idle, output: &mut Output) -> Result<(), Error> {
    let services = start(stack, "idle", PARTITIONS, &options.set).await?;
    tokio::time::sleep(SETTLE).await;
    let watched = Watched::new(stack, &[&services.gateway, &services.transfer]);
    let meter = watched.start();
    tokio::time::sleep(Duration::from_secs(options.seconds.into())).await;
    output.add_idle(&format!("idle, {PARTITIONS} partitions"), meter.stop(options.seconds.into()));
    services.stop().await;
    Ok(())
}
