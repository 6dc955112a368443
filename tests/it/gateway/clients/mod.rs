//! The quick starts of docs/clients, in four languages, against real gateways: no fault makes them lose or double a message, they do
//! what an error asks for, and gRPC's own retries do as much as the documentation says.

mod deadlines;
mod quick_start;
mod stand_in;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{join_all, join3};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use self::quick_start::{Language, QuickStart};
use self::stand_in::{Seen, StandIn, Step};
use super::calls::{Client, assert_not_sent, client, says_not_ready, send};
use crate::support::PATIENCE;
use crate::support::kafka::msg;
use crate::support::stack::stack;
use crate::support::world::{Gateway, World};

const SERVICE_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/clients/service-config.json");

#[tokio::test]
async fn the_python_client_goes_on_over_faults() {
    goes_on_over_faults(Language::Python, "python_faults").await;
}

#[tokio::test]
async fn the_go_client_goes_on_over_faults() {
    goes_on_over_faults(Language::Go, "go_faults").await;
}

#[tokio::test]
async fn the_java_client_goes_on_over_faults() {
    goes_on_over_faults(Language::Java, "java_faults").await;
}

#[tokio::test]
async fn the_node_client_goes_on_over_faults() {
    goes_on_over_faults(Language::Node, "node_faults").await;
}

#[tokio::test]
async fn the_python_client_does_what_an_error_asks_for() {
    does_what_an_error_asks_for(Language::Python, "python_errors").await;
}

#[tokio::test]
async fn the_go_client_does_what_an_error_asks_for() {
    does_what_an_error_asks_for(Language::Go, "go_errors").await;
}

#[tokio::test]
async fn the_java_client_does_what_an_error_asks_for() {
    does_what_an_error_asks_for(Language::Java, "java_errors").await;
}

#[tokio::test]
async fn the_node_client_does_what_an_error_asks_for() {
    does_what_an_error_asks_for(Language::Node, "node_errors").await;
}

#[tokio::test]
async fn pythons_own_retries_get_over_unavailable() {
    own_retries_get_over_unavailable(Language::Python, "python_retries").await;
}

#[tokio::test]
async fn gos_own_retries_get_over_unavailable() {
    own_retries_get_over_unavailable(Language::Go, "go_retries").await;
}

#[tokio::test]
async fn javas_own_retries_get_over_unavailable() {
    own_retries_get_over_unavailable(Language::Java, "java_retries").await;
}

#[tokio::test]
async fn nodes_own_retries_get_over_unavailable() {
    own_retries_get_over_unavailable(Language::Node, "node_retries").await;
}

/// What a reader sees is what the tests below use.
#[test]
fn the_documentation_shows_the_service_config() {
    let readme = include_str!("../../../../docs/clients/README.md");
    let shown = readme.split_once("```json\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let shown: Value = serde_json::from_str(shown).unwrap();
    let file: Value = serde_json::from_str(&std::fs::read_to_string(SERVICE_CONFIG).unwrap()).unwrap();
    assert_eq!(shown["methodConfig"][0], file["methodConfig"][0]);
    for key in ["waitForReady", "timeout", "retryPolicy"] {
        assert_eq!(file["methodConfig"][0][key], file["methodConfig"][1][key], "{key}: the reads have the same");
    }
}

/// It begins while there is no topic, and goes on over a gateway that is killed: no message is lost or doubled.
async fn goes_on_over_faults(language: Language, name: &str) {
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
    assert_all_there(&totals, COUNT);
    assert!(totals["not_sent"].as_i64() >= Some(1) && totals["unknown"].as_i64() >= Some(1), "{totals}");
    world.all_committed().await;
    world.assert_ordered_without_gaps().await;
    assert_rows(&world, "bob", COUNT).await;
    assert_eq!(world.rows().await.len(), COUNT, "P2");
    assert_eq!(world.dead_letters().await, []);
}

/// A stand-in answers some sends: what is repeated, when, with what, and what is not.
async fn does_what_an_error_asks_for(language: Language, name: &str) {
    let Some(program) = QuickStart::of(language) else { return };
    let world = World::new(name).await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let gateway = client(&gateway).await;
    repeats_what_can_be_repeated(&program, &gateway, &world).await;
    gives_up_on_the_rest(&program, &gateway, &world).await;
    takes_undecodable_details_as_unknown(&program, &gateway, &world).await;
    assert_eq!(world.dead_letters().await, []);
}

async fn repeats_what_can_be_repeated(program: &QuickStart, gateway: &Client, world: &World) {
    const DELAY: Duration = Duration::from_millis(900);
    let unknown = || ours(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None);
    let foreign = ErrorDetails::with_error_info("INVALID_FIELDS", "proxy.example", HashMap::new());
    let steps = vec![
        Step::Refuse(ours(Code::Unavailable, "NOT_SENT", Some(DELAY))),
        Step::Pass, // msg-0
        Step::Refuse(ours(Code::ResourceExhausted, "NOT_SENT", None)),
        Step::Pass, // msg-1
        Step::Lose(Status::unavailable("the connection was lost")),
        Step::Pass, // msg-2
        Step::Refuse(unknown()),
        Step::Lose(unknown()),
        Step::Refuse(unknown()),
        Step::Pass, // msg-3
        Step::Lose(Status::with_error_details(Code::InvalidArgument, "a proxy's own", foreign)),
        Step::Pass, // msg-4
        Step::Refuse(Status::internal("no details")),
        Step::Pass, // msg-5
    ];
    // The message of each.
    let expected = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5];
    let pulls = vec![
        ours(Code::Unavailable, "DATABASE_UNAVAILABLE", Some(Duration::from_millis(100))),
        Status::unavailable("the connection was lost"),
    ];
    let stand_in = StandIn::new(gateway, steps, pulls).await;
    let totals = program.start(&stand_in.address, &["--recv-id", "repeated", "--count", "6"]).totals().await;
    assert_all_there(&totals, 6);
    assert_eq!((&totals["not_sent"], &totals["unknown"]), (&json!(3), &json!(7)), "{totals}");
    let seen = stand_in.seen();
    assert_sent(&seen, &expected);
    let wait = |repeat: usize| seen[repeat].begun - seen[repeat - 1].ended;
    assert!(wait(1) >= DELAY, "RetryInfo asked for {DELAY:?}; it waited {:?}", wait(1));
    // The back-off where nothing is asked for: 100 ms at first, at least half of it, and twice as much each time.
    for (repeat, least) in [(3, 50), (5, 50), (7, 50), (8, 100), (9, 200), (11, 50), (13, 50)] {
        assert!(wait(repeat) >= Duration::from_millis(least), "{repeat}: {:?}", wait(repeat));
    }
    world.all_committed().await;
    assert_rows(world, "repeated", 6).await;
    assert_eq!(world.ends().await.iter().sum::<i64>(), 6 + 3, "three answers were lost, and their messages sent again");
}

/// A proxy may put anything into the trailer. It is neither a reason nor a crash.
async fn takes_undecodable_details_as_unknown(program: &QuickStart, gateway: &Client, world: &World) {
    let status = |code: Code, details: &[u8]| Status::with_details(code, "as a proxy says", details.to_vec().into());
    // Of google.rpc.Status: its code and its details, each a google.protobuf.Any.
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("the texts are short");
        [&[number << 3 | 2, length][..], bytes].concat()
    };
    let any = |name: &str, value: &[u8]| {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        field(3, &[field(1, url.as_bytes()), field(2, value)].concat())
    };
    let with = |details: Vec<u8>| status(Code::Unavailable, &[&[8, 14][..], &details].concat());
    let losses = vec![
        status(Code::Unavailable, &[0xff; 40]),
        status(Code::Internal, b"<html>502 Bad Gateway</html>"),
        // The code among the details is another one.
        status(Code::Internal, &[8, 14]),
        with(any("ErrorInfo", &[0xff; 9])),
        with(any("RetryInfo", &[0xff; 9])),
        with(any("SomethingOfTheFuture", b"\x0a\x08NOT_SENT")),
        // A delay below zero, and a field that nobody knows.
        with(any(
            "RetryInfo",
            &[&field(1, &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])[..], &[120, 7]].concat(),
        )),
        // A status code that nobody knows, which the library makes UNKNOWN.
        Status::with_details(Code::Unknown, "", vec![8, 99].into()),
    ];
    let count = losses.len();
    // Each message goes through, its answer is lost, and it is sent again.
    let steps = losses.into_iter().flat_map(|loss| [Step::Lose(loss), Step::Pass]).collect();
    let stand_in = StandIn::new(gateway, steps, vec![]).await;
    let args = ["--recv-id", "undecodable", "--count", &count.to_string()];
    let totals = program.start(&stand_in.address, &args).totals().await;
    assert_all_there(&totals, count);
    assert_eq!((&totals["not_sent"], &totals["unknown"]), (&json!(0), &json!(count)), "{totals}");
    world.all_committed().await;
    assert_rows(world, "undecodable", count).await;
}

/// Nobody wants these again, or nobody knows whether they would be a second message.
async fn gives_up_on_the_rest(program: &QuickStart, gateway: &Client, world: &World) {
    let not_sent = || ours(Code::Unavailable, "NOT_SENT", None);
    let runs = [
        ("INVALID_FIELDS", 1, vec![Step::Refuse(ours(Code::InvalidArgument, "INVALID_FIELDS", None))], ""),
        ("DEADLINE_TOO_SHORT", 1, vec![Step::Refuse(ours(Code::DeadlineExceeded, "DEADLINE_TOO_SHORT", None))], ""),
        ("TOO_LARGE", 1, vec![Step::Refuse(ours(Code::ResourceExhausted, "TOO_LARGE", None))], ""),
        (
            "PREDECESSOR_FAILED",
            2,
            vec![Step::Refuse(not_sent()), Step::Refuse(ours(Code::Aborted, "PREDECESSOR_FAILED", None))],
            "",
        ),
        // Of a later version of the contract: it is not OUTCOME_UNKNOWN, so a repeat is not what it asks for.
        ("FROM_THE_FUTURE", 1, vec![Step::Refuse(ours(Code::Unavailable, "FROM_THE_FUTURE", None))], ""),
        (
            "UNAVAILABLE",
            2,
            vec![Step::Refuse(not_sent()), Step::Lose(Status::unavailable("the connection was lost"))],
            "--no-client-msg-id",
        ),
    ];
    join_all(runs.into_iter().map(async |(name, sends, steps, flag)| {
        let stand_in = StandIn::new(gateway, steps, vec![]).await;
        let args: Vec<&str> =
            ["--recv-id", name, "--count", "1", flag].into_iter().filter(|arg| !arg.is_empty()).collect();
        let said = program.start(&stand_in.address, &args).failure().await.to_uppercase();
        assert!(said.contains(&format!("GAVE UP: {name}")), "{name}: {said}");
        assert_eq!(stand_in.seen().len(), sends, "{name}");
    }))
    .await;
    world.all_committed().await;
    let rows = world.rows().await;
    let inboxes: Vec<&str> = rows.iter().map(|row| row.recv_id.as_str()).filter(|name| *name != "repeated").collect();
    assert_eq!(inboxes, ["UNAVAILABLE"], "only the one whose answer was lost");
}

/// With the service config of the documentation and no loop of its own, a client gets over short outages.
async fn own_retries_get_over_unavailable(language: Language, name: &str) {
    let Some(program) = QuickStart::of(language) else { return };
    let world = World::new(name).await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    over_push_back_and_lost_answers(&program, &gateway, &world).await;
    join3(
        over_a_killed_gateway(&program, &gateway),
        no_more_than_documented(&program, &gateway),
        it_waits_for_a_connection(&program, &gateway),
    )
    .await;
    world.all_committed().await;
    assert_rows(&world, "bob", 200).await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
}

async fn over_push_back_and_lost_answers(program: &QuickStart, gateway: &Gateway, world: &World) {
    let closed = World::on(stack().await, &format!("{}_closed", world.topic()), 4);
    let closed_gateway = closed_gateway(&closed).await;
    let closed = client(&closed_gateway).await;
    assert_not_sent(send(&closed, &msg("a", "b", "1", "x")).await, Code::Unavailable);
    let unavailable = || Status::unavailable("the connection was lost");
    let steps = vec![
        Step::Other(closed.clone()),
        Step::Other(closed),
        Step::Pass, // msg-0
        Step::Lose(unavailable()),
        Step::Pass, // msg-1
        Step::Refuse(unavailable()),
        Step::Lose(unavailable()),
        Step::Pass, // msg-2
    ];
    let gateway = client(gateway).await;
    let stand_in = StandIn::new(&gateway, steps, vec![unavailable(), unavailable()]).await;
    let args = ["--service-config", SERVICE_CONFIG, "--recv-id", "lost", "--count", "4"];
    let totals = program.start(&stand_in.address, &args).totals().await;
    assert_all_there(&totals, 4);
    assert_eq!((&totals["not_sent"], &totals["unknown"]), (&json!(0), &json!(0)), "it has no loop: {totals}");
    let seen = stand_in.seen();
    assert_sent(&seen, &[0, 0, 0, 1, 1, 2, 2, 2, 3]);
    for pair in seen.windows(2).take(2) {
        let (asked, waited) = (pair[0].pushback.expect("the gateway pushes back"), pair[1].begun - pair[0].ended);
        assert!(waited >= asked, "asked to wait for {asked:?}, it waited for {waited:?}");
    }
    world.all_committed().await;
    assert_rows(world, "lost", 4).await;
    assert_eq!(world.ends().await.iter().sum::<i64>(), 4 + 2, "two answers were lost, and their messages sent again");
}

/// It is five attempts, and for UNAVAILABLE alone: for more, a loop is still needed.
async fn no_more_than_documented(program: &QuickStart, gateway: &Gateway) {
    let gateway = client(gateway).await;
    // Java obeys the push-back whatever the code is.
    let overloaded = if program.language == Language::Java { 5 } else { 1 };
    let runs: [(usize, fn() -> Status); 3] = [
        (5, || Status::unavailable("the connection was lost")),
        (overloaded, || {
            let mut status = ours(Code::ResourceExhausted, "NOT_SENT", None);
            status.metadata_mut().insert("grpc-retry-pushback-ms", 10.into());
            status
        }),
        (1, || ours(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None)),
    ];
    join_all(runs.into_iter().map(async |(attempts, status)| {
        let stand_in = StandIn::new(&gateway, (0..5).map(|_| Step::Refuse(status())).collect(), vec![]).await;
        let args = ["--service-config", SERVICE_CONFIG, "--recv-id", "never", "--count", "1"];
        program.start(&stand_in.address, &args).failure().await;
        assert_eq!(stand_in.seen().len(), attempts);
    }))
    .await;
}

/// There is none for longer than five attempts take: a call waits for it until its deadline.
async fn it_waits_for_a_connection(program: &QuickStart, gateway: &Gateway) {
    let gateway = client(gateway).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let running = program.start(&address, &["--service-config", SERVICE_CONFIG, "--recv-id", "late", "--count", "1"]);
    // The libraries connect again after 1 s, 1.6 s and 2.6 s, each a fifth more or less; five attempts are over after 3.6 s.
    let connections = async {
        for _ in 0..3 {
            drop(listener.accept().await.unwrap());
        }
    };
    timeout(PATIENCE, connections).await.expect("the client tries to connect");
    let refused = vec![Step::Refuse(ours(Code::InvalidArgument, "INVALID_FIELDS", None))];
    let stand_in = StandIn::on(listener, &gateway, refused, vec![]);
    running.failure().await;
    assert_eq!(stand_in.seen().len(), 1);
}

/// It is gone, and back on the same address.
async fn over_a_killed_gateway(program: &QuickStart, gateway: &Gateway) {
    let mut running = program.start(&gateway.address, &["--service-config", SERVICE_CONFIG, "--count", "200"]);
    running.until("sent 50").await;
    gateway.service.kill().await.unwrap();
    gateway.service.start().await.unwrap();
    assert_all_there(&running.totals().await, 200);
}

/// A gateway of a world without a topic: it listens, and answers NOT_SENT.
async fn closed_gateway(world: &World) -> Gateway {
    let gateway = world.gateway("gateway", |spec| spec);
    gateway.service.launch().unwrap();
    drop(client(&gateway).await);
    says_not_ready(&gateway, &[&format!("topic {} does not exist", world.topic())]).await;
    gateway
}

/// An error as a gateway makes it, but for the push-back trailer, which gRPC itself would obey.
fn ours(code: Code, reason: &str, delay: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, msg_common::proto::ERROR_DOMAIN, HashMap::new());
    if let Some(delay) = delay {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, "as the script says", details)
}

fn assert_all_there(totals: &Value, count: usize) {
    for (name, expected) in
        [("sent", json!(count)), ("pulled", json!(count)), ("same", json!(true)), ("seq_from_1", json!(true))]
    {
        assert_eq!(totals[name], expected, "{name}: {totals}");
    }
}

/// These messages came by, a repeat being the same to the last byte; each call had a deadline.
fn assert_sent(seen: &[Seen], expected: &[usize]) {
    let ids: Vec<&str> = seen.iter().map(|seen| seen.request.msg.as_ref().unwrap().client_msg_id.as_str()).collect();
    let expected: Vec<String> = expected.iter().map(|i| format!("msg-{i}")).collect();
    assert_eq!(ids, expected);
    for repeat in seen.chunk_by(|a, b| {
        a.request.msg.as_ref().map(|msg| &msg.client_msg_id) == b.request.msg.as_ref().map(|msg| &msg.client_msg_id)
    }) {
        assert!(repeat.iter().all(|seen| seen.request == repeat[0].request));
    }
    assert!(seen.iter().all(|seen| seen.has_deadline));
}

/// The inbox is what the programs send, in that order, each once.
async fn assert_rows(world: &World, recv_id: &str, count: usize) {
    let rows = world.rows().await.into_iter().filter(|row| row.recv_id == recv_id);
    let found: Vec<_> = rows.map(|row| (row.client_msg_id, String::from_utf8(row.content).unwrap())).collect();
    let expected: Vec<_> = (0..count).map(|i| (format!("msg-{i}"), format!("Grüße {i} 👋"))).collect();
    assert_eq!(found, expected, "P1, P2, P3");
}
