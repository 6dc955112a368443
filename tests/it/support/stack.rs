//! The stack that all tests of a run share: one broker and one server, gone when the process is.

use std::path::PathBuf;

use msg_dev::stack::{Stack, StackOptions};
use tokio::sync::OnceCell;

static STACK: OnceCell<Stack> = OnceCell::const_new();

/// Started by the first test that asks. The servers are children that end with this process, however it ends.
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

/// A stack of a test's own, for what would disturb the others: its parts are stopped, or start late.
pub(crate) async fn own_stack(name: &str) -> (Stack, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().expect("a folder");
    let stack = Stack::reserve(StackOptions::new(folder.path())).await.expect("the stack is reserved");
    (stack, folder)
}

/// A stack of a test's own whose broker has users, who may do nothing until they are granted a right. Started.
pub(crate) async fn stack_with_users(name: &str, users: &[&str]) -> (Stack, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().expect("a folder");
    let mut options = StackOptions::new(folder.path());
    options.cluster.users = users.iter().map(|user| (*user).to_owned()).collect();
    (Stack::start(options).await.expect("the stack starts"), folder)
}

/// A PostgreSQL of a test's own beside the run's Kafka, for what is done to the server alone.
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

/// Nothing runs at the end of a test binary, so the next run removes what the last one left.
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
