//! The three ways to send: single calls, batches and streams, each until Kafka has
//! every message. The limits are a server that does nothing, a bare gateway, and librdkafka alone.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::try_join_all;
use msg_common::proto::send_result::Result as Outcome;
use msg_common::proto::{
    BatchSendMsgRequest, SendMsgRequest, SendResult, StreamSendEntry, StreamSendMsgRequest, WaitFor,
};
use msg_stack::Stack;
use tokio::sync::mpsc;

use super::callers::{self, Client, Token, msg};
use super::cost::Watched;
use super::figure::Output;
use super::limit::Limit;
use super::peers::jetstream::{Server, Sync};
use super::rounds::{self, Round, Side};
use super::{Error, Load, librdkafka, line, memory, rate, start};

/// Maximum number of messages of a batch, and of one request on a stream.
const BATCH: usize = 100;
/// Maximum bytes of their bodies, which is below the gateway's limit.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_CALLERS: usize = 32;
const STREAMS: usize = 8;
/// Maximum number of batches in flight on a stream.
const WINDOW: usize = 20;

/// Whom the callers of a side call.
enum Called<'a> {
    Server(Target),
    Peer(&'a Server),
}

/// How a side sends many messages.
enum Way<'a> {
    Librdkafka,
    Batches,
    Streams,
    Peer(&'a Server),
}

pub(crate) async fn run(stack: &Stack, load: &Load, output: &mut Output) -> Result<(), Error> {
    let services = start(stack, "send", load.partitions, &load.set()).await?;
    let gateway = &services.gateway;
    println!("{} messages of {} bytes to {} inboxes", load.messages, load.body, load.inboxes);

    let load = &Arc::new(load.clone());
    let clients = callers::clients(callers::connect(&services.grpc).await?, &Token::default());
    // Only the path into Kafka is measured.
    services.transfer.stop().await;
    let target = Target { clients, watched: Watched::new(stack, &[gateway]) };
    let (nothing, bare) = (Limit::nothing(stack).await?, Limit::bare_gateway(stack, load.partitions).await?);
    let peers = match load.peers {
        true => vec![Server::start(stack, Sync::Default).await?, Server::start(stack, Sync::Always).await?],
        false => Vec::new(),
    };
    let mut sides = vec![
        Side::limit("tonic that does nothing", Called::Server(nothing.target(stack).await?)),
        Side::limit("bare gateway", Called::Server(bare.target(stack).await?)),
        Side::system("gateway", Called::Server(target.clone())),
    ];
    sides.extend(peers.iter().map(|peer| Side::limit(peer.label, Called::Peer(peer))));
    let messages = load.messages / 10;
    let series = rounds::measure(load.rounds, &sides, async |called| match called {
        Called::Server(target) => target.unary(load, messages, load.callers, WaitFor::Accepted).await,
        Called::Peer(server) => server.publish(load, messages, load.callers, true).await,
    });
    output.add(&format!("SendMsg, {} callers", load.callers), None, &series.await?);
    nothing.service.stop().await;
    bare.service.stop().await;

    let mut sides = vec![
        Side::limit("librdkafka alone", Way::Librdkafka),
        Side::system(format!("BatchSendMsg, {BATCH_CALLERS} callers"), Way::Batches),
        Side::system(format!("StreamSendMsg, {STREAMS} streams"), Way::Streams),
    ];
    sides.extend(peers.iter().map(|peer| Side::limit(peer.label, Way::Peer(peer))));
    let what = format!("batches and requests of {}", load.within(BATCH_BYTES, BATCH));
    let series = rounds::measure(load.rounds, &sides, async |way| match way {
        Way::Librdkafka => tokio::task::block_in_place(|| produce(stack, load)),
        Way::Batches => target.batches(load).await,
        Way::Streams => target.streams(load).await,
        Way::Peer(server) => server.publish(load, load.messages, STREAMS, false).await,
    });
    output.add(&what, None, &series.await?);
    line("peak memory, gateway", format!("{:.0} MB", memory(gateway).1));
    gateway.stop().await;
    for peer in &peers {
        peer.service.stop().await;
    }
    Ok(())
}

/// Measures the limit: librdkafka writes the same records with the same acks and linger, without a gateway.
fn produce(stack: &Stack, load: &Load) -> Result<Round, Error> {
    let body = Bytes::from(load.random_body());
    let watched = Watched::new(stack, &[]);
    let meter = watched.start();
    let settings = librdkafka::settings(stack.kafka().bootstrap());
    let duration = librdkafka::write(&settings, load, |n| msg(load, &body, "limit", n))?;
    Ok(Round::new(rate(load.messages, duration), meter.stop(load.messages as f64)))
}

/// A server of the contract, and the processes whose cost is measured.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) clients: Vec<Client>,
    pub(crate) watched: Watched,
}

impl Target {
    /// Sends single messages, each with its own call.
    pub(crate) async fn unary(
        &self,
        load: &Arc<Load>,
        messages: usize,
        callers: usize,
        wait_for: WaitFor,
    ) -> Result<Round, Error> {
        let (clients, load, body) = (self.clients.clone(), load.clone(), Bytes::from(load.random_body()));
        let sender = sender();
        callers::run(&self.watched, callers, messages, 1, move |caller, n| {
            let mut client = clients[caller % clients.len()].clone();
            let msg = Some(msg(&load, &body, &sender, n));
            async move { client.send_msg(SendMsgRequest { msg, wait_for: wait_for.into() }).await.map(|_| ()) }
        })
        .await
    }

    pub(crate) async fn batches(&self, load: &Arc<Load>) -> Result<Round, Error> {
        let (clients, messages, batch) = (self.clients.clone(), load.messages, load.within(BATCH_BYTES, BATCH));
        let (load, body) = (load.clone(), Bytes::from(load.random_body()));
        callers::run(&self.watched, BATCH_CALLERS, messages, batch, move |caller, first| {
            let mut client = clients[caller % clients.len()].clone();
            let msgs = (first..messages.min(first + batch)).map(|n| msg(&load, &body, "batch", n)).collect();
            async move {
                let response = client.batch_send_msg(BatchSendMsgRequest { msgs, wait_for: 0 }).await?.into_inner();
                response.results.iter().try_for_each(accepted)
            }
        })
        .await
    }

    pub(crate) async fn streams(&self, load: &Arc<Load>) -> Result<Round, Error> {
        let (body, batch) = (Bytes::from(load.random_body()), load.within(BATCH_BYTES, BATCH));
        let meter = self.watched.start();
        let started = Instant::now();
        let streams = (0..STREAMS).map(|stream| {
            let (mut client, body) = (self.clients[stream % self.clients.len()].clone(), body.clone());
            let load = load.clone();
            tokio::spawn(async move {
                let (requests, received) = mpsc::channel(4);
                let mine: Vec<usize> = (stream..load.messages).step_by(STREAMS).collect();
                let in_flight = tokio::sync::Semaphore::new(WINDOW * batch);
                let (count, mut confirmed) = (mine.len(), 0);
                let requested = tokio_stream::wrappers::ReceiverStream::new(received);
                let send = async {
                    for chunk in mine.chunks(batch) {
                        let permits = u32::try_from(chunk.len()).expect("a chunk is small");
                        in_flight.acquire_many(permits).await?.forget();
                        let entry = |n: &usize| StreamSendEntry {
                            correlation_id: *n as u64,
                            msg: Some(msg(&load, &body, "stream", *n)),
                        };
                        let entries = chunk.iter().map(entry).collect();
                        requests.send(StreamSendMsgRequest { entries, wait_for: 0 }).await?;
                    }
                    drop(requests);
                    Ok::<_, Error>(())
                };
                let receive = async {
                    let mut responses = client.stream_send_msg(requested).await?.into_inner();
                    while let Some(response) = responses.message().await? {
                        confirmed += response.results.len();
                        in_flight.add_permits(response.results.len());
                        response.results.iter().filter_map(|result| result.result.as_ref()).try_for_each(accepted)?;
                    }
                    Ok::<_, Error>(())
                };
                tokio::try_join!(send, receive)?;
                if confirmed == count {
                    Ok::<(), Error>(())
                } else {
                    Err(format!("{confirmed} of {count} confirmed").into())
                }
            })
        });
        for ended in try_join_all(streams).await? {
            ended?;
        }
        let rate = rate(load.messages, started.elapsed());
        Ok(Round::new(rate, meter.stop(load.messages as f64)))
    }
}

/// Returns a name that no other round uses: a message that was sent before would be a duplicate.
pub(crate) fn sender() -> String {
    format!("sender-{:x}", rand::random::<u64>())
}

pub(crate) fn accepted(result: &SendResult) -> Result<(), Error> {
    match &result.result {
        Some(Outcome::Placement(_)) => Ok(()),
        other => Err(format!("not accepted: {other:?}").into()),
    }
}
