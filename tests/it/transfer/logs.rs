//! Lasting conditions and conflicts of callers do not flood the log.

use msg_stack::Service;

use crate::support::kafka::{msg, record_of};
use crate::support::world::World;
use crate::support::{ensure, eventually};

fn lines(service: &Service, levels: &[&str]) -> Vec<String> {
    let log = std::fs::read_to_string(service.log()).unwrap();
    log.lines().filter(|line| levels.iter().any(|level| line.contains(level))).map(str::to_owned).collect()
}

/// The line's field `repeated`: how often its condition occurred since it was last logged.
fn repeated(line: &str) -> u64 {
    let number = line.split("repeated=").nth(1).and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn read_only_database_is_logged_rarely() {
    let world = World::new("logs_read_only").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    let read_only = "ALTER DATABASE logs_read_only SET default_transaction_read_only = on";
    database.batch_execute(read_only).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.batch_execute(end).await.unwrap();
    let before = lines(&transfer, &["WARN", "ERROR"]).len();
    let writer = world.writer();
    (0..200).for_each(|i| writer.put(&record_of(&msg("alice", &format!("inbox-{i}"), &i.to_string(), "x"))));
    writer.flush();
    let found = || lines(&transfer, &["WARN", "ERROR"]).split_off(before);
    // The second line of a condition is logged 10 s after the first, and has the number of occurrences in between.
    eventually("the condition is logged again", async || {
        let again = found().iter().any(|line| line.contains("read-only") && repeated(line) > 1);
        ensure(again, found().join("\n"))
    })
    .await;
    let found = found();
    assert!(found.len() <= 20, "{} lines: {found:#?}", found.len());
}

#[tokio::test]
async fn conflicts_of_callers_are_not_logged_as_warnings() {
    let world = World::new("logs_conflicts").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    for i in 0..50 {
        writer.put(&record_of(&msg("alice", "bob", "1", i.to_string())));
        writer.flush();
    }
    eventually("the conflicts are dead letters", async || {
        let found = world.dead_letters().await.len();
        ensure(found == 49, format!("{found} dead letters"))
    })
    .await;
    let found = lines(&transfer, &["WARN", "ERROR"]);
    assert!(found.iter().all(|line| !line.contains("dead")), "{found:#?}");
}
