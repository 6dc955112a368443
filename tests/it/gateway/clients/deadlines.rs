//! The deadlines of a real caller in Python, whose library rounds them and discards what was not read by then.

use msg_dev::stack::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::quick_start::{Language, QuickStart};
use crate::gateway::calls::{client, send};
use crate::support::PATIENCE;
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/gateway/clients/deadlines.py");

async fn run(program: &QuickStart, args: &[&str]) -> Value {
    let mut command: Command = program.python(SCRIPT);
    let output = timeout(PATIENCE, command.args(args).output()).await.expect("it ends in time").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// C core makes 10.1 s of 10 s. The gateway responds before the caller's own deadline, or its reason would not be seen.
#[tokio::test]
async fn reasons_arrive_before_deadlines_that_python_rounds() {
    let Some(program) = QuickStart::of(Language::Python) else { return };
    let (stack, _folder) = own_stack("python_deadlines").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "python_deadlines", 4);
    world.create(&stack).await;
    let gateway = world.running_gateway().await;
    send(&client(&gateway).await, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    let seen = run(&program, &["unary", &gateway.address, "1.5", "2.5", "5", "10", "12"]).await;
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    let seen = seen.as_array().unwrap();
    assert_eq!(seen.len(), 5 * 8);
    // Not each of them: the machine may be busy for longer than the margin.
    let told = seen.iter().filter(|call| ["OUTCOME_UNKNOWN", "ENTRY"].contains(&call[1].as_str().unwrap())).count();
    assert!(told > 30, "{told} of {} have a reason: {seen:?}", seen.len());
    stack.stop().await;
}

/// What was accepted and what was read are not the same. So the end of a stream never says "not sent" of what has no result.
#[tokio::test]
async fn entries_without_a_result_are_unknown_to_a_slow_reader() {
    let Some(program) = QuickStart::of(Language::Python) else { return };
    let world = World::new("python_stream").await;
    let gateway = world.running_gateway().await;
    let seen = run(&program, &["stream", &gateway.address, "3"]).await;
    let (reason, results) = (seen["reason"].as_str().unwrap(), seen["results"].as_i64().unwrap());
    assert!(["STREAM_ENDED", "BARE"].contains(&reason), "{seen}");
    let accepted = world.ends().await.iter().sum::<i64>();
    assert!(results > 0 && accepted > results, "{accepted} were accepted: {seen}");
}
