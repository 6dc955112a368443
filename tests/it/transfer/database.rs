//! P1 to P5 while the database fails under load: it crashes, closes connections, rejects writes or freezes. No record
//! causes that: the transfer retries until the database has recovered, and readiness gives the reason.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_stack::{Service, ServiceSpec};
use tokio_postgres::Client;

use crate::support::admin::group_generation;
use crate::support::load::{Load, OffsetWatch, assert_stored, write_messages};
use crate::support::stack::own_postgres;
use crate::support::transfer::{lost_partitions, metric, short_session, small_batches, wait_not_ready};
use crate::support::world::{World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// Closes all connections of the transfer: one per lane, and the reference connection.
const CLOSE_CONNECTIONS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                                 WHERE datname = current_database() AND application_name = 'msg-transfer'";

async fn failures(transfer: &Service) -> f64 {
    metric(transfer, "msg_transfer_store_failures_total").await
}

/// The whole server is killed several times, in the middle of batches.
#[tokio::test]
async fn server_crashes_lose_and_duplicate_nothing() {
    let (stack, _folder) = own_postgres("crashes").await;
    let world = World::on(&stack, "crashes", 4);
    world.create(&stack).await;
    let transfer = world.transfer("transfer", small_batches);
    transfer.start().await.unwrap();
    let world = Arc::new(world);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    for _ in 0..3 {
        world.wait_for_more_rows(500).await;
        stack.postgres().kill().await;
        stack.postgres().start().await.unwrap();
    }
    world.wait_for_more_rows(500).await;
    load.finish(&world).await;
    watch.finish().await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// All connections are closed again and again, at any point of the work on them.
#[tokio::test]
async fn closed_connections_lose_and_duplicate_nothing() {
    let world = Arc::new(World::new("broken").await);
    let transfer = world.transfer("transfer", small_batches);
    transfer.start().await.unwrap();
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    let database = world.database().await;
    let mut closed: i64 = 0;
    for _ in 0..20 {
        // Some records are stored by now, and others wait behind them.
        world.wait_for_more_rows(50).await;
        closed += database.query_one(CLOSE_CONNECTIONS, &[]).await.unwrap().get::<_, i64>(0);
    }
    assert!(closed > 40, "only {closed} connections were broken");
    load.finish(&world).await;
    watch.finish().await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}

/// A schema that no message fits: the records are not the cause, so none is dead-lettered, and no offset is
/// committed.
#[tokio::test]
async fn bad_migration_dead_letters_and_commits_nothing() {
    let world = World::new("migrated").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    let database = world.database().await;
    let changes = [
        ("a foreign column that must not be null", "ADD COLUMN extra text NOT NULL", "DROP COLUMN extra", "extra"),
        (
            "a check that rejects every row",
            "ADD CONSTRAINT none CHECK (false) NOT VALID",
            "DROP CONSTRAINT none",
            "none",
        ),
        ("a missing column", "RENAME COLUMN send_id TO sender", "RENAME COLUMN sender TO send_id", "send_id"),
    ];
    let mut sent = 0;
    for (what, change, revert, word) in changes {
        // The first change needs an empty table. The later ones meet the records that waited during the earlier ones.
        database.batch_execute(&format!("ALTER TABLE messages {change}")).await.unwrap();
        let committed = world.committed_offsets().await;
        let failed = failures(&transfer).await;
        write_messages(&writer, sent, sent + 200, 10);
        sent += 200;
        wait_not_ready(&transfer, &["database", word]).await;
        eventually("some attempts have failed", async || {
            let now = failures(&transfer).await;
            ensure(now >= failed + 6.0, now)
        })
        .await;
        assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "{what}: records are dead-lettered");
        assert_eq!(world.committed_offsets().await, committed, "{what}: offsets are committed");
        database.batch_execute(&format!("ALTER TABLE messages {revert}")).await.unwrap();
        world.wait_for_all_committed().await;
        assert_stored(&world, sent, 10).await;
        transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    }
}

/// Applies a change that makes the database reject writes, checks that the transfer keeps running and names the
/// reason, and reverts the change.
async fn assert_outage_is_waited_out(
    world: &World,
    transfer: &Service,
    operator: &Client,
    [reject, allow]: [&str; 2],
    words: &[&str],
) {
    let load = Load::start(world.writer(), 20);
    world.wait_for_more_rows(300).await;
    operator.batch_execute(reject).await.unwrap();
    world.database().await.execute(CLOSE_CONNECTIONS, &[]).await.unwrap();
    wait_not_ready(transfer, words).await;
    let stored = count_rows(&world.database().await, "messages").await.unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    eventually("the outage has lasted for 2 s", async || {
        assert!(transfer.process().unwrap().exit_status().is_none(), "the transfer has exited");
        ensure(Instant::now() > until, "not yet")
    })
    .await;
    assert_eq!(count_rows(&world.database().await, "messages").await.unwrap(), stored, "nothing can be stored");
    operator.batch_execute(allow).await.unwrap();
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    load.finish(world).await;
}

/// As after a failover to a server that is still a replica, every write fails.
#[tokio::test]
async fn read_only_database_is_waited_out() {
    let world = World::new("read_only").await;
    let transfer = world.running_transfer().await;
    let operator = world.database().await;
    let change = [
        "ALTER DATABASE read_only SET default_transaction_read_only = on",
        "SET default_transaction_read_only = off; ALTER DATABASE read_only RESET default_transaction_read_only",
    ];
    assert_outage_is_waited_out(&world, &transfer, &operator, change, &["database", "read-only"]).await;
}

/// Connects as a role of its own, because the superuser has no connection limit.
fn as_role(world: &World, spec: ServiceSpec, role: &str) -> ServiceSpec {
    spec.env("DATABASE_URL", world.database_url().replace("postgres@", &format!("{role}@")))
}

async fn create_role(database: &Client, role: &str) {
    let create = format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}");
    database.batch_execute(&create).await.unwrap();
}

/// Other sessions have all connections of the role.
#[tokio::test]
async fn server_without_a_free_connection_is_waited_out() {
    let world = World::new("crowded").await;
    let operator = world.database().await;
    create_role(&operator, "crowded").await;
    let transfer = world.transfer("transfer", |spec| as_role(&world, spec, "crowded"));
    transfer.start().await.unwrap();
    let change = ["ALTER ROLE crowded CONNECTION LIMIT 0", "ALTER ROLE crowded CONNECTION LIMIT -1"];
    assert_outage_is_waited_out(&world, &transfer, &operator, change, &["database", "too many connections"]).await;
}

/// There are fewer connections than lanes: lanes with a connection continue, and the others wait and report the
/// reason.
#[tokio::test]
async fn lanes_without_a_connection_wait_until_one_is_free() {
    let world = World::new("few").await;
    let operator = world.database().await;
    create_role(&operator, "few").await;
    operator.batch_execute("ALTER ROLE few CONNECTION LIMIT 3").await.unwrap();
    // The reference connection leaves two connections for four lanes.
    let transfer = world.transfer("transfer", |spec| as_role(&world, spec, "few").env("LANES", 4));
    transfer.start().await.unwrap();
    let load = Load::start(world.writer(), 20);
    wait_not_ready(&transfer, &["too many connections"]).await;
    world.wait_for_more_rows(100).await;
    operator.batch_execute("ALTER ROLE few CONNECTION LIMIT 10").await.unwrap();
    load.finish(&world).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
}

/// The lanes have their connections, and none is left for the watchdog: it cannot see whether records wait.
#[tokio::test]
async fn watchdog_without_a_connection_is_reported() {
    let world = World::new("unwatched").await;
    let operator = world.database().await;
    create_role(&operator, "unwatched").await;
    operator.batch_execute("ALTER ROLE unwatched CONNECTION LIMIT 3").await.unwrap();
    // One connection is the reference connection, and each lane keeps one from its first batch on.
    let transfer = world
        .transfer("transfer", |spec| as_role(&world, spec, "unwatched").env("LANES", 2).env("STALL_TIMEOUT", "5s"));
    transfer.start().await.unwrap();
    write_messages(&world.writer(), 0, 500, 10);
    world.wait_for_rows(500).await;
    wait_not_ready(&transfer, &["lag: not known whether records of unwatched wait", "too many connections"]).await;
    write_messages(&world.writer(), 500, 1000, 10);
    world.wait_for_rows(1000).await;
    let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await.unwrap();
    assert!(status == 503 && !body.contains("lane"), "the lanes work: {body}");
    operator.batch_execute("ALTER ROLE unwatched CONNECTION LIMIT 10").await.unwrap();
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}

/// Statements exceed their timeout for a while, and so do their retries.
#[tokio::test]
async fn slow_statements_are_retried() {
    let world = World::new("slow").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "300ms"));
    transfer.start().await.unwrap();
    let database = world.database().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
                CREATE TRIGGER slow AFTER INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION slow()";
    database.batch_execute(slow).await.unwrap();
    let load = Load::start(world.writer(), 20);
    wait_not_ready(&transfer, &["database", "57014"]).await;
    eventually("some attempts have failed", async || {
        let failed = failures(&transfer).await;
        ensure(failed >= 6.0, failed)
    })
    .await;
    assert_eq!(count_rows(&database, "messages").await.unwrap(), 0);
    assert_eq!(world.committed_offsets().await.iter().sum::<i64>(), 0, "P5");
    // A running INSERT delays the DROP, at most for the statement timeout.
    database.batch_execute("DROP TRIGGER slow ON messages").await.unwrap();
    load.finish(&world).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
}

/// An error that comes from the server's state says nothing about a record, no matter which statement failed.
#[tokio::test]
async fn server_errors_dead_letter_no_record() {
    let world = World::new("ill").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    let mut sent = 0;
    for (state, what) in [
        ("53100", "a full disk"),
        ("53200", "no memory"),
        ("57P03", "starting up"),
        ("40P01", "a deadlock"),
        ("58030", "a bad disk"),
        ("XX000", "an internal error"),
        ("XX001", "a corrupted page"),
    ] {
        let ill = format!(
            "CREATE FUNCTION ill() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'ill' USING ERRCODE = '{state}'; END $$;
             CREATE TRIGGER ill AFTER INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION ill()"
        );
        database.batch_execute(&ill).await.unwrap();
        let committed = world.committed_offsets().await;
        write_messages(&world.writer(), sent, sent + 100, 10);
        sent += 100;
        wait_not_ready(&transfer, &["database", state]).await;
        assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "{what}");
        assert_eq!(world.committed_offsets().await, committed, "{what}");
        database.batch_execute("DROP FUNCTION ill CASCADE").await.unwrap();
        world.wait_for_all_committed().await;
        assert_stored(&world, sent, 10).await;
    }
}

/// The database is frozen for longer than a session timeout: the members stay in the group, and no rebalance happens.
#[tokio::test]
async fn frozen_database_causes_no_rebalance() {
    let (stack, _folder) = own_postgres("ice").await;
    let world = World::on(&stack, "ice", 4);
    world.create(&stack).await;
    let settings = |spec| short_session(spec).env("DATABASE_STATEMENT_TIMEOUT", "1s");
    let members = ["one", "two"].map(|name| world.transfer(name, settings));
    for member in &members {
        member.start().await.unwrap();
    }
    let load = Load::start(world.writer(), 20);
    world.wait_for_more_rows(500).await;
    let before = group_generation(world.brokers(), world.topic()).await;
    assert!(stack.postgres().freeze());
    for member in &members {
        wait_not_ready(member, &["database"]).await;
    }
    let until = Instant::now() + Duration::from_secs(8);
    eventually("more than a session timeout has passed", async || ensure(Instant::now() > until, "not yet")).await;
    assert!(stack.postgres().thaw());
    load.finish(&world).await;
    for member in &members {
        member.wait_ready(WAIT_TIMEOUT).await.unwrap();
        assert_eq!(lost_partitions(member).await, 0.0, "a member lost a partition");
    }
    assert_eq!(group_generation(world.brokers(), world.topic()).await, before, "the group has rebalanced");
    stack.stop().await;
}

/// A file system of 24 MiB, unmounted when dropped. `None` if the test may not mount one.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Option<Disk> {
        std::fs::create_dir(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=777", "tmpfs"]).arg(&at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Disk(at))
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        while filler.write(&[0; 4096]).is_ok() {}
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The table's disk fills up under load, and is freed later.
#[tokio::test]
#[allow(clippy::print_stderr, reason = "the log has to show that nothing was tested")]
async fn full_disk_is_waited_out() {
    let (stack, folder) = own_postgres("full").await;
    let Some(disk) = Disk::mount(folder.path().join("disk")) else {
        eprintln!("not permitted to mount a small disk: nothing is tested here");
        return;
    };
    // A folder below the mount point, because the server has to own it.
    let tablespace = disk.0.join("tablespace");
    std::fs::create_dir(&tablespace).unwrap();
    let server = std::fs::metadata(folder.path().join("postgres/data")).unwrap();
    std::os::unix::fs::chown(&tablespace, Some(server.uid()), Some(server.gid())).unwrap();
    let world = World::on(&stack, "full", 4);
    world.create(&stack).await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    database.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", tablespace.display())).await.unwrap();
    database.batch_execute("ALTER TABLE messages SET TABLESPACE small").await.unwrap();
    let load = Load::start(world.writer(), 20);
    world.wait_for_more_rows(300).await;
    disk.fill();
    wait_not_ready(&transfer, &["database", "53100"]).await;
    assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0);
    std::fs::remove_file(disk.filler()).unwrap();
    load.finish(&world).await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
    drop(disk);
}
