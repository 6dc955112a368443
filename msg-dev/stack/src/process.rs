//! Owns child processes. Each is killed when this process ends (also when it is killed), and writes to its own log
//! file. A child is signalled by its process id, and never after the kernel may have reused that id.

mod start;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::error::StackError;
use super::logs;
use super::user::Owner;

/// A signal for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP (the services: read certificates and keys again).
    Hup,
    /// SIGINT, with which PostgreSQL shuts down fast.
    Int,
    /// SIGQUIT (PostgreSQL: immediate shutdown, a crash for the data that leaves nothing in shared memory).
    Quit,
    /// SIGTERM (Kafka and the services: graceful shutdown).
    Term,
    /// SIGKILL: the process ends without cleaning up, as in a crash.
    Kill,
    /// SIGSTOP: the process freezes and keeps its connections.
    Stop,
    /// SIGCONT: the process resumes after a SIGSTOP.
    Cont,
}

impl Signal {
    /// Sends the signal to a process by its id; returns false if there is none. The caller must know that the process still
    /// exists: the kernel reuses ids.
    pub fn send(self, pid: u32) -> bool {
        // SAFETY: kill has no memory effects.
        unsafe { libc::kill(pid.cast_signed(), self.number()) == 0 }
    }

    fn number(self) -> libc::c_int {
        match self {
            Signal::Hup => libc::SIGHUP,
            Signal::Int => libc::SIGINT,
            Signal::Quit => libc::SIGQUIT,
            Signal::Term => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
            Signal::Stop => libc::SIGSTOP,
            Signal::Cont => libc::SIGCONT,
        }
    }
}

/// A process to start: its program, log file, user and stop signal.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The name for messages: `kafka 1`, `msg-gateway`.
    pub name: String,
    /// The program's path, or its name in `PATH`.
    pub program: PathBuf,
    /// The arguments, without the name of the program.
    pub args: Vec<OsString>,
    /// The environment, in addition to the inherited variables.
    pub env: Vec<(String, String)>,
    /// Standard output and error are appended to this file; its folder is also the working folder.
    pub log: PathBuf,
    /// Run as this user instead of the user of this process.
    pub owner: Option<Owner>,
    /// The signal for a graceful stop.
    pub stop: Signal,
}

/// A child that runs or has ended. All clones are handles of the same child; it is killed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Process(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    spec: Spec,
    shared: Arc<Shared>,
}

/// The state that the handle shares with the thread that reaps the child.
#[derive(Debug)]
struct Shared {
    pid: u32,
    /// True once another process may have the process id. The lock is held while signalling and while reaping, so that
    /// no signal reaches another process.
    reaped: Mutex<bool>,
    exit: watch::Sender<Option<ExitStatus>>,
}

/// Returns the error of the first of these that ends; never, if there are none.
pub async fn first_to_die(watched: &[Process]) -> StackError {
    if watched.is_empty() {
        std::future::pending::<()>().await;
    }
    let waits = watched.iter().map(|process| Box::pin(process.wait()));
    let (status, index, _) = futures_util::future::select_all(waits).await;
    watched[index].died(status)
}

impl Process {
    /// Starts the child and the thread that reaps it.
    pub fn spawn(spec: Spec) -> Result<Process, StackError> {
        let child = start::start(&spec)?;
        let shared = Arc::new(Shared { pid: child.id(), reaped: Mutex::new(false), exit: watch::Sender::new(None) });
        let for_reaper = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("reap {}", spec.name))
            .spawn(move || reap(child, &for_reaper))
            .map_err(StackError::io("start a thread for", &spec.program))?;
        Ok(Process(Arc::new(Handle { spec, shared })))
    }

    /// Returns the name that messages use for the child.
    pub fn name(&self) -> &str {
        &self.0.spec.name
    }

    /// The process id; valid only while the child runs.
    pub fn pid(&self) -> u32 {
        self.0.shared.pid
    }

    /// The file with the child's output.
    pub fn log(&self) -> &Path {
        &self.0.spec.log
    }

    /// The exit status, if the child has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.0.shared.exit.borrow()
    }

    /// Waits until the child ends.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.0.shared.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.expect("the sender lives as long as this handle");
        status.expect("the loop waited for a status")
    }

    /// Sends a signal; returns false if the child has ended.
    pub fn signal(&self, signal: Signal) -> bool {
        self.0.shared.signal(signal)
    }

    /// Sends a signal to the child and to all its descendants. PostgreSQL's backends are processes, and each is the
    /// leader of its own group: a signal to the first process alone would leave them running.
    pub fn signal_tree(&self, signal: Signal) -> bool {
        self.0.shared.signal_tree(signal)
    }

    /// Stops the child gracefully, and kills it after the timeout.
    pub async fn stop(&self, timeout: Duration) -> ExitStatus {
        self.signal(self.0.spec.stop);
        // Resume the child: a frozen child would never see the signal.
        self.signal(Signal::Cont);
        if let Ok(status) = tokio::time::timeout(timeout, self.wait()).await {
            return status;
        }
        tracing::warn!(name = self.name(), ?timeout, "killing process that did not stop");
        self.signal(Signal::Kill);
        self.wait().await
    }

    /// Sends SIGKILL and waits until the child has ended.
    pub async fn kill(&self) -> ExitStatus {
        self.signal(Signal::Kill);
        self.wait().await
    }

    /// Returns the error for a child that ended unexpectedly.
    pub fn died(&self, status: ExitStatus) -> StackError {
        StackError::Died {
            name: self.name().to_owned(),
            status,
            log: self.log().to_owned(),
            tail: logs::tail(self.log()),
        }
    }

    /// Returns the error for a child that was not ready before the timeout.
    pub(super) fn not_ready(&self, waited: Duration) -> StackError {
        StackError::NotReady {
            name: self.name().to_owned(),
            waited,
            log: self.log().to_owned(),
            tail: logs::tail(self.log()),
        }
    }

    /// Polls `probe` until it returns true, the child ends, or the timeout passes.
    pub(super) async fn until_ready(
        &self,
        within: Duration,
        mut probe: impl AsyncFnMut() -> bool,
    ) -> Result<(), StackError> {
        let polling = async {
            while !probe().await {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            status = self.wait() => Err(self.died(status)),
            polled = tokio::time::timeout(within, polling) => polled.map_err(|_| self.not_ready(within)),
        }
    }
}

/// The interval between two checks of a condition.
pub(super) const POLL: Duration = Duration::from_millis(50);

impl Drop for Handle {
    fn drop(&mut self) {
        // Kill the descendants too: frozen backends of PostgreSQL do not notice that their parent has ended.
        self.shared.signal_tree(Signal::Kill);
    }
}

impl Shared {
    fn signal(&self, signal: Signal) -> bool {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *reaped {
            return false;
        }
        // The child is not reaped and cannot be reaped while the lock is held, so the id is still the child's.
        signal.send(self.pid)
    }

    fn signal_tree(&self, signal: Signal) -> bool {
        let below = descendants(self.pid);
        let sent = self.signal(signal);
        if sent {
            // The list was read just now, while the parent still existed.
            for pid in below {
                signal.send(pid);
            }
        }
        sent
    }
}

/// Waits until the child has ended, and then releases its process id.
fn reap(mut child: Child, shared: &Shared) {
    // Wait without reaping first: the id must stay the child's until this thread has the lock.
    loop {
        // SAFETY: siginfo_t is plain data for which all zeroes are valid; waitid writes to it.
        let done = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if done == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    let mut reaped = shared.reaped.lock().unwrap_or_else(PoisonError::into_inner);
    // An error means that the child was reaped elsewhere; the id is released in any case.
    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
    *reaped = true;
    shared.exit.send_replace(Some(status));
}

/// Returns the processes below this one: its children, their children, and so on.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        let below = children(pid);
        open.extend(&below);
        found.extend(below);
    }
    found
}

/// Returns the number after this name at the start of a line of a file in `/proc`, such as `VmRSS:      1234 kB`; 0 if
/// there is none.
pub fn proc_field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn sleeper(folder: &Path) -> Process {
        Process::spawn(Spec {
            name: "sleeper".to_owned(),
            program: PathBuf::from("sleep"),
            args: vec!["1000".into()],
            env: Vec::new(),
            log: folder.join("sleeper.log"),
            owner: None,
            stop: Signal::Term,
        })
        .expect("sleep is everywhere")
    }

    #[tokio::test]
    async fn child_outlives_its_starter_and_stops_when_frozen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        let child = thread::spawn(move || sleeper(&path)).join().expect("the thread only spawns");
        assert!(child.signal(Signal::Stop));
        let status = child.stop(Duration::from_secs(10)).await;
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        assert!(!child.signal(Signal::Kill), "another process may have the id now");
    }

    #[tokio::test]
    async fn dropped_child_is_killed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = sleeper(folder.path());
        let shared = Arc::clone(&child.0.shared);
        drop(child);
        let mut exit = shared.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.expect("the reaper sends a status").expect("some");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn number_of_a_proc_file_is_read() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!((proc_field(status, "VmRSS:"), proc_field(status, "VmHWM:")), (1024, 2048));
        assert_eq!((proc_field(status, "Name:"), proc_field("", "VmRSS:")), (0, 0));
    }

    #[tokio::test]
    async fn end_before_readiness_is_reported_immediately() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = sleeper(folder.path());
        let began = Instant::now();
        child.signal(Signal::Kill);
        let error = child.until_ready(Duration::from_secs(60), async || false).await.expect_err("it ended");
        assert!(matches!(error, StackError::Died { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
