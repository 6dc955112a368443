//! Every command ends on SIGTERM and on SIGINT, no matter what it waits for, also as process 1 of a container, for
//! which the system has no default action.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use msg_stack::Signal;
use msg_stack::service::find_binary;
use tokio::process::{Child, Command};

use super::Silent;
use crate::support::{ensure, eventually};
use crate::transfer::commands::migrated;

/// Far above the five seconds that a command may need for its current step.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether this test may start a process as process 1 of a PID namespace of its own. An ordinary user may not, and in most
/// containers root may not. Then the program is started as any other process, and the log says so.
#[allow(clippy::explicit_write, reason = "the test runner hides the output of eprintln! if a test passes")]
fn may_start_process_1() -> bool {
    let ran = std::process::Command::new("unshare").args(["--pid", "--fork", "true"]).output();
    let may = ran.is_ok_and(|output| output.status.success());
    if !may {
        writeln!(std::io::stderr(), "NOT TESTED: signals to process 1: not permitted to create a PID namespace")
            .unwrap();
    }
    may
}

/// Starts the program, as process 1 of a PID namespace of its own or as any other process.
fn start(as_process_1: bool, program: &str, arguments: &str, settings: &[(&str, &str)]) -> Child {
    let binary = find_binary(program).unwrap();
    let mut command = if as_process_1 {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child"]).arg(binary);
        unshare
    } else {
        Command::new(binary)
    };
    command
        .args(arguments.split_whitespace())
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The process ID, in the test's namespace, of the child of `unshare`.
async fn child_of(unshare: &Child) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", unshare.id().unwrap());
    eventually("the child is forked", async || {
        let text = std::fs::read_to_string(&children)?;
        Ok(text.trim().parse::<u32>()?)
    })
    .await
}

async fn end_by_signal(child: &mut Child, as_process_1: bool, signal: Signal, command: &str) -> i32 {
    let pid = if as_process_1 { child_of(child).await } else { child.id().unwrap() };
    assert!(signal.send(pid), "{command} has ended before {signal:?}");
    let ended = tokio::time::timeout(END_TIMEOUT, child.wait()).await;
    ended.unwrap_or_else(|_| panic!("{command} does not end on {signal:?}")).unwrap().code().unwrap_or(-1)
}

#[tokio::test]
async fn every_command_ends_on_a_signal_with_silent_servers() {
    let silent = Silent::start().await;
    let url = format!("postgres://app@{}/msg", silent.address);
    let settings = [
        ("KAFKA_BROKERS", silent.address.as_str()),
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_CONNECT_TIMEOUT", "10min"),
        ("ADMIN_LISTEN", "127.0.0.1:0"),
        ("LISTEN", "127.0.0.1:0"),
    ];
    let as_process_1 = may_start_process_1();
    let healthcheck_settings = [("ADMIN_LISTEN", silent.address.as_str()), ("DATABASE_URL", url.as_str())];
    for (program, arguments) in [
        ("msg-transfer", ""),
        ("msg-transfer", "migrate"),
        ("msg-transfer", "check"),
        ("msg-transfer", "lag"),
        ("msg-transfer", "lag --watch 1s"),
        ("msg-transfer", "purge --older-than 90days"),
        ("msg-transfer", "dead-letters list"),
        ("msg-transfer", "dead-letters show 0 0"),
        ("msg-transfer", "dead-letters export"),
        ("msg-transfer", "dead-letters replay --all --topic-partitions 4"),
        ("msg-transfer", "resume --topic-partition 0"),
        ("msg-transfer", "healthcheck"),
        ("msg-gateway", ""),
        ("msg-gateway", "healthcheck"),
    ] {
        for signal in [Signal::Term, Signal::Int] {
            let before = *silent.accepted.borrow();
            let settings = if arguments == "healthcheck" { &healthcheck_settings[..] } else { &settings[..] };
            let mut child = start(as_process_1, program, arguments, settings);
            silent.wait_for_connection(before).await;
            let command = format!("{program} {arguments}");
            let code = end_by_signal(&mut child, as_process_1, signal, &command).await;
            let expected = match (arguments, signal) {
                // A service drains, and exits with 0.
                ("", _) => 0,
                (_, Signal::Term) => 128 + 15,
                _ => 128 + 2,
            };
            assert_eq!(code, expected, "{command}, {signal:?}");
        }
    }
}

#[tokio::test]
async fn command_that_waits_for_a_lock_ends_on_a_signal() {
    let world = migrated("signal_lock").await;
    // The server's statistics are fixed within a transaction, so they are read over another connection.
    let (locker, database) = (world.database().await, world.database().await);
    // Like a long transaction of an operator.
    locker.batch_execute("BEGIN; LOCK TABLE refinery_schema_history, messages, dead_letters, progress").await.unwrap();
    let service = world.transfer("command", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "1h"));
    let settings: Vec<(&str, &str)> =
        service.spec().env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let as_process_1 = may_start_process_1();
    for arguments in
        ["migrate", "lag", "check", "purge --older-than 90days", "dead-letters list", "resume --topic-partition 0"]
    {
        let mut child = start(as_process_1, "msg-transfer", arguments, &settings);
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("the command waits for the lock", async || {
            let count: i64 = database.query_one(waits, &[]).await?.get(0);
            ensure(count > 0, count)
        })
        .await;
        let code = end_by_signal(&mut child, as_process_1, Signal::Term, arguments).await;
        assert_eq!(code, 128 + 15, "{arguments}");
        // The session of the ended command would stay in the server's queue until it gets the lock.
        database
            .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
            .await
            .unwrap();
        eventually("the command's session has ended", async || {
            let count: i64 = database.query_one(waits, &[]).await?.get(0);
            ensure(count == 0, count)
        })
        .await;
    }
}
