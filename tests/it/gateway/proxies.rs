//! A proxy between callers and the gateway: the real nginx and HAProxy, with the configuration of docs/proxies.md.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use msg_common::proto::{BatchSendMsgRequest, InboxCursor, Msg, PullMsgsRequest, SendMsgRequest, WatchMsgsRequest};
use msg_common::proto::{StreamSendEntry, StreamSendMsgRequest, watch_msgs_response::Event};
use msg_stack::{Signal, pipe};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::calls::{Client, assert_failed, fields, reason, result};
use crate::support::kafka::msg;
use crate::support::world::{Gateway, World};
use crate::support::{WAIT_TIMEOUT, eventually};

/// Messages of this size make a batch larger than nginx's default limit of 1 MiB for a body.
const ABOVE_1_MIB: usize = 400_000;

/// A running proxy, which is stopped at the end of its test.
struct Proxy {
    address: String,
    child: Child,
    _folder: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // SIGTERM, not SIGKILL: a killed nginx master cannot stop its workers.
        Signal::Term.send(self.child.id());
        let _ = self.child.wait();
    }
}

/// The executable, which Debian installs in a folder of root's `PATH`. If it is not installed, prints that and
/// returns `None`.
#[allow(clippy::explicit_write, reason = "the test runner hides the output of eprintln! if a test passes")]
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        writeln!(std::io::stderr(), "NOT TESTED: {name}, which is not installed: run scripts/setup test as root")
            .unwrap();
    }
    found
}

/// The configuration on the page, with the addresses of this test.
fn documented(language: &str, gateway: &Gateway, listen: &str) -> String {
    let page = include_str!("../../../docs/proxies.md");
    let config = page.split_once(&format!("```{language}\n")).and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let admin = gateway.service.spec().admin.unwrap().port().to_string();
    assert!(config.contains("127.0.0.1:50051") && config.contains("127.0.0.1:8080"), "{config}");
    config.replace("127.0.0.1:50051", &gateway.address).replace("127.0.0.1:8080", listen).replace("9464", &admin)
}

fn start(program: PathBuf, args: impl Fn(&str) -> Vec<String>, config: &str, address: String) -> Proxy {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.conf");
    std::fs::write(&file, config.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child =
        Command::new(program).args(args(file.to_str().unwrap())).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    Proxy { address, child, _folder: folder }
}

/// Starts nginx with these lines in its `http` block.
fn nginx(program: PathBuf, http: &str, address: String) -> Proxy {
    let temp =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path FOLDER/{name};"));
    let config = format!(
        "daemon off; pid FOLDER/pid; error_log stderr; events {{ worker_connections 4096; }} http {{ access_log off; {} {http} }}",
        temp.join(" ")
    );
    start(program, |file| ["-e", "stderr", "-c", file].map(str::to_owned).into(), &config, address)
}

async fn through(proxy: &Proxy) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{}", proxy.address)).unwrap();
    Client::new(eventually("the proxy listens", async || Ok(endpoint.connect().await?)).await)
        .max_decoding_message_size(64 << 20)
}

fn large_batch(recv_id: &str) -> BatchSendMsgRequest {
    let large = |i: u32| msg("alice", recv_id, &format!("large-{i}"), vec![b'x'; ABOVE_1_MIB]);
    BatchSendMsgRequest { msgs: (0..4).map(large).collect(), wait_for: 0 }
}

/// Makes every kind of call, including those that proxies are known to break.
async fn assert_all_calls_work(client: &Client) {
    let mut client = client.clone();
    // Until the proxy knows that the gateway is ready, it responds itself.
    eventually("the proxy serves", async || {
        Ok(client.clone().send_msg(SendMsgRequest { msg: Some(msg("alice", "first", "1", "x")), wait_for: 0 }).await?)
    })
    .await;
    let sent = client.batch_send_msg(large_batch("bob")).await.unwrap().into_inner();
    assert!(sent.results.iter().all(|entry| result(entry).is_ok()), "a body of 1.6 MB passes");

    // The largest error that the gateway returns arrives with all of its details.
    let attributes = (0..64).map(|i| (format!("{}{i}", "k".repeat(200)), "v\0".into())).collect();
    let bad = Msg { attributes, ..Msg::default() };
    let rejected = client.send_msg(SendMsgRequest { msg: Some(bad), wait_for: 0 }).await;
    let details = assert_failed(rejected, Code::InvalidArgument, "INVALID_FIELDS");
    assert!(fields(&details).len() > 5);

    // The watch is open from the start: each event has to arrive immediately, not when a buffer of the proxy is full.
    // It is read concurrently with the stream: behind HAProxy both share a connection to the gateway, and an unread
    // call blocks all others.
    let inboxes = vec![InboxCursor { recv_id: "bob".into(), after_seq: Some(0) }];
    let watch = client.watch_msgs(WatchMsgsRequest { inboxes, omit_content: false }).await.unwrap();
    let mut events = watch.into_inner();
    let watched = tokio::spawn(async move {
        let mut watched = 0;
        while watched < 10 {
            let event = timeout(WAIT_TIMEOUT, events.message())
                .await
                .expect("an event arrives")
                .unwrap()
                .expect("the watch is open");
            if let Some(Event::Msgs(msgs)) = event.event {
                watched += msgs.msgs.len();
            }
        }
    });

    // More bytes on one stream than a body may have. The response to each request is read before the next is sent.
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let mut responses = client.stream_send_msg(Request::new(ReceiverStream::new(receiver))).await.unwrap().into_inner();
    for correlation_id in 0..6 {
        let msg = Some(msg("alice", "bob", &format!("stream-{correlation_id}"), vec![b'y'; ABOVE_1_MIB]));
        let entries = vec![StreamSendEntry { correlation_id, msg }];
        requests.send(StreamSendMsgRequest { entries, wait_for: 0 }).await.unwrap();
        let response = timeout(WAIT_TIMEOUT, responses.message())
            .await
            .expect("a result arrives")
            .unwrap()
            .expect("the stream is open");
        assert_eq!(response.results[0].correlation_id, correlation_id);
        assert!(result(response.results[0].result.as_ref().unwrap()).is_ok());
    }
    drop(requests);
    assert!(timeout(WAIT_TIMEOUT, responses.message()).await.expect("the stream ends").unwrap().is_none());
    watched.await.unwrap();
    let pull = PullMsgsRequest { recv_id: "bob".into(), page_size: 1000, ..PullMsgsRequest::default() };
    let page = client.pull_msgs(pull).await.unwrap().into_inner();
    assert!(page.msgs.len() > 5 && page.next_page_token.is_empty() == (page.msgs.len() == 10), "{}", page.msgs.len());
}

#[tokio::test]
async fn nginx_as_documented_passes_every_call() {
    let Some(program) = program("nginx") else { return };
    let world = World::new("nginx").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let port = pipe::free_port().unwrap();
    let address = port.addr().to_string();
    let proxy = nginx(program, &documented("nginx", &gateway, &address), address);
    assert_all_calls_work(&through(&proxy).await).await;
}

#[tokio::test]
async fn haproxy_as_documented_passes_every_call() {
    let Some(program) = program("haproxy") else { return };
    let world = World::new("haproxy").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let port = pipe::free_port().unwrap();
    let address = port.addr().to_string();
    let config = documented("haproxy", &gateway, &address);
    let proxy = start(program, |file| ["-db", "-f", file].map(str::to_owned).into(), &config, address);
    assert_all_calls_work(&through(&proxy).await).await;
}

/// As docs/proxies.md warns, the proxy makes this error itself: it has no reason, and does not say whether anything
/// was sent.
#[tokio::test]
async fn nginx_with_its_defaults_rejects_large_requests() {
    let Some(program) = program("nginx") else { return };
    let world = World::new("nginx_defaults").await;
    let gateway = world.running_gateway().await;
    let port = pipe::free_port().unwrap();
    let address = port.addr().to_string();
    let http = format!("server {{ listen {address} http2; location / {{ grpc_pass grpc://{}; }} }}", gateway.address);
    let proxy = nginx(program, &http, address);
    let mut client = through(&proxy).await;
    let rejected =
        timeout(Duration::from_secs(30), client.batch_send_msg(large_batch("bob"))).await.expect("the call ends");
    assert_eq!(reason(&rejected.expect_err("a body of 1.6 MB is above its limit")), None);
}
