//! Owns the load's processes. Each sends and reads, and writes its own history. When one is killed, a new process with
//! new senders replaces it.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use msg_stack::{Process, Signal, process};

use super::error::LabError;
use super::history::HistoryFollower;

/// Maximum number of senders of a process.
const SENDERS: u32 = 1000;
/// The timeout until every outcome is known, plus a reserve for the exit.
const END_WITHIN: Duration = Duration::from_secs(90);

/// All processes that were ever started.
pub(crate) struct Loads {
    folder: PathBuf,
    all: Mutex<Vec<Load>>,
}

struct Load {
    process: Process,
    history: PathBuf,
    args: Vec<String>,
    /// Whether the lab killed the process.
    killed: bool,
}

impl Loads {
    /// Creates the folder for the histories.
    pub(crate) fn new(folder: PathBuf) -> Result<Loads, LabError> {
        fs::create_dir_all(&folder).map_err(LabError::io("create", &folder))?;
        Ok(Loads { folder, all: Mutex::default() })
    }

    /// Starts a process with these flags, plus the flags for its history and its senders.
    pub(crate) fn start(&self, args: Vec<String>, logs: &std::path::Path) -> Result<(), LabError> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let number = all.len();
        let history = self.folder.join(format!("load-{number}.jsonl"));
        let first = u32::try_from(number).expect("few processes") * SENDERS;
        let mut words = vec!["lab-load".to_owned(), "--history".to_owned(), history.display().to_string()];
        words.extend(["--first-sender".to_owned(), first.to_string(), "--seed".to_owned(), number.to_string()]);
        words.extend(args.iter().cloned());
        let program = std::env::current_exe().map_err(LabError::io("find", "the running program"))?;
        let process = Process::spawn(process::Spec {
            name: format!("load-{number}"),
            program,
            args: words.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            log: logs.join(format!("load-{number}.log")),
            owner: None,
            stop: Signal::Term,
        })?;
        all.push(Load { process, history, args, killed: false });
        Ok(())
    }

    /// Kills a running process, chosen by `pick` from their number, and starts its replacement. Returns the name of the
    /// killed process.
    pub(crate) async fn kill_one(
        &self,
        pick: impl FnOnce(usize) -> usize,
        logs: &std::path::Path,
    ) -> Result<Option<String>, LabError> {
        let (process, args) = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let mut running: Vec<&mut Load> =
                all.iter_mut().filter(|load| load.process.exit_status().is_none()).collect();
            if running.is_empty() {
                return Ok(None);
            }
            let chosen = pick(running.len());
            running[chosen].killed = true;
            (running[chosen].process.clone(), running[chosen].args.clone())
        };
        process.kill().await;
        self.start(args, logs)?;
        Ok(Some(process.name().to_owned()))
    }

    /// Stops all processes, and waits until every outcome is known.
    pub(crate) async fn stop(&self) -> Result<(), LabError> {
        let running: Vec<Process> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter(|load| !load.killed).map(|load| load.process.clone()).collect()
        };
        let ends = futures_util::future::join_all(running.iter().map(|process| process.stop(END_WITHIN))).await;
        match running.iter().zip(ends).find(|(_, status)| !status.success()) {
            Some((process, status)) => Err(process.died(status).into()),
            None => Ok(()),
        }
    }

    /// Opens the histories that were started since there were `known` of them.
    pub(crate) fn new_histories(&self, known: usize) -> Vec<HistoryFollower> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all[known..].iter().map_while(|load| HistoryFollower::open(&load.history).ok()).collect()
    }
}
