//! Many idle connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::super::calls::metric;
use super::super::calls::send;
use super::peer::{PREFACE, frame, kind};
use super::{Attacked, ordinary_msg};
use crate::support::world::Gateway;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// File descriptors that this process needs in addition to the connections.
const OTHER_FILES: usize = 1000;
/// Connections opened concurrently: fewer than the system's backlog for connections that are not accepted yet. More
/// would be dropped and retried a second later.
const CONCURRENT_CONNECTS: usize = 100;

const OPEN_CONNECTIONS: &str = "msg_gateway_connections";
const HANDSHAKE_TIMEOUTS: &str = "msg_gateway_handshake_timeouts_total";

/// Opens `count` connections from an address of their own, so that the ports of other tests are not used up.
async fn open(count: usize, gateway: &Gateway, from: &str, greeting: &[u8]) -> Vec<TcpStream> {
    let address: SocketAddr = gateway.address.parse().unwrap();
    let accepted = async || Ok(metric(gateway, OPEN_CONNECTIONS).await? + metric(gateway, HANDSHAKE_TIMEOUTS).await?);
    let before = eventually("the gateway reports its connections", accepted).await;
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let batch = (0..CONCURRENT_CONNECTS.min(count - connections.len())).map(|_| async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
            let mut connection = socket.connect(address).await.unwrap();
            connection.write_all(greeting).await.unwrap();
            connection
        });
        connections.extend(join_all(batch).await);
        // Some of the earlier connections may have been closed meanwhile.
        let expected = before + connections.len() as f64 - 10.0;
        eventually("the connections are accepted", async || ensure(accepted().await? >= expected, "not all are")).await;
    }
    connections
}

/// Waits until the gateway has closed all of them.
async fn all_closed(connections: Vec<TcpStream>) {
    let closed = connections.into_iter().map(|mut connection| async move {
        let mut received = Vec::new();
        let _ = connection.read_to_end(&mut received).await;
    });
    tokio::time::timeout(WAIT_TIMEOUT, join_all(closed)).await.expect("idle connections are closed");
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "the output has to show that fewer connections were tested")]
async fn idle_connections_need_little_memory_and_are_closed() {
    let limit = usize::try_from(rlimit::increase_nofile_limit(u64::MAX).unwrap()).unwrap();
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

    // TCP connections without a handshake.
    let (without_preface, ()) = tokio::join!(open(count, gateway, "127.0.0.2", b""), attacked.assert_serves_others());
    attacked.assert_unharmed(300).await;
    all_closed(without_preface).await;
    let timeouts = metric(gateway, HANDSHAKE_TIMEOUTS).await.unwrap();
    assert_eq!(timeouts, count as f64);

    // A complete handshake, and then nothing: not even a response to a PING.
    let greeting = [PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat();
    let (with_preface, ()) =
        tokio::join!(open(count, gateway, "127.0.0.3", &greeting), attacked.assert_serves_others());
    attacked.assert_unharmed(500).await;
    all_closed(with_preface).await;
    assert_eq!(metric(gateway, HANDSHAKE_TIMEOUTS).await.unwrap(), timeouts, "a handshake timed out");
    attacked.assert_serves_others().await;
}

/// A connection that cannot be accepted stays in the kernel's queue, and the gateway tries again every 50 ms.
#[tokio::test]
async fn missing_file_descriptors_are_logged_once() {
    let attacked = Attacked::new("hostile_files", |spec| spec).await;
    let (pid, log) = (attacked.pid.cast_signed(), attacked.gateway.service.log());
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    let (mut soft, mut hard) = (0, 0);
    rlimit::prlimit(pid, rlimit::Resource::NOFILE, None, Some((&mut soft, &mut hard))).unwrap();
    rlimit::prlimit(pid, rlimit::Resource::NOFILE, Some((open.min(8), hard)), None).unwrap();
    let _waiting = TcpStream::connect(&attacked.gateway.address).await.unwrap();
    let lines = || std::fs::read_to_string(log).unwrap().matches("cannot accept a connection").count();
    eventually("the error is logged", async || ensure(lines() > 0, "no line")).await;
    // Calls on an open connection need no file descriptor.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        send(&attacked.bystander, &ordinary_msg()).await.unwrap();
    }
    assert_eq!(lines(), 1);
    rlimit::prlimit(pid, rlimit::Resource::NOFILE, Some((soft, hard)), None).unwrap();
    attacked.assert_serves_others().await;
}
