//! Watching: measures the time from stored to delivered, and the memory that watchers need.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{BatchSendMsgRequest, InboxCursor, Msg, SessionType, StoredMsg, WatchMsgsRequest};
use msg_stack::Stack;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

use super::cost::Watched;
use super::figure::Output;
use super::rounds::{self, Round, Side};
use super::send::accepted;
use super::{Error, PARTITIONS, callers, line, memory, rate, start};

#[derive(Debug, clap::Args)]
pub(crate) struct Watching {
    /// Number of watch streams, each of one inbox
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Number of HTTP/2 connections that the streams share
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Messages a second, spread over all inboxes
    #[arg(long, default_value_t = 10_000)]
    rate: usize,
    /// Duration of the sends of each round in seconds
    #[arg(long, default_value_t = 5)]
    seconds: usize,
    /// Number of rounds, after a warm-up; a figure is their median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of each message body
    #[arg(long, default_value_t = 256)]
    body: usize,
    /// Additional setting of the services, as NAME=VALUE; repeat the flag for more
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

const BATCH: usize = 100;

pub(crate) async fn run(stack: &Stack, options: &Watching, output: &mut Output) -> Result<(), Error> {
    let services = start(stack, "watch", PARTITIONS, &options.set).await?;
    let (transfer, server) = (&services.transfer, &services.gateway);
    println!("{} watchers over {} connections", options.watchers, options.connections);
    line("gateway's memory before the watchers", format!("{:.0} MB", memory(server).0));

    let started = Instant::now();
    let delivered = Arc::new(Mutex::new(Delivered::new()));
    let endpoint = Channel::from_shared(format!("http://{}", services.grpc))?;
    let mut opening = Vec::new();
    for connection in 0..options.connections {
        let client = MsgGatewayClient::new(endpoint.connect().await?);
        for watcher in (connection..options.watchers).step_by(options.connections) {
            opening.push(watch(client.clone(), watcher, delivered.clone()));
        }
    }
    try_join_all(opening).await?;
    line("time until all watch", format!("{:.1?}", started.elapsed()));
    line("gateway's memory with the watchers", format!("{:.0} MB", memory(server).0));

    let sender = MsgGatewayClient::new(endpoint.connect().await?);
    let watched = Watched::new(stack, &[server, transfer]);
    let (count, mut first) = (options.rate * options.seconds / BATCH * BATCH, 0);
    let side = [Side::system("gateway", ())];
    let series = rounds::measure(options.rounds, &side, async |()| {
        lock(&delivered).latencies.reset();
        let (meter, started) = (watched.start(), Instant::now());
        send(&sender, options, first..first + count).await?;
        let rate = rate(count, started.elapsed());
        first += count;
        super::until("all are delivered", Duration::from_secs(60), async || match &lock(&delivered).failed {
            Some(error) => Err(format!("a watcher failed: {error}").into()),
            None => Ok(lock(&delivered).msgs >= first),
        })
        .await?;
        Ok(Round { rate, latencies: lock(&delivered).latencies.clone(), costs: meter.stop(count as f64) })
    });
    let what = format!("stored to delivered, {} watchers", options.watchers);
    output.add(&what, Some(options.rate as f64), &series.await?);
    let wrong = lock(&delivered).wrong;
    line("out of order, missing or duplicated", wrong);
    line("peak memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", memory(server).1, memory(transfer).1));
    services.stop().await;
    Ok(())
}

/// The messages that all watchers have received.
struct Delivered {
    msgs: usize,
    wrong: usize,
    /// Why a watch ended.
    failed: Option<String>,
    latencies: Histogram<u64>,
}

fn lock(delivered: &Mutex<Delivered>) -> MutexGuard<'_, Delivered> {
    delivered.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Delivered {
    fn new() -> Self {
        Delivered { msgs: 0, wrong: 0, failed: None, latencies: callers::histogram() }
    }

    /// Adds a message. Its `stored_time` is the start of the transaction that wrote the row, so the latency includes
    /// the COMMIT.
    fn add(&mut self, stored: &StoredMsg, now: SystemTime) {
        let stored_time = stored.stored_time.and_then(|time| SystemTime::try_from(time).ok());
        let latency = stored_time.and_then(|time| now.duration_since(time).ok()).unwrap_or_default();
        self.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.msgs += 1;
    }
}

/// Starts a watcher of one inbox. Returns at its first event; a task then receives the others.
async fn watch(
    mut client: MsgGatewayClient<Channel>,
    watcher: usize,
    delivered: Arc<Mutex<Delivered>>,
) -> Result<(), Error> {
    let inbox = InboxCursor { recv_id: format!("inbox-{watcher}"), after_seq: Some(0) };
    let request = WatchMsgsRequest { inboxes: vec![inbox], omit_content: false };
    let mut events = client.watch_msgs(request).await?.into_inner();
    events.message().await?;
    tokio::spawn(async move {
        let mut last = 0;
        let failed = loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                ended => break format!("{ended:?}"),
            };
            let Some(Event::Msgs(watched)) = event.event else { continue };
            let now = SystemTime::now();
            let mut delivered = lock(&delivered);
            for stored in watched.msgs {
                delivered.wrong += usize::from(stored.seq != last + 1);
                last = stored.seq;
                delivered.add(&stored, now);
            }
        };
        lock(&delivered).failed = Some(failed);
    });
    Ok(())
}

/// Sends these messages at the configured rate, however long the responses need.
async fn send(client: &MsgGatewayClient<Channel>, options: &Watching, messages: Range<usize>) -> Result<(), Error> {
    let body: Bytes = (0..options.body).map(|_| rand::random_range(b'a'..=b'z')).collect();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(BATCH as f64 / options.rate as f64));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sends = Vec::new();
    for first in messages.step_by(BATCH) {
        ticks.tick().await;
        let msg = |n: usize| Msg {
            recv_id: format!("inbox-{}", n.wrapping_mul(7919) % options.watchers),
            send_id: "bench".into(),
            client_msg_id: n.to_string(),
            session_type: SessionType::Single.into(),
            content_type: "text/plain".into(),
            content: body.clone(),
            ..Msg::default()
        };
        let request = BatchSendMsgRequest { msgs: (first..first + BATCH).map(msg).collect(), wait_for: 0 };
        let mut client = client.clone();
        sends.push(tokio::spawn(async move {
            client.batch_send_msg(request).await?.into_inner().results.iter().try_for_each(accepted)
        }));
    }
    for send in sends {
        send.await??;
    }
    Ok(())
}
