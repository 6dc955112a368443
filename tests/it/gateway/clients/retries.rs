//! gRPC's own retries with the documented service config: what they do without a retry loop, and what they do not.

use futures_util::future::{join_all, join3};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::quick_start::{Language, QuickStart};
use super::stand_in::{StandIn, Step};
use super::{SERVICE_CONFIG, assert_all_sent_and_pulled, assert_rows, assert_sent, closed_gateway, gateway_error};
use crate::gateway::calls::{assert_not_sent, client, send};
use crate::support::WAIT_TIMEOUT;
use crate::support::kafka::msg;
use crate::support::stack::stack;
use crate::support::world::{Gateway, World};

#[tokio::test]
async fn python_grpc_retries_handle_unavailable() {
    grpc_retries(Language::Python, "python_retries").await;
}

#[tokio::test]
async fn go_grpc_retries_handle_unavailable() {
    grpc_retries(Language::Go, "go_retries").await;
}

#[tokio::test]
async fn java_grpc_retries_handle_unavailable() {
    grpc_retries(Language::Java, "java_retries").await;
}

#[tokio::test]
async fn node_grpc_retries_handle_unavailable() {
    grpc_retries(Language::Node, "node_retries").await;
}

/// With the documented service config and without a retry loop, a client gets over short outages.
async fn grpc_retries(language: Language, name: &str) {
    let Some(program) = QuickStart::of(language) else { return };
    let world = World::new(name).await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    obeys_pushback_and_repeats_lost_sends(&program, &gateway, &world).await;
    join3(
        survives_a_killed_gateway(&program, &gateway),
        retries_as_often_as_documented(&program, &gateway),
        waits_for_a_connection(&program, &gateway),
    )
    .await;
    world.wait_for_all_committed().await;
    assert_rows(&world, "bob", 200).await;
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
}

async fn obeys_pushback_and_repeats_lost_sends(program: &QuickStart, gateway: &Gateway, world: &World) {
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
        Step::Reject(unavailable()),
        Step::Lose(unavailable()),
        Step::Pass, // msg-2
    ];
    let gateway = client(gateway).await;
    let stand_in = StandIn::new(&gateway, steps, vec![unavailable(), unavailable()]).await;
    let args = ["--service-config", SERVICE_CONFIG, "--recv-id", "lost", "--count", "4"];
    let totals = program.start(&stand_in.address, &args).totals().await;
    assert_all_sent_and_pulled(&totals, 4);
    assert_eq!(
        (&totals["not_sent"], &totals["unknown"]),
        (&json!(0), &json!(0)),
        "the client has no retry loop: {totals}"
    );
    let received = stand_in.received();
    assert_sent(&received, &[0, 0, 0, 1, 1, 2, 2, 2, 3]);
    for pair in received.windows(2).take(2) {
        let (delay, waited) = (
            pair[0].pushback.expect("the gateway sends grpc-retry-pushback-ms"),
            pair[1].received_at - pair[0].responded_at,
        );
        assert!(waited >= delay, "the requested delay is {delay:?}, the client waited for {waited:?}");
    }
    world.wait_for_all_committed().await;
    assert_rows(world, "lost", 4).await;
    assert_eq!(
        world.end_offsets().await.iter().sum::<i64>(),
        4 + 2,
        "two responses were lost, and their messages sent again"
    );
}

/// gRPC makes five attempts, and only for UNAVAILABLE: for more, a client needs a loop.
async fn retries_as_often_as_documented(program: &QuickStart, gateway: &Gateway) {
    let gateway = client(gateway).await;
    // Java obeys grpc-retry-pushback-ms for every status code.
    let overloaded = if program.language == Language::Java { 5 } else { 1 };
    let runs: [(usize, fn() -> Status); 3] = [
        (5, || Status::unavailable("the connection was lost")),
        (overloaded, || {
            let mut status = gateway_error(Code::ResourceExhausted, "NOT_SENT", None);
            status.metadata_mut().insert("grpc-retry-pushback-ms", 10.into());
            status
        }),
        (1, || gateway_error(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None)),
    ];
    join_all(runs.into_iter().map(async |(attempts, status)| {
        let stand_in = StandIn::new(&gateway, (0..5).map(|_| Step::Reject(status())).collect(), vec![]).await;
        let args = ["--service-config", SERVICE_CONFIG, "--recv-id", "never", "--count", "1"];
        program.start(&stand_in.address, &args).failure().await;
        assert_eq!(stand_in.received().len(), attempts);
    }))
    .await;
}

/// No server listens for longer than five attempts need: a call waits for a connection until its deadline.
async fn waits_for_a_connection(program: &QuickStart, gateway: &Gateway) {
    let gateway = client(gateway).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let running = program.start(&address, &["--service-config", SERVICE_CONFIG, "--recv-id", "late", "--count", "1"]);
    // The libraries reconnect after 1 s, 1.6 s and 2.6 s, each plus or minus a fifth; five attempts end after 3.6 s.
    let connections = async {
        for _ in 0..3 {
            drop(listener.accept().await.unwrap());
        }
    };
    timeout(WAIT_TIMEOUT, connections).await.expect("the client tries to connect");
    let rejection = vec![Step::Reject(gateway_error(Code::InvalidArgument, "INVALID_FIELDS", None))];
    let stand_in = StandIn::on(listener, &gateway, rejection, vec![]);
    running.failure().await;
    assert_eq!(stand_in.received().len(), 1);
}

/// The gateway is killed, and starts again at the same address.
async fn survives_a_killed_gateway(program: &QuickStart, gateway: &Gateway) {
    let mut running = program.start(&gateway.address, &["--service-config", SERVICE_CONFIG, "--count", "200"]);
    running.until("sent 50").await;
    gateway.service.kill().await.unwrap();
    gateway.service.start().await.unwrap();
    assert_all_sent_and_pulled(&running.totals().await, 200);
}
