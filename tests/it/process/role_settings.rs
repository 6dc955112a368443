//! Both services and the commands with a role whose defaults are all different from PostgreSQL's: no default may change
//! what is stored or returned, or end a session.

use msg_common::proto::{Msg, Placement, PullMsgsRequest, SendMsgRequest, WaitFor};
use msg_stack::ServiceSpec;

use crate::gateway::calls::{Client, client};
use crate::support::hosts::host_and_port;
use crate::support::kafka::{msg, record_of};
use crate::support::stack::own_postgres;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};
use crate::transfer::commands::run_with;

/// Older servers do not have all of them.
const HOSTILE: [(&str, &str); 21] = [
    ("array_nulls", "off"),
    ("bytea_output", "escape"),
    ("client_encoding", "LATIN1"),
    ("client_min_messages", "error"),
    ("DateStyle", "SQL, DMY"),
    ("default_transaction_deferrable", "on"),
    ("default_transaction_isolation", "serializable"),
    ("exit_on_error", "on"),
    ("extra_float_digits", "-15"),
    ("idle_in_transaction_session_timeout", "1ms"),
    ("idle_session_timeout", "1s"),
    ("IntervalStyle", "sql_standard"),
    ("lock_timeout", "1ms"),
    ("row_security", "off"),
    ("session_replication_role", "replica"),
    ("standard_conforming_strings", "off"),
    ("statement_timeout", "100ms"),
    ("synchronous_commit", "off"),
    ("TimeZone", "Asia/Kathmandu"),
    ("transaction_timeout", "1s"),
    ("transform_null_equals", "on"),
];

async fn send_stored(client: &Client, msg: Msg) -> Placement {
    let request = SendMsgRequest { msg: Some(msg), wait_for: WaitFor::Stored.into() };
    client.clone().send_msg(request).await.unwrap().into_inner().placement.unwrap()
}

#[tokio::test]
async fn defaults_of_the_role_change_no_result() {
    let (stack, _folder) = own_postgres("role_settings").await;
    let world = World::on(&stack, "role_settings", 4);
    world.create(&stack).await;
    let operator = world.database().await;
    operator.batch_execute("CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app").await.unwrap();
    for (name, value) in HOSTILE {
        let known = "SELECT 1 FROM pg_settings WHERE lower(name) = lower($1)";
        if operator.query_opt(known, &[&name]).await.unwrap().is_some() {
            operator.batch_execute(&format!("ALTER ROLE app SET {name} = '{value}'")).await.unwrap();
        }
    }
    let url = format!("postgres://app@{}/role_settings", host_and_port(world.database_url()));
    let configure = |spec: ServiceSpec| spec.env("DATABASE_URL", &url);
    let (transfer, gateway) = (world.transfer("transfer", configure), world.gateway("gateway", configure));
    tokio::try_join!(transfer.start(), gateway.service.start()).unwrap();
    let client = client(&gateway).await;
    let hello = || msg("alice", "bob", "1", "\\ \u{5f20}\u{4e09}");
    let [first, again] = [send_stored(&client, hello()).await, send_stored(&client, hello()).await];
    let (first, again) = (first.stored.unwrap(), again.stored.unwrap());
    assert_eq!((first.seq, first.duplicate, again.seq, again.duplicate), (1, false, 1, true));
    assert_eq!(first.stored_time, again.stored_time);

    // A bisection, whose statements are partly rejected.
    operator.batch_execute("ALTER TABLE messages ADD CHECK (send_id <> 'poison')").await.unwrap();
    let writer = world.writer();
    for i in 0..100 {
        let from = if i == 50 { "poison" } else { "alice" };
        writer.put(&record_of(&msg(from, &format!("inbox-{}", i % 5), &i.to_string(), "hello")));
    }
    writer.flush();
    world.wait_for_rows(100).await;
    world.wait_for_all_committed().await;
    let reasons: Vec<String> = world.dead_letters().await.into_iter().map(|(reason, ..)| reason).collect();
    assert_eq!(reasons, ["REJECTED_BY_DATABASE"]);
    world.assert_ordered_without_gaps().await;

    let idle = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND application_name = 'msg-transfer'
                AND state = 'idle' AND state_change < now() - interval '3 s'";
    eventually("a session is idle for longer than the role's timeout", async || {
        let sessions: i64 = operator.query_one(idle, &[]).await?.get(0);
        ensure(sessions > 0, "none")
    })
    .await;
    let pull = PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() };
    let pulled = client.clone().pull_msgs(pull).await.unwrap().into_inner().msgs;
    assert_eq!(pulled.iter().map(|stored| stored.msg.clone().unwrap()).collect::<Vec<_>>(), [hello()]);
    assert_eq!(pulled[0].stored_time, first.stored_time);
    for arguments in ["migrate", "lag", "dead-letters list", "resume --all", "purge --older-than 90days"] {
        run_with(&world, arguments, &[("DATABASE_URL", &url)]).await.assert_code(0);
    }
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    let log = std::fs::read_to_string(transfer.log()).unwrap();
    assert!(!log.contains("lost the reference connection") && !log.contains("not stored"), "{log}");
    assert!(gateway.service.stop().await.unwrap().success());
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}
