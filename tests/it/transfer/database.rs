//! P1 to P5 when the database is ill under load: it crashes, breaks connections, refuses, freezes. Nothing of that is a
//! record's fault: it is waited out, and readiness says why.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_dev::stack::{Service, ServiceSpec};
use tokio_postgres::Client;

use crate::support::admin::generation;
use crate::support::load::{Load, OffsetWatch, assert_stored, write};
use crate::support::stack::own_postgres;
use crate::support::transfer::{lost, metric, not_ready_because, short_session, small_batches};
use crate::support::world::{World, count_rows};
use crate::support::{PATIENCE, ensure, eventually};

/// Ends every session of the transfer's. They are many: one a lane, and the one that starts are read over.
const BREAK_CONNECTIONS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                                 WHERE datname = current_database() AND application_name = 'msg-transfer'";

async fn failures(transfer: &Service) -> f64 {
    metric(transfer, "msg_transfer_store_failures_total").await
}

/// SIGKILL to the whole server, again and again in the middle of batches.
#[tokio::test]
async fn a_server_that_crashes_again_and_again_loses_and_doubles_nothing() {
    let (stack, _folder) = own_postgres("crashes").await;
    let world = World::on(&stack, "crashes", 4);
    world.create(&stack).await;
    let transfer = world.transfer("transfer", small_batches);
    transfer.start().await.unwrap();
    let world = Arc::new(world);
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    for _ in 0..3 {
        world.goes_on_by(500).await;
        stack.postgres().kill().await;
        stack.postgres().start().await.unwrap();
    }
    world.goes_on_by(500).await;
    load.finish(&world).await;
    watch.finish().await;
    transfer.wait_ready(PATIENCE).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

/// Every connection is broken, again and again, wherever each may be in its work.
#[tokio::test]
async fn connections_that_are_broken_again_and_again_lose_and_double_nothing() {
    let world = Arc::new(World::new("broken").await);
    let transfer = world.transfer("transfer", small_batches);
    transfer.start().await.unwrap();
    let load = Load::start(world.writer(), 100);
    let watch = OffsetWatch::start(&world);
    let database = world.database().await;
    let mut broken: i64 = 0;
    for _ in 0..20 {
        // While some are stored, and others wait behind them.
        world.goes_on_by(50).await;
        broken += database.query_one(BREAK_CONNECTIONS, &[]).await.unwrap().get::<_, i64>(0);
    }
    assert!(broken > 40, "only {broken} connections were broken");
    load.finish(&world).await;
    watch.finish().await;
    transfer.wait_ready(PATIENCE).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
}

/// A schema that no message fits: the records are not to blame, so none is put aside, and nothing is committed.
#[tokio::test]
async fn a_bad_migration_drains_nothing() {
    let world = World::new("migrated").await;
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    let database = world.database().await;
    let ills = [
        ("a column of somebody's that nobody fills", "ADD COLUMN extra text NOT NULL", "DROP COLUMN extra", "extra"),
        ("a check that nothing passes", "ADD CONSTRAINT none CHECK (false) NOT VALID", "DROP CONSTRAINT none", "none"),
        ("a column too few", "RENAME COLUMN send_id TO sender", "RENAME COLUMN sender TO send_id", "send_id"),
    ];
    let mut sent = 0;
    for (what, break_it, mend_it, word) in ills {
        // The first ill needs an empty table; the later ones find what the earlier ones held up.
        database.batch_execute(&format!("ALTER TABLE messages {break_it}")).await.unwrap();
        let committed = world.committed().await;
        let failed = failures(&transfer).await;
        write(&writer, sent, sent + 200, 10);
        sent += 200;
        not_ready_because(&transfer, &["database", word]).await;
        eventually("some attempts have failed", async || {
            let now = failures(&transfer).await;
            ensure(now >= failed + 6.0, now)
        })
        .await;
        assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "{what}: drained");
        assert_eq!(world.committed().await, committed, "{what}: committed");
        database.batch_execute(&format!("ALTER TABLE messages {mend_it}")).await.unwrap();
        world.all_committed().await;
        assert_stored(&world, sent, 10).await;
        transfer.wait_ready(PATIENCE).await.unwrap();
    }
}

/// What is done to a database before its sessions are ended, what it says then, and how it is undone.
async fn refused_for_a_while(
    world: &World,
    transfer: &Service,
    operator: &Client,
    [refuse, allow]: [&str; 2],
    words: &[&str],
) {
    let load = Load::start(world.writer(), 20);
    world.goes_on_by(300).await;
    operator.batch_execute(refuse).await.unwrap();
    world.database().await.execute(BREAK_CONNECTIONS, &[]).await.unwrap();
    not_ready_because(transfer, words).await;
    let stored = count_rows(&world.database().await, "messages").await.unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    eventually("it has lasted", async || {
        assert!(transfer.process().unwrap().exit_status().is_none(), "it has ended");
        ensure(Instant::now() > until, "not yet")
    })
    .await;
    assert_eq!(count_rows(&world.database().await, "messages").await.unwrap(), stored, "nothing can be stored");
    operator.batch_execute(allow).await.unwrap();
    transfer.wait_ready(PATIENCE).await.unwrap();
    load.finish(world).await;
}

/// After a failover to a server that is still a replica, every write is refused.
#[tokio::test]
async fn a_read_only_database_is_waited_out() {
    let world = World::new("read_only").await;
    let transfer = world.running_transfer().await;
    let operator = world.database().await;
    let change = [
        "ALTER DATABASE read_only SET default_transaction_read_only = on",
        "SET default_transaction_read_only = off; ALTER DATABASE read_only RESET default_transaction_read_only",
    ];
    refused_for_a_while(&world, &transfer, &operator, change, &["database", "read-only"]).await;
}

/// As a role of its own: the superuser has no limits.
fn as_role(world: &World, spec: ServiceSpec, role: &str) -> ServiceSpec {
    spec.env("DATABASE_URL", world.database_url().replace("postgres@", &format!("{role}@")))
}

async fn create_role(database: &Client, role: &str) {
    let create = format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}");
    database.batch_execute(&create).await.unwrap();
}

/// Somebody else has all the connections.
#[tokio::test]
async fn a_server_without_a_free_connection_is_waited_out() {
    let world = World::new("crowded").await;
    let operator = world.database().await;
    create_role(&operator, "crowded").await;
    let transfer = world.transfer("transfer", |spec| as_role(&world, spec, "crowded"));
    transfer.start().await.unwrap();
    let change = ["ALTER ROLE crowded CONNECTION LIMIT 0", "ALTER ROLE crowded CONNECTION LIMIT -1"];
    refused_for_a_while(&world, &transfer, &operator, change, &["database", "too many connections"]).await;
}

/// Not enough connections for all lanes: those that have one go on, the others wait and say so.
#[tokio::test]
async fn with_too_few_connections_some_lanes_wait_and_all_is_stored_in_the_end() {
    let world = World::new("few").await;
    let operator = world.database().await;
    create_role(&operator, "few").await;
    operator.batch_execute("ALTER ROLE few CONNECTION LIMIT 3").await.unwrap();
    // One for the starts leaves two for four lanes.
    let transfer = world.transfer("transfer", |spec| as_role(&world, spec, "few").env("LANES", 4));
    transfer.start().await.unwrap();
    let load = Load::start(world.writer(), 20);
    not_ready_because(&transfer, &["too many connections"]).await;
    world.goes_on_by(100).await;
    operator.batch_execute("ALTER ROLE few CONNECTION LIMIT 10").await.unwrap();
    load.finish(&world).await;
    transfer.wait_ready(PATIENCE).await.unwrap();
}

/// Statements run into their time-out for a while, and so do the next attempts.
#[tokio::test]
async fn statements_that_take_too_long_are_tried_again() {
    let world = World::new("slow").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_STATEMENT_TIMEOUT", "300ms"));
    transfer.start().await.unwrap();
    let database = world.database().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
                CREATE TRIGGER slow AFTER INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION slow()";
    database.batch_execute(slow).await.unwrap();
    let load = Load::start(world.writer(), 20);
    not_ready_because(&transfer, &["database", "57014"]).await;
    eventually("some attempts have failed", async || {
        let failed = failures(&transfer).await;
        ensure(failed >= 6.0, failed)
    })
    .await;
    assert_eq!(count_rows(&database, "messages").await.unwrap(), 0);
    assert_eq!(world.committed().await.iter().sum::<i64>(), 0, "P5");
    // An INSERT that waits for its end holds the table meanwhile, but never for long.
    database.batch_execute("DROP TRIGGER slow ON messages").await.unwrap();
    load.finish(&world).await;
    transfer.wait_ready(PATIENCE).await.unwrap();
}

/// What a server says when it is ill is no verdict on a record, whatever the statement was.
#[tokio::test]
async fn what_an_ill_server_says_is_held_against_no_record() {
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
        let committed = world.committed().await;
        write(&world.writer(), sent, sent + 100, 10);
        sent += 100;
        not_ready_because(&transfer, &["database", state]).await;
        assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0, "{what}");
        assert_eq!(world.committed().await, committed, "{what}");
        database.batch_execute("DROP FUNCTION ill CASCADE").await.unwrap();
        world.all_committed().await;
        assert_stored(&world, sent, 10).await;
    }
}

/// Frozen for longer than a session: the members keep their places, and the group has nothing to do.
#[tokio::test]
async fn with_a_frozen_database_the_group_stays_as_it_is() {
    let (stack, _folder) = own_postgres("ice").await;
    let world = World::on(&stack, "ice", 4);
    world.create(&stack).await;
    let settings = |spec| short_session(spec).env("DATABASE_STATEMENT_TIMEOUT", "1s");
    let members = ["one", "two"].map(|name| world.transfer(name, settings));
    for member in &members {
        member.start().await.unwrap();
    }
    let load = Load::start(world.writer(), 20);
    world.goes_on_by(500).await;
    let before = generation(world.brokers(), world.topic()).await;
    assert!(stack.postgres().freeze());
    for member in &members {
        not_ready_because(member, &["database"]).await;
    }
    let until = Instant::now() + Duration::from_secs(8);
    eventually("two sessions' time has passed", async || ensure(Instant::now() > until, "not yet")).await;
    assert!(stack.postgres().thaw());
    load.finish(&world).await;
    for member in &members {
        member.wait_ready(PATIENCE).await.unwrap();
        assert_eq!(lost(member).await, 0.0, "a partition was lost");
    }
    assert_eq!(generation(world.brokers(), world.topic()).await, before, "the group has changed");
    stack.stop().await;
}

/// A file system of 24 MiB, gone with this value. `None` where a test may not mount one.
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

/// The table's disk fills up under load, and somebody makes room.
#[tokio::test]
#[allow(clippy::print_stderr, reason = "whoever reads the log has to know that nothing was tested")]
async fn a_full_disk_is_waited_out() {
    let (stack, folder) = own_postgres("full").await;
    let Some(disk) = Disk::mount(folder.path().join("disk")) else {
        eprintln!("not permitted to mount a small disk: nothing is tested here");
        return;
    };
    // Below the mount's own folder: the server wants one that is its own.
    let room = disk.0.join("room");
    std::fs::create_dir(&room).unwrap();
    let server = std::fs::metadata(folder.path().join("postgres/data")).unwrap();
    std::os::unix::fs::chown(&room, Some(server.uid()), Some(server.gid())).unwrap();
    let world = World::on(&stack, "full", 4);
    world.create(&stack).await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    database.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", room.display())).await.unwrap();
    database.batch_execute("ALTER TABLE messages SET TABLESPACE small").await.unwrap();
    let load = Load::start(world.writer(), 20);
    world.goes_on_by(300).await;
    disk.fill();
    not_ready_because(&transfer, &["database", "53100"]).await;
    assert_eq!(count_rows(&database, "dead_letters").await.unwrap(), 0);
    std::fs::remove_file(disk.filler()).unwrap();
    load.finish(&world).await;
    transfer.wait_ready(PATIENCE).await.unwrap();
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
    drop(disk);
}
