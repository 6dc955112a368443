//! Owns the flags of the fault lab.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use msg_stack::FetchArgs;

use super::error::LabError;
use super::kind::Kind;

/// The arguments of `msg-dev lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Faults to inject, in this order, repeated until `--minutes` have passed. `--list` shows the names
    #[arg(long = "fault", value_name = "NAME", value_delimiter = ',', value_parser = Kind::parse)]
    pub(crate) faults: Vec<Kind>,
    /// A prepared list of faults
    #[arg(long, value_enum, conflicts_with = "faults")]
    pub(crate) plan: Option<Plan>,
    /// Print the name and the effect of every fault, and exit
    #[arg(long)]
    pub(crate) list: bool,
    /// Duration of the run in minutes; without it, the lab injects every fault of the list or plan once
    #[arg(long, value_name = "MINUTES")]
    pub(crate) minutes: Option<f64>,
    /// Duration of each fault, instead of the fault's default
    #[arg(long, value_name = "SECONDS")]
    pub(crate) fault_duration: Option<f64>,
    /// Minimum time between the end of a fault and the start of the next one
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub(crate) fault_interval: f64,
    /// Connect everything with TLS and logins, as in production: callers with a token over TLS, the services to Kafka with
    /// TLS and SCRAM as users with few rights, and to PostgreSQL with TLS and SCRAM
    #[arg(long)]
    pub(crate) secure: bool,
    /// Seed of all random choices; the same seed makes the same choices
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Messages to send a second
    #[arg(long, default_value_t = 3000)]
    pub(crate) rate: u32,
    /// Number of transfers at the start: 1 to 8
    #[arg(long, default_value_t = 3, value_parser = one_to_eight)]
    pub(crate) transfers: usize,
    /// Number of inboxes that all senders share
    #[arg(long, default_value_t = 2000)]
    pub(crate) inboxes: u32,
    /// Folder for data, logs, histories and the report; emptied at the start [default: a temporary folder, removed if
    /// every promise holds]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Write report.html and report.json to this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Folder with another build's programs, for deploys from one version to the other and back
    #[arg(long, value_name = "DIR")]
    pub(crate) other: Option<PathBuf>,
    /// Additional setting of every gateway, as NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub(crate) gateway_env: Vec<(String, String)>,
    /// Additional setting of every transfer, as NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub(crate) transfer_env: Vec<(String, String)>,
    /// Path of toxiproxy-server [default: $TOXIPROXY]
    #[arg(long, value_name = "FILE")]
    toxiproxy: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

/// A prepared list of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plan {
    /// Some important faults, in about three minutes
    Quick,
    /// Every fault once, one after the other
    Matrix,
    /// Random faults, one after the other, until the time has passed
    Random,
    /// Random kills of processes, each as soon as all processes run again
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
    text.parse().ok().filter(|count| (1..=8).contains(count)).ok_or_else(|| "expected 1 to 8".to_owned())
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
