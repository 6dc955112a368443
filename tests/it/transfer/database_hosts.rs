//! P1 to P5 and P8 of a database with several hosts, with a wrong kind of server, or with a rotated password: the
//! transfer finds the server that accepts writes, stores in no other, and reports the reason if there is none.

use std::time::Duration;

use msg_stack::{Postgres, Service, Signal};
use tokio_postgres::Client;

use super::commands::run_with;
use crate::support::hosts::{PostgresPair, host_and_port, silent_host};
use crate::support::load::{Load, assert_stored, write_messages};
use crate::support::stack::own_postgres;
use crate::support::transfer::wait_not_ready;
use crate::support::world::{World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, eventually, within};

/// The time until messages have to be stored on the other host.
const FAILOVER: Duration = Duration::from_secs(30);

async fn rows_on(pair: &PostgresPair, server: &Postgres) -> i64 {
    let url = server.url(pair.world.topic());
    count_rows(&server.connect(&url).await.unwrap(), "messages").await.unwrap()
}

async fn start_under_load(pair: &PostgresPair, transfer: &Service) -> Load {
    transfer.start().await.unwrap();
    let load = Load::start(pair.world.writer(), 20);
    eventually("some are stored", async || {
        let rows = rows_on(pair, pair.stack.postgres()).await;
        ensure(rows > 1000, rows)
    })
    .await;
    load
}

async fn finish_on_promoted_standby(pair: &PostgresPair, transfer: &Service, load: Load) {
    pair.promote().await;
    let before = rows_on(pair, &pair.standby).await;
    within(FAILOVER, "the standby is written to", async || {
        let rows = rows_on(pair, &pair.standby).await;
        ensure(rows > before + 100, format!("{rows} rows, {before} before"))
    })
    .await;
    let world = World::on_database(&pair.world, &pair.standby.url(pair.world.topic()));
    load.finish(&world).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}

#[tokio::test]
async fn silent_first_host_is_skipped() {
    let world = World::new("silent_host").await;
    let (_listener, silent) = silent_host();
    let url = format!("postgres://postgres@{silent},{}/silent_host", host_and_port(world.database_url()));
    let settings = [("DATABASE_URL", url.as_str()), ("DATABASE_CONNECT_TIMEOUT", "1s")];
    run_with(&world, "migrate", &settings).await.assert_code(0);
    let transfer = world.transfer("transfer", |spec| settings.iter().fold(spec, |spec, (n, v)| spec.env(n, v)));
    transfer.start().await.unwrap();
    write_messages(&world.writer(), 0, 100, 10);
    world.wait_for_rows(100).await;
    // If no host can be used, the error names each with the reason.
    let url = format!("postgres://postgres@{silent},127.0.0.1:1/x");
    let settings = [("DATABASE_URL", url.as_str()), ("DATABASE_CONNECT_TIMEOUT", "1s")];
    let ran = run_with(&world, "migrate", &settings).await.assert_code(1);
    let named = format!("{silent}: it accepted the connection and did not respond to the login within 1s");
    assert!(ran.stderr.contains(&named) && ran.stderr.contains("127.0.0.1:1: cannot connect"), "{}", ran.stderr);
}

#[tokio::test]
async fn frozen_primary_is_replaced_by_its_promoted_standby() {
    let pair = PostgresPair::start("frozen_primary").await;
    let url = pair.url(pair.stack.postgres(), &pair.standby, "?target_session_attrs=read-write");
    let transfer = pair.world.transfer("transfer", |spec| spec.env("DATABASE_URL", url));
    let load = start_under_load(&pair, &transfer).await;
    pair.wait_for_standby().await;
    assert!(pair.stack.postgres().freeze());
    finish_on_promoted_standby(&pair, &transfer, load).await;
}

/// A primary that was made read-only: it stays up and closes no connection.
#[tokio::test]
async fn read_only_old_primary_is_replaced_by_the_new_one() {
    let pair = PostgresPair::start("demoted").await;
    let url = pair.url(pair.stack.postgres(), &pair.standby, "");
    let transfer = pair.world.transfer("transfer", |spec| spec.env("DATABASE_URL", url));
    let load = start_under_load(&pair, &transfer).await;
    let operator = pair.primary_client().await;
    operator.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    operator.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    wait_not_ready(&transfer, &["read-only", "standby"]).await;
    finish_on_promoted_standby(&pair, &transfer, load).await;
}

/// Both servers accept writes. The start offsets were read from one, so nothing may be stored in the other.
#[tokio::test]
async fn second_primary_gets_no_rows_while_the_first_runs() {
    let pair = PostgresPair::start("second").await;
    let url = pair.url(&pair.standby, pair.stack.postgres(), "");
    let transfer = pair.world.transfer("transfer", |spec| spec.env("DATABASE_URL", url));
    transfer.start().await.unwrap();
    let writer = pair.world.writer();
    write_messages(&writer, 0, 200, 10);
    eventually("the messages are stored", async || {
        let rows = rows_on(&pair, pair.stack.postgres()).await;
        ensure(rows == 200, rows)
    })
    .await;
    pair.wait_for_standby().await;
    pair.promote().await;
    end_lanes(&pair.primary_client().await).await;
    write_messages(&writer, 200, 400, 10);
    wait_not_ready(&transfer, &["leads to another server", "nothing is stored in the other one"]).await;
    assert_eq!(rows_on(&pair, &pair.standby).await, 200, "rows are stored in a second primary");
    pair.stack.postgres().kill().await;
    let world = World::on_database(&pair.world, &pair.standby.url(pair.world.topic()));
    world.wait_for_rows(400).await;
    world.wait_for_all_committed().await;
    assert_stored(&world, 400, 10).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
}

/// Ends the lanes' connections. The last statement of the reference connection checked the server, or read or wrote
/// progress.
async fn end_lanes(operator: &Client) {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'msg-transfer'
               AND datname = current_database() AND query !~ 'transaction_read_only|progress|dead_letters'";
    eventually("connections of lanes are ended", async || {
        let ended: i64 = operator.query_one(end, &[]).await?.get(0);
        ensure(ended > 0, "there is none")
    })
    .await;
}

/// Whether the role may read the system identifier changes between the reference connection and those of the lanes.
#[tokio::test]
async fn lanes_reconnect_after_a_right_to_the_identity_changed() {
    let world = World::new("identity_rights").await;
    let operator = world.database().await;
    let role = "CREATE ROLE identity_rights LOGIN; GRANT ALL ON SCHEMA public TO identity_rights;
                REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC";
    operator.batch_execute(role).await.unwrap();
    let url = world.database_url().replace("postgres@", "identity_rights@");
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_URL", url));
    transfer.start().await.unwrap();
    let writer = world.writer();
    let mut stored = 0;
    // The reference connection stays the same.
    for change in [
        "",
        "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    ] {
        if !change.is_empty() {
            operator.batch_execute(change).await.unwrap();
            end_lanes(&operator).await;
        }
        write_messages(&writer, stored, stored + 100, 10);
        stored += 100;
        world.wait_for_rows(stored).await;
        world.wait_for_all_committed().await;
    }
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    let log = std::fs::read_to_string(transfer.log()).unwrap();
    assert!(!log.contains("another server") && !log.contains("lost the reference connection"), "{log}");
    assert_stored(&world, stored, 10).await;
}

/// A single server process hangs: neither the server's own timeout nor the network ends its statement.
#[tokio::test]
async fn hanging_statement_times_out() {
    let (stack, _folder) = own_postgres("hangs").await;
    let world = World::on(&stack, "hangs", 4);
    world.create(&stack).await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "2s"));
    transfer.start().await.unwrap();
    write_messages(&world.writer(), 0, 100, 10);
    world.wait_for_rows(100).await;
    world.wait_for_all_committed().await;
    let database = world.database().await;
    let lanes = "SELECT pid FROM pg_stat_activity WHERE application_name = 'msg-transfer' AND query LIKE 'COMMIT%'";
    let pids: Vec<i32> = database.query(lanes, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(!pids.is_empty());
    pids.iter().for_each(|pid| assert!(Signal::Stop.send(pid.cast_unsigned())));
    let load = Load::start(world.writer(), 10);
    within(FAILOVER, "lanes continue over other connections", async || {
        let rows = count_rows(&database, "messages").await?;
        ensure(rows > 200, rows)
    })
    .await;
    pids.iter().for_each(|pid| assert!(Signal::Cont.send(pid.cast_unsigned())));
    drop(load);
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    stack.stop().await;
}

#[tokio::test]
async fn rotated_password_is_read_without_a_restart() {
    let (stack, _folder) = own_postgres("rotated").await;
    let world = World::on(&stack, "rotated", 4);
    world.create(&stack).await;
    let app = crate::support::hosts::PasswordRole::create(&stack, &world).await;
    let transfer = world.transfer("transfer", |spec| app.configure(spec));
    transfer.start().await.unwrap();
    write_messages(&world.writer(), 0, 100, 10);
    world.wait_for_rows(100).await;
    // While the file is missing, the last good value is used.
    app.remove_file();
    app.end_sessions().await;
    write_messages(&world.writer(), 100, 200, 10);
    world.wait_for_rows(200).await;
    app.rotate("second").await;
    write_messages(&world.writer(), 200, 300, 10);
    world.wait_for_rows(300).await;
    world.wait_for_all_committed().await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    let log = std::fs::read_to_string(transfer.log()).unwrap();
    assert!(log.contains("cannot read the database url again, using the previous one"), "no warning");
    assert!(!log.contains("second"), "a password is in the log");
    stack.stop().await;
}

#[tokio::test]
async fn database_in_another_encoding_is_refused() {
    let world = World::new("latin").await;
    let operator = world.database().await;
    let create = "CREATE DATABASE latin_1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    operator.batch_execute(create).await.unwrap();
    let url = format!("postgres://postgres@{}/latin_1", host_and_port(world.database_url()));
    let settings = [("DATABASE_URL", url.as_str())];
    let migrate = run_with(&world, "migrate", &settings).await.assert_code(1);
    assert!(migrate.stderr.contains("LATIN1") && migrate.stderr.contains("ENCODING 'UTF8'"), "{}", migrate.stderr);
    let check = run_with(&world, "check", &settings).await.assert_code(1);
    assert!(check.stdout.contains("LATIN1"), "{}", check.stdout);
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_URL", &url));
    transfer.launch().unwrap();
    assert!(!transfer.wait().await.unwrap().success());
    assert!(std::fs::read_to_string(transfer.log()).unwrap().contains("the database's encoding is LATIN1"));
}
