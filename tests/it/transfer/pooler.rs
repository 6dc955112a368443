//! A connection pooler between the transfer and the server: it is refused if it changes server processes between
//! transactions, and used otherwise.

use super::commands::run_with;
use crate::support::hosts::Pooler;
use crate::support::load::write_messages;
use crate::support::world::World;

#[tokio::test]
async fn pooler_in_transaction_mode_is_refused() {
    if !Pooler::installed() {
        return;
    }
    let world = World::new("transaction_pooler").await;
    // The first pooler has several server processes, the second one for all sessions.
    for settings in
        ["pool_mode = transaction", "pool_mode = transaction\ndefault_pool_size = 1", "pool_mode = statement"]
    {
        let pooler = Pooler::start(&world, settings).await;
        let env = [("DATABASE_URL", pooler.url.as_str())];
        let migrate = run_with(&world, "migrate", &env).await.assert_code(1);
        let text = "pooler in transaction (or statement) mode";
        assert!(migrate.stderr.contains(text), "{settings}: {}", migrate.stderr);
        let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_URL", &pooler.url));
        transfer.launch().unwrap();
        assert!(!transfer.wait().await.unwrap().success(), "{settings}");
        assert!(std::fs::read_to_string(transfer.log()).unwrap().contains(text), "{settings}");
    }
    // If the schema exists, `check` names the pooler too.
    run_with(&world, "migrate", &[]).await.assert_code(0);
    let pooler = Pooler::start(&world, "pool_mode = transaction").await;
    let check = run_with(&world, "check", &[("DATABASE_URL", &pooler.url)]).await.assert_code(1);
    assert!(check.stdout.contains("pool_mode = session"), "{}", check.stdout);
}

#[tokio::test]
async fn pooler_in_session_mode_is_used() {
    if !Pooler::installed() {
        return;
    }
    let world = World::new("session_pooler").await;
    let pooler = Pooler::start(&world, "pool_mode = session").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_URL", &pooler.url));
    transfer.start().await.unwrap();
    write_messages(&world.writer(), 0, 500, 10);
    world.wait_for_rows(500).await;
    world.wait_for_all_committed().await;
    let check = run_with(&world, "check --output json", &[("DATABASE_URL", &pooler.url)]).await.assert_code(0);
    assert!(check.stdout.contains("no pooler in transaction mode"), "{}", check.stdout);
    assert!(transfer.stop().await.unwrap().success());
}
