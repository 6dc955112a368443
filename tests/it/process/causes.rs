//! If Kafka cannot be used, readiness, `check` and the log give the cause and the remedy.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use msg_stack::kafka::rights::login;
use msg_stack::{Operation, Resource, Right, ServiceSpec};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::readiness;
use crate::support::kafka::{msg, record_of};
use crate::support::stack::{stack, stack_with_users};
use crate::support::transfer::{metric, short_session};
use crate::support::world::World;
use crate::support::{ensure, eventually};
use crate::transfer::commands::{migrated, run, run_with};

/// Checks that readiness and log of both services, and `check`, contain these texts.
pub(crate) async fn assert_all_report(world: &World, settings: &[(&str, &str)], texts: &[&str]) {
    let configure = |spec: ServiceSpec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
    let (gateway, transfer) = (world.gateway("gateway", configure), world.transfer("transfer", configure));
    gateway.service.launch().unwrap();
    transfer.launch().unwrap();
    for service in [&gateway.service, &transfer] {
        let body = eventually("readiness gives the cause", async || {
            let (status, body) = msg_common::admin::probe(service.spec().admin.unwrap(), "/readyz").await?;
            ensure(status == 503 && texts.iter().all(|text| body.contains(text)), &body)?;
            Ok(body)
        })
        .await;
        let log = std::fs::read_to_string(service.log()).unwrap();
        assert!(texts.iter().all(|text| log.contains(text)), "the log does not give the cause: {body}\n{log}");
        assert!(!log.contains("hunter2"), "{log}");
    }
    let check = run_with(world, "check --output json", settings).await.assert_code(1);
    for text in texts {
        assert!(check.stdout.contains(text), "{text}: {}", check.stdout);
    }
    for service in [&gateway.service, &transfer] {
        let stopped = service.stop().await.unwrap();
        assert!(stopped.success(), "{stopped}: {}", service.log().display());
    }
}

#[tokio::test]
async fn wrong_password_is_named() {
    let (stack, _folder) = stack_with_users("password", &["app"]).await;
    let world = World::on(&stack, "password", 4);
    world.create(&stack).await;
    let brokers = stack.kafka().bootstrap_for_users();
    let properties = login("app").replace("app-secret", "hunter2");
    let settings = [("KAFKA_BROKERS", brokers.as_str()), ("KAFKA_PROPERTIES", properties.as_str())];
    assert_all_report(&world, &settings, &["refuses the user or the password", "correct sasl.username"]).await;
    stack.stop().await;
}

#[tokio::test]
async fn unreachable_advertised_listener_is_named() {
    let world = migrated("advertised").await;
    // Like an advertised listener that only the brokers' own network can resolve.
    let unknown = [("KAFKA_BROKERS", "kafka.invalid:9092")];
    assert_all_report(&world, &unknown, &["kafka.invalid:9092", "does not resolve", "advertised.listeners"]).await;
    let closed = [("KAFKA_BROKERS", "127.0.0.1:1")];
    assert_all_report(&world, &closed, &["127.0.0.1:1", "Connection refused", "advertised.listeners"]).await;
}

#[tokio::test]
async fn missing_group_right_is_named_and_recovers() {
    let (stack, _folder) = stack_with_users("group_right", &["app"]).await;
    let world = World::on(&stack, "group_right", 4);
    world.create(&stack).await;
    let topic = || Resource::Topic("group_right".into());
    let rights = [Operation::Read, Operation::DescribeConfigs].map(|operation| Right::new("app", operation, topic()));
    stack.kafka().grant(rights.to_vec()).await.unwrap();
    let brokers = stack.kafka().bootstrap_for_users();
    let transfer =
        world.transfer("transfer", |spec| spec.env("KAFKA_BROKERS", &brokers).env("KAFKA_PROPERTIES", login("app")));
    transfer.launch().unwrap();
    let body = readiness(&transfer, 503, "grant it READ and DESCRIBE on the group").await;
    assert!(body.contains("group: "), "{body}");
    stack.kafka().grant(vec![Right::new("app", Operation::Read, Resource::Group("group_right".into()))]).await.unwrap();
    readiness(&transfer, 200, "ready").await;
    assert!(transfer.stop().await.unwrap().success());
    stack.stop().await;
}

#[tokio::test]
async fn foreign_member_of_the_group_is_named() {
    let world = migrated("foreign").await;
    let (stop, joined) = (Arc::new(AtomicBool::new(false)), Arc::new(tokio::sync::Notify::new()));
    let (stopped, brokers, joined_sender) = (stop.clone(), world.brokers().to_owned(), joined.clone());
    let foreign = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("group.id", "foreign")
            .set("client.id", "foreign-program")
            .set("partition.assignment.strategy", "range")
            .create()
            .unwrap();
        consumer.subscribe(&["foreign"]).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            let _ = consumer.poll(std::time::Duration::from_millis(100));
            if consumer.assignment().unwrap().count() > 0 {
                joined_sender.notify_one();
            }
        }
    });
    joined.notified().await;
    let check = run(&world, "check --output json").await.assert_code(1);
    for text in ["foreign-program", "assignor range", "no transfer can join"] {
        assert!(check.stdout.contains(text), "{text}: {}", check.stdout);
    }
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.launch().unwrap();
    readiness(&transfer, 503, "another program is a member of the group").await;
    stop.store(true, Ordering::Relaxed);
    foreign.await.unwrap();
    readiness(&transfer, 200, "ready").await;
    let check = run(&world, "check --output json").await.assert_code(0);
    assert!(check.stdout.contains("all are transfers"), "{}", check.stdout);
    assert!(transfer.stop().await.unwrap().success());
}

/// Kafka's console consumer knows the assignor of the transfers. So it joins their group, and gets partitions whose
/// records no transfer stores.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_member_with_the_same_assignor_is_named() {
    let world = migrated("console").await;
    let transfer = world.transfer("transfer", |spec| short_session(spec).env("STALL_TIMEOUT", "5s"));
    transfer.start().await.unwrap();
    // The console consumer ends when it has received this number of records.
    const COUNT: &str = "20";
    let ended = Cell::new(false);
    let console = async {
        let connection = ["--bootstrap-server", world.brokers(), "--group", "console", "--topic", "console"];
        // Without the values, the output is text.
        let more = ["--max-messages", COUNT, "--formatter-property", "print.value=false"];
        let args = [&connection[..], &more[..]].concat();
        let result = stack().await.kafka().tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &args).await;
        ended.set(true);
        result
    };
    let writer = world.writer();
    let put = |number: i32| {
        for partition in 0..world.partitions {
            writer.put_to(partition, &record_of(&msg("a", &format!("inbox-{partition}"), &number.to_string(), "x")));
        }
        writer.flush();
    };
    let steps = async {
        eventually("the console consumer has partitions", async || {
            let revoked = metric(&transfer, "msg_transfer_rebalances_total{kind=\"revoked\"}").await;
            ensure(revoked >= 1.0, revoked)
        })
        .await;
        put(0);
        let body = readiness(&transfer, 503, "console-consumer on 127.0.0.1 has it, and is no transfer").await;
        assert!(body.contains("stalled: ") && body.contains("give that program a group of its own"), "{body}");
        let check = run_with(&world, "check --output json", &[("STALL_TIMEOUT", "5s")]).await.assert_code(1);
        assert!(check.stdout.contains("console-consumer on 127.0.0.1: not a transfer"), "{}", check.stdout);
        let mut next = 1;
        while !ended.get() {
            put(next);
            next += 1;
            tokio::task::yield_now().await;
        }
        next
    };
    let (result, puts) = tokio::join!(console, steps);
    result.unwrap();
    readiness(&transfer, 200, "ready").await;
    world.wait_for_rows(i64::from(puts * world.partitions)).await;
    assert!(transfer.stop().await.unwrap().success());
}
