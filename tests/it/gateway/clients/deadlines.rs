//! The deadlines of a real Python caller: its library rounds them, and discards results that were not read in time.

use msg_stack::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::quick_start::{Language, QuickStart};
use crate::gateway::calls::{client, send};
use crate::support::WAIT_TIMEOUT;
use crate::support::kafka::msg;
use crate::support::stack::own_stack;
use crate::support::world::World;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/it/gateway/clients/deadlines.py");

async fn run(program: &QuickStart, args: &[&str]) -> Value {
    let mut command: Command = program.python(SCRIPT);
    let output = timeout(WAIT_TIMEOUT, command.args(args).output()).await.expect("the script ends in time").unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

/// gRPC's C core turns 10 s into 10.1 s. The gateway has to respond before the caller's own deadline, or the caller
/// gets no reason.
#[tokio::test]
async fn error_reasons_arrive_before_deadlines_rounded_by_python() {
    let Some(program) = QuickStart::of(Language::Python) else { return };
    let (stack, _folder) = own_stack("python_deadlines").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "python_deadlines", 4);
    world.create(&stack).await;
    let gateway = world.running_gateway().await;
    send(&client(&gateway).await, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());
    let report = run(&program, &["unary", &gateway.address, "1.5", "2.5", "5", "10", "12"]).await;
    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    let report = report.as_array().unwrap();
    assert_eq!(report.len(), 5 * 8);
    // Not all of them: the machine may be busy for longer than the margin.
    let with_reason =
        report.iter().filter(|call| ["OUTCOME_UNKNOWN", "ENTRY"].contains(&call[1].as_str().unwrap())).count();
    assert!(with_reason > 30, "{with_reason} of {} have a reason: {report:?}", report.len());
    stack.stop().await;
}

/// A message can be accepted before its result is read. So the caller must not treat an entry without a result as
/// "not sent".
#[tokio::test]
async fn entries_without_a_result_are_unknown_to_a_slow_reader() {
    let Some(program) = QuickStart::of(Language::Python) else { return };
    let world = World::new("python_stream").await;
    let gateway = world.running_gateway().await;
    let report = run(&program, &["stream", &gateway.address, "3"]).await;
    let (reason, results) = (report["reason"].as_str().unwrap(), report["results"].as_i64().unwrap());
    assert!(["STREAM_ENDED", "BARE"].contains(&reason), "{report}");
    let accepted = world.end_offsets().await.iter().sum::<i64>();
    assert!(results > 0 && accepted > results, "{accepted} were accepted: {report}");
}
