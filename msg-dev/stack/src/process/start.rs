//! Starts a child: its log file, its environment and user, and the thread that forks it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::Spec;
use crate::error::StackError;

/// The variables that a child inherits. No others are passed on: a `KAFKA_…`, `PG…` or service variable of the caller's
/// shell must not change what is tested.
const INHERITED: [&str; 9] =
    ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG"];

/// Starts the child, whose output is appended to its log file.
pub(super) fn start(spec: &Spec) -> Result<Child, StackError> {
    let log = open_log(&spec.log)?;
    spawn_from_permanent_thread(command(spec, &log)?).map_err(StackError::io("start", &spec.program))
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
    // Start the child in its own process group: Ctrl-C in the terminal then reaches only this process, which stops the
    // children in the right order.
    command.process_group(0);
    if let Some(owner) = spec.owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid are.
    // std changes user and group before it runs this closure; a later change would clear the setting again.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // If the parent died before the line above, the kernel sends no signal.
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    Ok(command)
}

type Job = (Command, SyncSender<io::Result<Child>>);

/// Starts a child from a thread that lives as long as this process. The kernel sends the parent-death signal when the
/// *thread* that forked ends; a thread of an async runtime or of a test may end earlier.
fn spawn_from_permanent_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = sync_channel::<Job>(0);
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, result) in queue {
                    // The caller waits for the result, so the channel is open.
                    let _ = result.send(command.spawn());
                }
            })
            .expect("a process that cannot start a thread cannot run a stack");
        jobs
    });
    let (result, child) = sync_channel(1);
    spawner.send((command, result)).expect("the spawner ends only with the process");
    child.recv().expect("the spawner sends a result for every job")
}
