//! Owns child processes: each dies with us (also when we are killed), writes to a log file of its own, and is signalled
//! by its process id, never after that id was given back.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::error::StackError;
use super::logs;
use super::user::Owner;

/// The variables that a child inherits. All others are cut off: a `KAFKA_…`, `PG…` or service variable of the caller's
/// shell must not change what is tested.
const INHERITED: [&str; 9] =
    ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG"];

/// A signal that tests and `stop` send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT (PostgreSQL: fast shutdown).
    Int,
    /// SIGQUIT (PostgreSQL: immediate shutdown, as a crash for the data, but nothing of it stays in the system).
    Quit,
    /// SIGTERM (Kafka and the services: orderly shutdown).
    Term,
    /// SIGKILL: a crash.
    Kill,
    /// SIGSTOP: the process hangs but keeps its connections.
    Stop,
    /// SIGCONT: it goes on.
    Cont,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Signal::Int => libc::SIGINT,
            Signal::Quit => libc::SIGQUIT,
            Signal::Term => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
            Signal::Stop => libc::SIGSTOP,
            Signal::Cont => libc::SIGCONT,
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// For messages: `kafka 1`, `msg-gateway`.
    pub name: String,
    /// The program's path, or its name in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment, on top of the few variables that are inherited.
    pub env: Vec<(String, String)>,
    /// Standard output and error are appended here; the log's folder is also the working folder.
    pub log: PathBuf,
    /// Run as this user instead of ours.
    pub owner: Option<Owner>,
    /// What an orderly stop sends.
    pub stop: Signal,
}

/// A running (or ended) child. Clones mean the same child; when the last one is dropped the child is killed.
#[derive(Debug, Clone)]
pub struct Process(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    spec: Spec,
    shared: Arc<Shared>,
}

/// What the handle and the thread that reaps the child share.
#[derive(Debug)]
struct Shared {
    pid: libc::pid_t,
    /// True once the process id may belong to somebody else. Held while signalling and while reaping, so that no signal
    /// goes to a stranger.
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
    /// Starts the child.
    pub fn spawn(spec: Spec) -> Result<Process, StackError> {
        let log = open_log(&spec.log)?;
        let child =
            spawn_from_the_lasting_thread(command(&spec, &log)?).map_err(StackError::io("start", &spec.program))?;
        let pid = libc::pid_t::try_from(child.id()).expect("a process id of Linux fits pid_t");
        let shared = Arc::new(Shared { pid, reaped: Mutex::new(false), exit: watch::Sender::new(None) });
        let for_reaper = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("reap {}", spec.name))
            .spawn(move || reap(child, &for_reaper))
            .map_err(StackError::io("start a thread for", &spec.program))?;
        Ok(Process(Arc::new(Handle { spec, shared })))
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.0.spec.name
    }

    /// The process id; of use only while the child runs.
    pub fn pid(&self) -> u32 {
        self.0.shared.pid.unsigned_abs()
    }

    /// The file with the child's output.
    pub fn log(&self) -> &Path {
        &self.0.spec.log
    }

    /// How the child ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.0.shared.exit.borrow()
    }

    /// Waits for the child's end.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.0.shared.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.expect("the sender lives as long as this handle");
        status.expect("waited for just this")
    }

    /// Sends a signal; false if the child had already ended.
    pub fn signal(&self, signal: Signal) -> bool {
        self.0.shared.signal(signal)
    }

    /// Sends a signal to the child and to all that descend from it. PostgreSQL's backends are processes, and each makes
    /// itself the leader of a group of its own: stopping only the first leaves them serving.
    pub fn signal_tree(&self, signal: Signal) -> bool {
        let below = self.descendants();
        let sent = self.signal(signal);
        if sent {
            for pid in below {
                // SAFETY: kill has no memory effects. The list was read a moment ago and the parent was still there.
                unsafe { libc::kill(pid, signal.number()) };
            }
        }
        sent
    }

    /// The process ids of all descendants, at this moment.
    pub(super) fn descendants(&self) -> Vec<libc::pid_t> {
        descendants(self.0.shared.pid)
    }

    /// Stops the child in its orderly way; past the deadline it is killed.
    pub async fn stop(&self, deadline: Duration) -> ExitStatus {
        self.signal(self.0.spec.stop);
        // A child that a test has frozen would never see the signal.
        self.signal(Signal::Cont);
        if let Ok(status) = tokio::time::timeout(deadline, self.wait()).await {
            return status;
        }
        tracing::warn!(name = self.name(), "did not stop in {} s, killing it", deadline.as_secs());
        self.signal(Signal::Kill);
        self.wait().await
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) -> ExitStatus {
        self.signal(Signal::Kill);
        self.wait().await
    }

    /// The error for a child that ended by itself.
    pub fn died(&self, status: ExitStatus) -> StackError {
        StackError::Died {
            name: self.name().to_owned(),
            status,
            log: self.log().to_owned(),
            tail: logs::tail(self.log()),
        }
    }

    /// The error for a child that is not ready in time.
    pub(super) fn not_ready(&self, waited: Duration) -> StackError {
        StackError::NotReady {
            name: self.name().to_owned(),
            waited,
            log: self.log().to_owned(),
            tail: logs::tail(self.log()),
        }
    }

    /// Asks `probe` again and again until it says yes, the child ends, or the time is over.
    pub(super) async fn until_ready(
        &self,
        within: Duration,
        mut probe: impl AsyncFnMut() -> bool,
    ) -> Result<(), StackError> {
        let asking = async {
            while !probe().await {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            status = self.wait() => Err(self.died(status)),
            asked = tokio::time::timeout(within, asking) => asked.map_err(|_| self.not_ready(within)),
        }
    }
}

/// The pause between two looks at a condition.
pub(super) const POLL: Duration = Duration::from_millis(50);

impl Drop for Handle {
    fn drop(&mut self) {
        // Also what descends from it: PostgreSQL's backends, when they are frozen, do not see that their parent is gone.
        let below = descendants(self.shared.pid);
        if self.shared.signal(Signal::Kill) {
            for pid in below {
                // SAFETY: kill has no memory effects. The list was read a moment ago and the parent was still there.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

impl Shared {
    fn signal(&self, signal: Signal) -> bool {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *reaped {
            return false;
        }
        // SAFETY: kill has no memory effects; the id is still the child's, since it is not reaped and cannot be while
        // the lock is held.
        unsafe { libc::kill(self.pid, signal.number()) == 0 }
    }
}

fn open_log(path: &Path) -> Result<File, StackError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(StackError::io("create", folder))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(StackError::io("open", path))
}

fn command(spec: &Spec, log: &File) -> Result<Command, StackError> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    if let Some(folder) = spec.log.parent() {
        command.current_dir(folder);
    }
    command.stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(StackError::io("open", &spec.log))?);
    command.stderr(log.try_clone().map_err(StackError::io("open", &spec.log))?);
    // A group of its own: Ctrl-C in the terminal is for us, and we stop the children in the right order.
    command.process_group(0);
    if let Some(owner) = spec.owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid are.
    // std changes user and group before it runs this: a change after it would clear the setting again.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // If we died before the line above, no signal will come.
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    Ok(command)
}

/// A command and where to answer.
type Job = (Command, SyncSender<io::Result<Child>>);

/// The parent-death signal is sent when the *thread* that forked ends, so all children are forked by one thread that
/// ends only with the process. A thread of an async runtime or of a test may end any time.
fn spawn_from_the_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = sync_channel::<Job>(0);
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in queue {
                    // The asker waits for the answer, so it is there.
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a process that cannot start a thread cannot run a stack");
        jobs
    });
    let (answer, child) = sync_channel(1);
    spawner.send((command, answer)).expect("the spawner ends only with the process");
    child.recv().expect("the spawner answers every job")
}

/// Waits for the child's end and then gives its id back to the system.
fn reap(mut child: Child, shared: &Shared) {
    // First without reaping: until the lock is ours the id must stay the child's.
    loop {
        // SAFETY: siginfo_t is plain data for which all zeroes are valid; waitid writes into it.
        let done = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if done == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    let mut reaped = shared.reaped.lock().unwrap_or_else(PoisonError::into_inner);
    // An error means that somebody else reaped it; the id is gone all the same.
    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
    *reaped = true;
    shared.exit.send_replace(Some(status));
}

fn descendants(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        let below = children(pid);
        open.extend(&below);
        found.extend(below);
    }
    found
}

fn children(pid: libc::pid_t) -> Vec<libc::pid_t> {
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
    async fn a_child_outlives_the_thread_that_asked_for_it_and_stops_also_when_frozen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        let child = thread::spawn(move || sleeper(&path)).join().expect("the thread only spawns");
        assert!(child.signal(Signal::Stop));
        let status = child.stop(Duration::from_secs(10)).await;
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        assert!(!child.signal(Signal::Kill), "its id may be somebody else's now");
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = sleeper(folder.path());
        let shared = Arc::clone(&child.0.shared);
        drop(child);
        let mut exit = shared.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.expect("the reaper answers").expect("some");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn an_end_before_readiness_is_told_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = sleeper(folder.path());
        let began = Instant::now();
        child.signal(Signal::Kill);
        let error = child.until_ready(Duration::from_secs(60), async || false).await.expect_err("it ended");
        assert!(matches!(error, StackError::Died { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
