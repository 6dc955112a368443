//! Owns the lab's flags.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use msg_stack::FetchArgs;

use super::error::LabError;
use super::kind::Kind;

/// `msg-dev lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// What to break, in this order; again from the first one on until the time is over. `--list` shows the names
    #[arg(long = "fault", value_name = "NAME", value_delimiter = ',', value_parser = Kind::parse)]
    pub(crate) faults: Vec<Kind>,
    /// Several faults that are put together
    #[arg(long, value_enum, conflicts_with = "faults")]
    pub(crate) plan: Option<Plan>,
    /// Show the names of all faults, and what each does, and end
    #[arg(long)]
    pub(crate) list: bool,
    /// How long to go on; without it, every fault of the list or plan once
    #[arg(long, value_name = "MINUTES")]
    pub(crate) minutes: Option<f64>,
    /// How long each fault lasts, instead of its default duration
    #[arg(long, value_name = "SECONDS")]
    pub(crate) fault_duration: Option<f64>,
    /// Minimum time between the end of a fault and the start of the next one
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub(crate) fault_interval: f64,
    /// What is chosen at random follows from this
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Messages a second that are sent
    #[arg(long, default_value_t = 3000)]
    pub(crate) rate: u32,
    /// Transfers at first: 1 to 8
    #[arg(long, default_value_t = 3, value_parser = one_to_eight)]
    pub(crate) transfers: usize,
    /// Inboxes that messages go to
    #[arg(long, default_value_t = 2000)]
    pub(crate) inboxes: u32,
    /// Where data, logs, histories and the report are; emptied first [default: a temporary folder, removed when every promise holds]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Write report.html and report.json to this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Another build's programs, for deploys from one version to the other and back
    #[arg(long, value_name = "DIR")]
    pub(crate) other: Option<PathBuf>,
    /// A setting of every gateway
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub(crate) gateway_env: Vec<(String, String)>,
    /// A setting of every transfer
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub(crate) transfer_env: Vec<(String, String)>,
    /// The proxy's program [default: $TOXIPROXY]
    #[arg(long, value_name = "FILE")]
    toxiproxy: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

/// Faults that are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plan {
    /// A few, in about three minutes
    Quick,
    /// Every one, once
    Matrix,
    /// One after the other at random, until the time is over
    Random,
    /// Processes killed at random as fast as they come back
    Kills,
}

impl LabArgs {
    pub(crate) fn toxiproxy(&self) -> Result<PathBuf, LabError> {
        let program = self.toxiproxy.clone().or_else(|| std::env::var_os("TOXIPROXY").map(PathBuf::from));
        program
            .ok_or_else(|| LabError::Setting("network faults need toxiproxy: name its program with --toxiproxy".into()))
    }
}

fn one_to_eight(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=8).contains(count)).ok_or_else(|| "1 to 8".to_owned())
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
