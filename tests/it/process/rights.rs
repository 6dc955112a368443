//! The table of `docs/rights.md`: services and commands run with exactly these rights, and each missing right is
//! named.

use msg_common::proto::{PullMsgsRequest, SendMsgRequest, WaitFor};
use msg_stack::kafka::rights::login;
use msg_stack::{Operation, Resource, Right, Service, ServiceSpec, Stack};

use super::readiness;
use crate::gateway::calls::client;
use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::stack::stack_with_users;
use crate::support::world::World;
use crate::transfer::commands::{CommandResult, run, run_with};

const TOPIC: &str = "rights";

/// The Kafka resource of a right.
#[derive(Clone, Copy, PartialEq)]
enum On {
    Topic,
    Hints,
    Group(&'static str),
}

/// A row of the table: a user, its rights in Kafka, and its rights in the database.
struct Row {
    user: &'static str,
    kafka: &'static [(Operation, On)],
    tables: &'static [(&'static str, &'static str)],
}

const READ_LAG: &[(Operation, On)] =
    &[(Operation::Read, On::Topic), (Operation::DescribeConfigs, On::Topic), (Operation::Read, On::Group(TOPIC))];

const GATEWAY: Row = Row {
    user: "gateway",
    kafka: &[
        (Operation::Write, On::Topic),
        (Operation::DescribeConfigs, On::Topic),
        (Operation::Read, On::Hints),
        (Operation::Read, On::Group("msg-gateway-hints")),
    ],
    tables: &[("SELECT", "messages"), ("SELECT", "dead_letters"), ("SELECT", "progress")],
};

const TRANSFER: Row = Row {
    user: "transfer",
    kafka: &[
        (Operation::Read, On::Topic),
        (Operation::DescribeConfigs, On::Topic),
        (Operation::Read, On::Group(TOPIC)),
        (Operation::Write, On::Hints),
    ],
    tables: &[
        ("SELECT", "messages"),
        ("INSERT", "messages"),
        ("SELECT", "dead_letters"),
        ("INSERT", "dead_letters"),
        ("SELECT", "progress"),
        ("INSERT", "progress"),
        ("UPDATE", "progress"),
        ("SELECT", "refinery_schema_history"),
    ],
};

/// The commands, each with a user of its own. The last two delete what the others read.
const COMMANDS: &[(&str, Row)] = &[
    (
        "lag",
        Row { user: "lag", kafka: READ_LAG, tables: &[("SELECT", "progress"), ("SELECT", "refinery_schema_history")] },
    ),
    (
        "dead-letters list",
        Row { user: "list", kafka: &[], tables: &[("SELECT", "dead_letters"), ("SELECT", "refinery_schema_history")] },
    ),
    (
        "dead-letters replay --all --again",
        Row {
            user: "replay",
            kafka: &[(Operation::Write, On::Topic), (Operation::DescribeConfigs, On::Topic)],
            tables: &[("SELECT", "dead_letters"), ("UPDATE", "dead_letters"), ("SELECT", "refinery_schema_history")],
        },
    ),
    (
        "resume --all",
        Row {
            user: "resume",
            kafka: &[(Operation::Describe, On::Topic)],
            tables: &[
                ("SELECT", "dead_letters"),
                ("SELECT", "progress"),
                ("UPDATE", "progress"),
                ("SELECT", "refinery_schema_history"),
            ],
        },
    ),
    (
        "dead-letters discard --reason UNDECODABLE --older-than 1ms",
        Row {
            user: "discard",
            kafka: &[],
            tables: &[("SELECT", "dead_letters"), ("DELETE", "dead_letters"), ("SELECT", "refinery_schema_history")],
        },
    ),
    (
        "purge --older-than 90days --dead-letters",
        Row {
            user: "purge",
            kafka: READ_LAG,
            tables: &[
                ("SELECT", "messages"),
                ("DELETE", "messages"),
                ("SELECT", "dead_letters"),
                ("DELETE", "dead_letters"),
                ("SELECT", "refinery_schema_history"),
            ],
        },
    ),
];

impl Row {
    fn right(&self, (operation, on): (Operation, On)) -> Right {
        let resource = match on {
            On::Topic => Resource::Topic(TOPIC.into()),
            On::Hints => Resource::Topic(format!("{TOPIC}-hints")),
            On::Group(name) => Resource::Group(name.into()),
        };
        Right::new(self.user, operation, resource)
    }

    async fn grant(&self, stack: &Stack, world: &World) {
        let user = self.user;
        let rights: Vec<Right> = self.kafka.iter().map(|right| self.right(*right)).collect();
        if !rights.is_empty() {
            stack.kafka().grant(rights).await.unwrap();
        }
        let database = world.database().await;
        database.batch_execute(&format!("CREATE ROLE {user} LOGIN PASSWORD 'x'")).await.unwrap();
        for (right, table) in self.tables {
            database.batch_execute(&format!("GRANT {right} ON {table} TO {user}")).await.unwrap();
        }
    }

    /// The variables for a login of this user to Kafka and to the database.
    fn settings(&self, stack: &Stack, world: &World) -> Vec<(&'static str, String)> {
        let (_, rest) = world.database_url().split_once('@').unwrap();
        vec![
            ("KAFKA_BROKERS", stack.kafka().bootstrap_for_users()),
            ("KAFKA_PROPERTIES", login(self.user)),
            ("DATABASE_URL", format!("postgres://{}:x@{rest}", self.user)),
        ]
    }

    async fn run(&self, stack: &Stack, world: &World, arguments: &str) -> CommandResult {
        let settings = self.settings(stack, world);
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run_with(world, arguments, &settings).await
    }
}

async fn stack_with_all_users() -> (Stack, tempfile::TempDir, World) {
    let mut users = vec![GATEWAY.user, TRANSFER.user];
    users.extend(COMMANDS.iter().map(|(_, row)| row.user));
    let (stack, folder) = stack_with_users("rights", &users).await;
    let world = World::on(&stack, TOPIC, 4);
    world.create(&stack).await;
    run(&world, "migrate").await.assert_code(0);
    (stack, folder, world)
}

#[tokio::test]
async fn commands_run_with_documented_rights_and_name_missing_ones() {
    let (stack, _folder, world) = stack_with_all_users().await;
    // Two rows, a progress row and a dead letter, so that each command has work to do.
    let transfer = world.running_transfer().await;
    let writer = world.writer();
    for id in ["1", "3"] {
        writer.put(&record_of(&msg("alice", "bob", id, "hello")));
    }
    writer.put(&RawRecord { value: Some(b"no message".to_vec()), ..record_of(&msg("alice", "bob", "2", "x")) });
    writer.flush();
    world.wait_for_rows(2).await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
    let database = world.database().await;
    // Purge deletes only what is older than the topic's retention.
    database.execute("UPDATE messages SET stored_time = now() - interval '100 days'", &[]).await.unwrap();
    for (arguments, row) in COMMANDS {
        row.grant(&stack, &world).await;
        for right in row.kafka {
            let right = row.right(*right);
            stack.kafka().withdraw(vec![right.clone()]).await.unwrap();
            let ran = row.run(&stack, &world, arguments).await.assert_code(1);
            assert!(ran.stderr.contains("lacks a right on the"), "{arguments} without {right:?}: {}", ran.stderr);
            stack.kafka().grant(vec![right]).await.unwrap();
        }
        for (right, table) in row.tables {
            database.batch_execute(&format!("REVOKE {right} ON {table} FROM {}", row.user)).await.unwrap();
            let ran = row.run(&stack, &world, arguments).await.assert_code(1);
            assert!(ran.stderr.contains(table), "{arguments} without {right} on {table}: {}", ran.stderr);
            database.batch_execute(&format!("GRANT {right} ON {table} TO {}", row.user)).await.unwrap();
        }
        row.run(&stack, &world, arguments).await.assert_code(0);
    }
    stack.stop().await;
}

#[tokio::test]
async fn services_run_with_documented_rights_and_name_missing_ones() {
    let (stack, _folder, world) = stack_with_all_users().await;
    for row in [&GATEWAY, &TRANSFER] {
        row.grant(&stack, &world).await;
    }
    let configure = |row: &'static Row| {
        let settings = row.settings(&stack, &world);
        move |spec: ServiceSpec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value))
    };
    let gateway = world.gateway("gateway", configure(&GATEWAY));
    let transfer = world.transfer("transfer", |spec| configure(&TRANSFER)(spec).env("NO_MIGRATE", true));
    gateway.service.start().await.unwrap();
    transfer.start().await.unwrap();
    let mut client = client(&gateway).await;
    let request = SendMsgRequest { msg: Some(msg("alice", "bob", "1", "hello")), wait_for: WaitFor::Stored.into() };
    client.send_msg(request).await.unwrap();
    let pull = PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() };
    assert_eq!(client.pull_msgs(pull).await.unwrap().into_inner().msgs.len(), 1);
    let check = TRANSFER.run(&stack, &world, "check --output json").await;
    assert!(!check.stdout.contains("\"rights\",\"status\":\"failed\""), "{}", check.stdout);
    assert!(gateway.service.stop().await.unwrap().success());
    assert!(transfer.stop().await.unwrap().success());
    for (row, right, text) in [
        (&GATEWAY, (Operation::Write, On::Topic), "lacks a right on the topic"),
        (&GATEWAY, (Operation::DescribeConfigs, On::Topic), "lacks a right on the topic"),
        (&TRANSFER, (Operation::Read, On::Topic), "lacks a right on the topic"),
        (&TRANSFER, (Operation::Read, On::Group(TOPIC)), "lacks a right on the consumer group"),
    ] {
        let service = if row.user == GATEWAY.user { &gateway.service } else { &transfer };
        stack.kafka().withdraw(vec![row.right(right)]).await.unwrap();
        service.launch().unwrap();
        readiness(service, 503, text).await;
        stack.kafka().grant(vec![row.right(right)]).await.unwrap();
        readiness(service, 200, "ready").await;
        assert!(service.stop().await.unwrap().success());
    }
    database_rights_of_running_gateway(&world, &gateway.service).await;
    database_rights_of_running_transfer(&world, &transfer).await;
    stack.stop().await;
}

async fn database_rights_of_running_gateway(world: &World, gateway: &Service) {
    let database = world.database().await;
    gateway.start().await.unwrap();
    for (right, table) in GATEWAY.tables {
        database.batch_execute(&format!("REVOKE {right} ON {table} FROM gateway")).await.unwrap();
        let body = readiness(gateway, 503, &format!("GRANT {right} ON {table} TO gateway")).await;
        assert!(body.contains(&format!("database: permission denied for table {table} (42501)")), "{body}");
        database.batch_execute(&format!("GRANT {right} ON {table} TO gateway")).await.unwrap();
        readiness(gateway, 200, "ready").await;
    }
    // PUBLIC has these two.
    database.batch_execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC").await.unwrap();
    readiness(gateway, 503, "GRANT USAGE ON SCHEMA public TO gateway").await;
    database.batch_execute("GRANT USAGE ON SCHEMA public TO PUBLIC").await.unwrap();
    readiness(gateway, 200, "ready").await;
    database.batch_execute(&format!("REVOKE CONNECT ON DATABASE {TOPIC} FROM PUBLIC")).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway'";
    database.execute(end, &[]).await.unwrap();
    readiness(gateway, 503, "GRANT CONNECT ON DATABASE").await;
    database.batch_execute(&format!("GRANT CONNECT ON DATABASE {TOPIC} TO PUBLIC")).await.unwrap();
    readiness(gateway, 200, "ready").await;
    assert!(gateway.stop().await.unwrap().success());
}

async fn database_rights_of_running_transfer(world: &World, transfer: &Service) {
    let (database, writer) = (world.database().await, world.writer());
    transfer.start().await.unwrap();
    // The schema's version is read only at the start.
    let rights = TRANSFER.tables.iter().filter(|(_, table)| *table != "refinery_schema_history");
    for (number, (right, table)) in rights.enumerate() {
        database.batch_execute(&format!("REVOKE {right} ON {table} FROM transfer")).await.unwrap();
        let record = record_of(&msg("alice", &format!("inbox-{number}"), "1", "hello"));
        let value = if *table == "dead_letters" { Some(b"no message".to_vec()) } else { record.value.clone() };
        writer.put(&RawRecord { value, ..record });
        writer.flush();
        let body = readiness(transfer, 503, &format!("permission denied for table {table} (42501): GRANT ")).await;
        assert!(body.contains(right) && body.contains("docs/rights.md"), "{body}");
        database.batch_execute(&format!("GRANT {right} ON {table} TO transfer")).await.unwrap();
        world.wait_for_all_committed().await;
        readiness(transfer, 200, "ready").await;
    }
    assert!(transfer.stop().await.unwrap().success());
}
