//! Migrations block other queries only briefly and name what is missing, and an older build continues after a
//! rollback.

use std::collections::BTreeSet;

use msg_common::table::COLUMNS;

use super::commands::{migrated, run, run_with};
use crate::support::hosts::host_and_port;
use crate::support::load::write_messages;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn older_build_accepts_a_newer_compatible_schema() {
    let world = migrated("newer_schema").await;
    let database = world.database().await;
    let newer = "INSERT INTO refinery_schema_history VALUES (99, 'newer', now()::text, '1');
                 INSERT INTO schema_compatibility VALUES (99, 2)";
    database.batch_execute(newer).await.unwrap();
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.start().await.unwrap();
    write_messages(&world.writer(), 0, 100, 10);
    world.wait_for_rows(100).await;
    assert!(transfer.stop().await.unwrap().success());
    let check = run(&world, "check").await.assert_code(0);
    assert!(check.stdout.contains("compatible with it"), "{}", check.stdout);
    // This build does not know whether the newer schema is compatible.
    for incompatible in ["UPDATE schema_compatibility SET needs = 99", "DELETE FROM schema_compatibility"] {
        database.batch_execute(incompatible).await.unwrap();
        transfer.launch().unwrap();
        assert!(!transfer.wait().await.unwrap().success(), "{incompatible}");
        let ran = run(&world, "migrate").await.assert_code(1);
        assert!(ran.stderr.contains("run a newer build"), "{}", ran.stderr);
        run(&world, "check").await.assert_code(1);
    }
}

/// A world with only the first migration, as an earlier build left it.
async fn at_version_1(name: &str) -> World {
    let (world, full) = (World::new(name).await, migrated(&format!("{name}_full")).await);
    let first = "SELECT version, name, applied_on, checksum FROM refinery_schema_history WHERE version = 1";
    let row = full.database().await.query_one(first, &[]).await.unwrap();
    let history = "CREATE TABLE refinery_schema_history (version int4 PRIMARY KEY, name varchar(255),
                   applied_on varchar(255), checksum varchar(255))";
    let database = world.database().await;
    database.batch_execute(include_str!("../../../msg-transfer/migrations/V1__messages.sql")).await.unwrap();
    database.batch_execute(history).await.unwrap();
    let (version, name): (i32, String) = (row.get(0), row.get(1));
    let (applied, checksum): (String, String) = (row.get(2), row.get(3));
    let insert = "INSERT INTO refinery_schema_history VALUES ($1, $2, $3, $4)";
    database.execute(insert, &[&version, &name, &applied, &checksum]).await.unwrap();
    world
}

#[tokio::test]
async fn migration_behind_a_long_query_blocks_no_other_query() {
    let world = at_version_1("locked_schema").await;
    let (long, other) = (world.database().await, world.database().await);
    long.batch_execute("BEGIN; SELECT * FROM progress").await.unwrap();
    let migrating = run(&world, "migrate");
    let other_queries = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = to_regclass('progress')";
        let mut waited = 0;
        eventually("the migration has waited several times", async || {
            let waits: i64 = long.query_one(waiting, &[]).await?.get(0);
            if waits > 0 {
                // This query waits for the migration, which waits for the long query.
                other.batch_execute("SET statement_timeout = '10s'; SELECT * FROM progress").await?;
                waited += 1;
            }
            ensure(waited >= 3, format!("{waited} times"))
        })
        .await;
        long.batch_execute("COMMIT").await.unwrap();
    };
    let (migrated, ()) = tokio::join!(migrating, other_queries);
    migrated.assert_code(0);
}

#[tokio::test]
async fn migration_names_the_missing_right() {
    let world = World::new("may_not_create").await;
    let database = world.database().await;
    database.batch_execute("DROP ROLE IF EXISTS may_not; CREATE ROLE may_not LOGIN").await.unwrap();
    let url = format!("postgres://may_not@{}/may_not_create", host_and_port(world.database_url()));
    let ran = run_with(&world, "migrate", &[("DATABASE_URL", &url)]).await.assert_code(1);
    let words = ["permission denied for schema public", "42501", "GRANT CREATE ON SCHEMA public TO may_not"];
    assert!(words.iter().all(|word| ran.stderr.contains(word)), "{}", ran.stderr);
    database.batch_execute("GRANT CREATE ON SCHEMA public TO may_not").await.unwrap();
    run_with(&world, "migrate", &[("DATABASE_URL", &url)]).await.assert_code(0);
}

#[tokio::test]
async fn migrated_table_has_the_columns_that_statements_name() {
    let world = migrated("columns").await;
    let columns = "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
                   WHERE attrelid = 'messages'::regclass AND attnum > 0 AND NOT attisdropped";
    let rows = world.database().await.query(columns, &[]).await.unwrap();
    let found: BTreeSet<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let named = COLUMNS.iter().map(|column| (column.name.to_owned(), column.sql.name().to_owned()));
    assert_eq!(found, named.collect());
}
