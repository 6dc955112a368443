//! `msg-dev` starts the local stack (`up`) and runs `demo` and `lab` on a stack. It is for developers and is
//! never deployed.

mod cli;
mod demo;
mod up;

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_max_level(tracing::Level::INFO)
        .init();
    let ran: Result<(), Box<dyn Error + Send + Sync>> = match cli.command {
        cli::Command::Up(args) => up::run(args).await.map_err(Into::into),
        cli::Command::Demo(args) => demo::run(args).await.map_err(Into::into),
        cli::Command::Lab(args) => msg_lab::run(args).await.map_err(Into::into),
        cli::Command::LabLoad(args) => msg_lab::run_load(args).await,
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
