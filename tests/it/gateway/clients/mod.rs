//! The quick starts of clients/, in four languages, against real gateways: they lose and duplicate no message
//! under faults, and handle each error as documented.

mod deadlines;
mod quick_start;
mod retries;
mod stand_in;
mod tls;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use self::quick_start::{Language, QuickStart};
use self::stand_in::{ReceivedSend, StandIn, Step};
use super::calls::{Client, client, wait_gateway_not_ready};
use crate::support::stack::stack;
use crate::support::world::{Gateway, World};

const SERVICE_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/service-config.json");

#[tokio::test]
async fn python_client_survives_faults() {
    survives_faults(Language::Python, "python_faults").await;
}

#[tokio::test]
async fn go_client_survives_faults() {
    survives_faults(Language::Go, "go_faults").await;
}

#[tokio::test]
async fn java_client_survives_faults() {
    survives_faults(Language::Java, "java_faults").await;
}

#[tokio::test]
async fn node_client_survives_faults() {
    survives_faults(Language::Node, "node_faults").await;
}

#[tokio::test]
async fn python_client_handles_errors_as_documented() {
    handles_errors(Language::Python, "python_errors").await;
}

#[tokio::test]
async fn go_client_handles_errors_as_documented() {
    handles_errors(Language::Go, "go_errors").await;
}

#[tokio::test]
async fn java_client_handles_errors_as_documented() {
    handles_errors(Language::Java, "java_errors").await;
}

#[tokio::test]
async fn node_client_handles_errors_as_documented() {
    handles_errors(Language::Node, "node_errors").await;
}

/// The tests below use the service config that a reader of the page sees.
#[test]
fn clients_page_shows_the_service_config_file() {
    let readme = include_str!("../../../../clients/README.md");
    let shown = readme.split_once("```json\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let shown: Value = serde_json::from_str(shown).unwrap();
    let file: Value = serde_json::from_str(&std::fs::read_to_string(SERVICE_CONFIG).unwrap()).unwrap();
    assert_eq!(shown["methodConfig"][0], file["methodConfig"][0]);
    for key in ["waitForReady", "timeout", "retryPolicy"] {
        assert_eq!(file["methodConfig"][0][key], file["methodConfig"][1][key], "{key}: reads and sends differ");
    }
}

/// The client starts before the topic exists, and the gateway is killed while it sends: no message is lost or
/// duplicated.
async fn survives_faults(language: Language, name: &str) {
    let Some(program) = QuickStart::of(language) else { return };
    let stack = stack().await;
    let world = World::on(stack, name, 4);
    stack.postgres().create_database(name).await.unwrap();
    let gateway = closed_gateway(&world).await;
    const COUNT: usize = 200;
    let mut running = program.start(&gateway.address, &["--count", &COUNT.to_string()]);
    running.until("NOT_SENT: again in").await;
    world.create_topic(stack).await;
    let _transfer = world.running_transfer().await;
    running.until("sent 50").await;
    gateway.service.kill().await.unwrap();
    running.until("UNAVAILABLE: again in").await;
    gateway.service.start().await.unwrap();
    let totals = running.totals().await;
    assert_all_sent_and_pulled(&totals, COUNT);
    assert!(totals["not_sent"].as_i64() >= Some(1) && totals["unknown"].as_i64() >= Some(1), "{totals}");
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    assert_rows(&world, "bob", COUNT).await;
    assert_eq!(world.rows().await.len(), COUNT, "P2");
    assert_eq!(world.dead_letters().await, []);
}

/// A stand-in for the gateway returns errors to some sends. Checks which sends the client repeats, after which delay,
/// and with which content.
async fn handles_errors(language: Language, name: &str) {
    let Some(program) = QuickStart::of(language) else { return };
    let world = World::new(name).await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let gateway = client(&gateway).await;
    repeats_sends(&program, &gateway, &world).await;
    does_not_retry(&program, &gateway, &world).await;
    handles_undecodable_details(&program, &gateway, &world).await;
    assert_eq!(world.dead_letters().await, []);
}

async fn repeats_sends(program: &QuickStart, gateway: &Client, world: &World) {
    const DELAY: Duration = Duration::from_millis(900);
    let unknown = || gateway_error(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None);
    let proxy_details = ErrorDetails::with_error_info("INVALID_FIELDS", "proxy.example", HashMap::new());
    let steps = vec![
        Step::Reject(gateway_error(Code::Unavailable, "NOT_SENT", Some(DELAY))),
        Step::Pass, // msg-0
        Step::Reject(gateway_error(Code::ResourceExhausted, "NOT_SENT", None)),
        Step::Pass, // msg-1
        Step::Lose(Status::unavailable("the connection was lost")),
        Step::Pass, // msg-2
        Step::Reject(unknown()),
        Step::Lose(unknown()),
        Step::Reject(unknown()),
        Step::Pass, // msg-3
        Step::Lose(Status::with_error_details(Code::InvalidArgument, "a proxy's own", proxy_details)),
        Step::Pass, // msg-4
        Step::Reject(Status::internal("no details")),
        Step::Pass, // msg-5
    ];
    // The index of the message in each call.
    let expected = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5];
    let pulls = vec![
        gateway_error(Code::Unavailable, "DATABASE_UNAVAILABLE", Some(Duration::from_millis(100))),
        Status::unavailable("the connection was lost"),
    ];
    let stand_in = StandIn::new(gateway, steps, pulls).await;
    let totals = program.start(&stand_in.address, &["--recv-id", "repeated", "--count", "6"]).totals().await;
    assert_all_sent_and_pulled(&totals, 6);
    assert_eq!((&totals["not_sent"], &totals["unknown"]), (&json!(3), &json!(7)), "{totals}");
    let received = stand_in.received();
    assert_sent(&received, &expected);
    let wait = |repeat: usize| received[repeat].received_at - received[repeat - 1].responded_at;
    assert!(wait(1) >= DELAY, "RetryInfo requested {DELAY:?}, the client waited {:?}", wait(1));
    // The backoff without RetryInfo: 100 ms at first and twice as much each time, with a jitter of up to a half.
    for (repeat, minimum) in [(3, 50), (5, 50), (7, 50), (8, 100), (9, 200), (11, 50), (13, 50)] {
        assert!(wait(repeat) >= Duration::from_millis(minimum), "{repeat}: {:?}", wait(repeat));
    }
    world.wait_for_all_committed().await;
    assert_rows(world, "repeated", 6).await;
    assert_eq!(
        world.end_offsets().await.iter().sum::<i64>(),
        6 + 3,
        "three responses were lost, and their messages sent again"
    );
}

/// A proxy can put anything into the details. The client must treat the outcome as unknown, and must not crash.
async fn handles_undecodable_details(program: &QuickStart, gateway: &Client, world: &World) {
    let status =
        |code: Code, details: &[u8]| Status::with_details(code, "an error of a proxy", details.to_vec().into());
    // Fields of google.rpc.Status: the code, and the details, each of them a google.protobuf.Any.
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("the texts are short");
        [&[number << 3 | 2, length][..], bytes].concat()
    };
    let any = |name: &str, value: &[u8]| {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        field(3, &[field(1, url.as_bytes()), field(2, value)].concat())
    };
    let unavailable_with = |details: Vec<u8>| status(Code::Unavailable, &[&[8, 14][..], &details].concat());
    let errors = vec![
        status(Code::Unavailable, &[0xff; 40]),
        status(Code::Internal, b"<html>502 Bad Gateway</html>"),
        // The code in the details differs from the status code.
        status(Code::Internal, &[8, 14]),
        unavailable_with(any("ErrorInfo", &[0xff; 9])),
        unavailable_with(any("RetryInfo", &[0xff; 9])),
        unavailable_with(any("SomethingOfTheFuture", b"\x0a\x08NOT_SENT")),
        // A negative delay, and an unknown field.
        unavailable_with(any(
            "RetryInfo",
            &[&field(1, &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])[..], &[120, 7]].concat(),
        )),
        // An unknown status code, which the library turns into UNKNOWN.
        Status::with_details(Code::Unknown, "", vec![8, 99].into()),
    ];
    let count = errors.len();
    // Each message is accepted, its response is lost, and it is sent again.
    let steps = errors.into_iter().flat_map(|error| [Step::Lose(error), Step::Pass]).collect();
    let stand_in = StandIn::new(gateway, steps, vec![]).await;
    let args = ["--recv-id", "undecodable", "--count", &count.to_string()];
    let totals = program.start(&stand_in.address, &args).totals().await;
    assert_all_sent_and_pulled(&totals, count);
    assert_eq!((&totals["not_sent"], &totals["unknown"]), (&json!(0), &json!(count)), "{totals}");
    world.wait_for_all_committed().await;
    assert_rows(world, "undecodable", count).await;
}

/// These errors must not be retried, or a retry without a client_msg_id could be a second message.
async fn does_not_retry(program: &QuickStart, gateway: &Client, world: &World) {
    let not_sent = || gateway_error(Code::Unavailable, "NOT_SENT", None);
    let runs = [
        ("INVALID_FIELDS", 1, vec![Step::Reject(gateway_error(Code::InvalidArgument, "INVALID_FIELDS", None))], ""),
        (
            "DEADLINE_TOO_SHORT",
            1,
            vec![Step::Reject(gateway_error(Code::DeadlineExceeded, "DEADLINE_TOO_SHORT", None))],
            "",
        ),
        ("TOO_LARGE", 1, vec![Step::Reject(gateway_error(Code::ResourceExhausted, "TOO_LARGE", None))], ""),
        (
            "PREDECESSOR_FAILED",
            2,
            vec![Step::Reject(not_sent()), Step::Reject(gateway_error(Code::Aborted, "PREDECESSOR_FAILED", None))],
            "",
        ),
        // A reason of a later version of the contract: it is not OUTCOME_UNKNOWN, so it does not request a retry.
        ("FROM_THE_FUTURE", 1, vec![Step::Reject(gateway_error(Code::Unavailable, "FROM_THE_FUTURE", None))], ""),
        (
            "UNAVAILABLE",
            2,
            vec![Step::Reject(not_sent()), Step::Lose(Status::unavailable("the connection was lost"))],
            "--no-client-msg-id",
        ),
        // What a later attempt did not do says nothing about an earlier one.
        (
            "UNAUTHENTICATED",
            3,
            vec![
                Step::Lose(Status::unavailable("the connection was lost")),
                Step::Reject(not_sent()),
                Step::Reject(gateway_error(Code::Unauthenticated, "UNAUTHENTICATED", None)),
            ],
            "",
        ),
        (
            "PERMISSION_DENIED",
            2,
            vec![
                Step::Reject(not_sent()),
                Step::Reject(gateway_error(Code::PermissionDenied, "PERMISSION_DENIED", None)),
            ],
            "",
        ),
        (
            "DEAD_LETTERED",
            2,
            vec![
                Step::Reject(gateway_error(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None)),
                Step::Reject(gateway_error(Code::FailedPrecondition, "DEAD_LETTERED", None)),
            ],
            "",
        ),
    ];
    let unknown = ["UNAVAILABLE", "UNAUTHENTICATED"];
    join_all(runs.into_iter().map(async |(name, sends, steps, flag)| {
        let stand_in = StandIn::new(gateway, steps, vec![]).await;
        let args: Vec<&str> =
            ["--recv-id", name, "--count", "1", flag].into_iter().filter(|arg| !arg.is_empty()).collect();
        let output = program.start(&stand_in.address, &args).failure().await.to_uppercase();
        assert!(output.contains(&format!("GAVE UP: {name}")), "{name}: {output}");
        assert_eq!(output.contains("THE OUTCOME IS UNKNOWN"), unknown.contains(&name), "{name}: {output}");
        assert_eq!(stand_in.received().len(), sends, "{name}");
    }))
    .await;
    world.wait_for_all_committed().await;
    let rows = world.rows().await;
    let mut inboxes: Vec<&str> = rows.iter().map(|row| row.recv_id.as_str()).collect();
    inboxes.retain(|name| *name != "repeated");
    inboxes.sort_unstable();
    assert_eq!(inboxes, ["UNAUTHENTICATED", "UNAVAILABLE"], "only the messages whose responses were lost are stored");
}

/// Launches a gateway whose topic does not exist: it listens and responds NOT_SENT.
async fn closed_gateway(world: &World) -> Gateway {
    let gateway = world.gateway("gateway", |spec| spec);
    gateway.service.launch().unwrap();
    drop(client(&gateway).await);
    wait_gateway_not_ready(&gateway, &[&format!("topic {} does not exist", world.topic())]).await;
    gateway
}

/// An error as a gateway makes it, but without `grpc-retry-pushback-ms`, which gRPC itself would obey.
fn gateway_error(code: Code, reason: &str, delay: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, msg_common::proto::ERROR_DOMAIN, HashMap::new());
    if let Some(delay) = delay {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, "an error of the stand-in", details)
}

fn assert_all_sent_and_pulled(totals: &Value, count: usize) {
    for (name, expected) in
        [("sent", json!(count)), ("pulled", json!(count)), ("same", json!(true)), ("seq_from_1", json!(true))]
    {
        assert_eq!(totals[name], expected, "{name}: {totals}");
    }
}

/// Checks that these messages were sent, each repeat equal to the last byte, and each call with a deadline.
fn assert_sent(received: &[ReceivedSend], expected: &[usize]) {
    let ids: Vec<&str> =
        received.iter().map(|received| received.request.msg.as_ref().unwrap().client_msg_id.as_str()).collect();
    let expected: Vec<String> = expected.iter().map(|i| format!("msg-{i}")).collect();
    assert_eq!(ids, expected);
    for repeat in received.chunk_by(|a, b| {
        a.request.msg.as_ref().map(|msg| &msg.client_msg_id) == b.request.msg.as_ref().map(|msg| &msg.client_msg_id)
    }) {
        assert!(repeat.iter().all(|received| received.request == repeat[0].request));
    }
    assert!(received.iter().all(|received| received.has_deadline));
}

/// Checks that the inbox has the messages of the programs, in order and each once.
async fn assert_rows(world: &World, recv_id: &str, count: usize) {
    let rows = world.rows().await.into_iter().filter(|row| row.recv_id == recv_id);
    let found: Vec<_> = rows.map(|row| (row.client_msg_id, String::from_utf8(row.content).unwrap())).collect();
    let expected: Vec<_> = (0..count).map(|i| (format!("msg-{i}"), format!("Grüße {i} 👋"))).collect();
    assert_eq!(found, expected, "P1, P2, P3");
}
