//! The stack that all tests of a run share: one broker and one database server, which end with the process.

use std::path::PathBuf;

use msg_stack::{Stack, StackOptions};
use tokio::sync::OnceCell;

static STACK: OnceCell<Stack> = OnceCell::const_new();

/// The shared stack, started by the first test that needs it. The servers are children that end with this process, no
/// matter how it ends.
pub(crate) async fn stack() -> &'static Stack {
    STACK
        .get_or_init(|| async {
            remove_leftovers();
            let mut options = StackOptions::new(folder(std::process::id()));
            options.fresh = true;
            Stack::start(options).await.expect("the stack starts")
        })
        .await
}

/// A stack of a test's own, not started, for tests that stop its servers or start them late.
pub(crate) async fn own_stack(name: &str) -> (Stack, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().expect("a folder");
    let stack = Stack::reserve(StackOptions::new(folder.path())).await.expect("the stack is reserved");
    (stack, folder)
}

/// A started stack of a test's own, whose broker has users. They have no right until one is granted.
pub(crate) async fn stack_with_users(name: &str, users: &[&str]) -> (Stack, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().expect("a folder");
    let mut options = StackOptions::new(folder.path());
    options.cluster.users = users.iter().map(|user| (*user).to_owned()).collect();
    (Stack::start(options).await.expect("the stack starts"), folder)
}

/// A started PostgreSQL of a test's own with the run's Kafka, for tests that disturb only the database server.
pub(crate) async fn own_postgres(name: &str) -> (Stack, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().expect("a folder");
    let mut options = StackOptions::new(folder.path());
    options.kafka = Some(stack().await.kafka().bootstrap().to_owned());
    (Stack::start(options).await.expect("the server starts"), folder)
}

const PREFIX: &str = "msg-it-run-";

fn folder(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{pid}"))
}

/// Removes the folders of ended runs: a test binary has no hook at its end, so the next run does it.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
