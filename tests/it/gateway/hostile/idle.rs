//! Many connections on which nothing happens.

use std::net::SocketAddr;

use futures_util::future::join_all;
use msg_common::open_files;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::super::calls::metric;
use super::Attacked;
use super::peer::{PREFACE, frame, kind};
use crate::support::world::Gateway;
use crate::support::{PATIENCE, ensure, eventually};

/// What is open in this process beside the connections.
const OTHER_FILES: usize = 1000;
/// Fewer than the system keeps for a server that has not accepted them yet: more would be dropped, and come a second later.
const AT_ONCE: usize = 100;

const OPEN: &str = "msg_gateway_connections";
const NOT_ENDED: &str = "msg_gateway_handshake_timeouts_total";

/// Opens so many, from an address of their own: the other tests' ports are not used up.
async fn open(count: usize, gateway: &Gateway, from: &str, greeting: &[u8]) -> Vec<TcpStream> {
    let address: SocketAddr = gateway.address.parse().unwrap();
    let accepted = async || Ok(metric(gateway, OPEN).await? + metric(gateway, NOT_ENDED).await?);
    let before = eventually("it tells its connections", accepted).await;
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let some = (0..AT_ONCE.min(count - connections.len())).map(|_| async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
            let mut connection = socket.connect(address).await.unwrap();
            connection.write_all(greeting).await.unwrap();
            connection
        });
        connections.extend(join_all(some).await);
        // Some of those that were there before may have gone meanwhile.
        let expected = before + connections.len() as f64 - 10.0;
        eventually("they are accepted", async || ensure(accepted().await? >= expected, "not all")).await;
    }
    connections
}

/// Waits until the other side has closed them all.
async fn all_closed(connections: Vec<TcpStream>) {
    let closed = connections.into_iter().map(|mut connection| async move {
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer).await;
    });
    tokio::time::timeout(PATIENCE, join_all(closed)).await.expect("idle connections are closed");
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "a test that could do less than it says has to tell")]
async fn ten_thousand_idle_connections_cost_little_and_are_closed_in_the_end() {
    let limit = usize::try_from(open_files::raise().unwrap()).unwrap();
    let count = 10_000.min(limit.saturating_sub(OTHER_FILES));
    if count < 10_000 {
        eprintln!("the limit of open files is {limit}: only {count} connections are opened");
    }
    let settings = [
        ("MAX_CONNECTIONS", "11000"),
        ("HANDSHAKE_TIMEOUT", "10s"),
        ("KEEPALIVE_INTERVAL", "15s"),
        ("KEEPALIVE_TIMEOUT", "2s"),
    ];
    let attacked =
        Attacked::new("hostile_idle", |spec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value)))
            .await;
    let gateway = &attacked.gateway;

    // TCP and nothing more.
    let (silent, ()) = tokio::join!(open(count, gateway, "127.0.0.2", b""), attacked.serves_others());
    attacked.is_unharmed(300).await;
    all_closed(silent).await;
    let cut = metric(gateway, NOT_ENDED).await.unwrap();
    assert_eq!(cut, count as f64);

    // A whole handshake, and then nothing: not even an answer to a PING.
    let greeting = [PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat();
    let (greeted, ()) = tokio::join!(open(count, gateway, "127.0.0.3", &greeting), attacked.serves_others());
    attacked.is_unharmed(500).await;
    all_closed(greeted).await;
    assert_eq!(metric(gateway, NOT_ENDED).await.unwrap(), cut, "a handshake did not end");
    attacked.serves_others().await;
}
