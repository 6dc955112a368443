//! What a greedy caller costs the others: the latency of callers that send at a fixed pace, alone and next to one caller
//! that has 100 times its share to send, without and with CALLER_SHARE.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::future::{join_all, try_join_all};
use hdrhistogram::Histogram;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{BatchSendMsgRequest, Msg, SendMsgRequest, StreamSendEntry, StreamSendMsgRequest};
use msg_stack::{Services, Stack};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::callers::{self, histogram};
use super::cost::Watched;
use super::figure::Output;
use super::rounds::{Round, Series};
use super::{Error, Load, PARTITIONS, TOPIC, line, rate, settings};

/// How many times its share the greedy caller tries to have in flight.
const TIMES: usize = 100;
/// MAX_INFLIGHT_MSGS of the gateways.
const MAX_INFLIGHT: usize = 20_000;
/// Messages of a batch, and of one request on a stream.
const BATCH: usize = 500;
/// Messages without a result on one stream: MAX_STREAM_INFLIGHT_MSGS.
const WINDOW: usize = 1000;
/// The delay before a rejected batch is sent again. The gateway's own delays are 50 to 150 ms.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Args)]
pub(crate) struct Fairness {
    /// Number of callers that send at a fixed pace, each on its own connection
    #[arg(long, default_value_t = 4)]
    polite: usize,
    /// Messages per second of each of them
    #[arg(long, default_value_t = 100)]
    pace: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// CALLER_SHARE of the gateway that limits the greedy caller
    #[arg(long, default_value_t = 1)]
    share: usize,
    /// Bytes of each message body
    #[arg(long, default_value_t = 256)]
    body: usize,
    /// Number of inboxes that the messages are sent to
    #[arg(long, default_value_t = 20_000)]
    inboxes: usize,
    /// Additional setting of the services, as NAME=VALUE; repeat the flag for more
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

impl Fairness {
    fn load(&self) -> Load {
        Load {
            messages: 0,
            inboxes: self.inboxes,
            body: self.body,
            callers: 0,
            rounds: 1,
            variants: false,
            against: None,
            peers: false,
            set: self.set.clone(),
        }
    }
}

/// How the greedy caller sends.
#[derive(Clone, Copy, Debug)]
enum Greedy {
    Streams,
    Batches,
}

pub(crate) async fn run(stack: &Stack, options: &Fairness, output: &mut Output) -> Result<(), Error> {
    stack.kafka().create_topic(TOPIC, PARTITIONS, &[]).await?;
    let url = stack.postgres().create_database("fairness").await?;
    let share = options.share.to_string();
    let inflight = MAX_INFLIGHT.to_string();
    println!(
        "{} callers at {} messages/s each; the greedy caller has {TIMES} times {share} % of {inflight} to send",
        options.polite, options.pace
    );
    for value in ["0", share.as_str()] {
        let mut settings = settings(&options.set)?;
        settings.extend([("CALLER_SHARE", value), ("MAX_INFLIGHT_MSGS", inflight.as_str())]);
        let services = stack.pipe(TOPIC, PARTITIONS, &url).start(stack.logs(), &settings).await?;
        // The rest of the machine measures only the path into Kafka.
        services.transfer.stop().await;
        let watched = Watched::new(stack, &[&services.gateway]);
        let mut p99 = Vec::new();
        for greedy in [None, Some(Greedy::Streams), Some(Greedy::Batches)] {
            let round = measure(&services, &watched, options, greedy).await?;
            p99.push(round.latencies.value_at_quantile(0.99) as f64);
            let side = greedy.map_or("alone".to_owned(), |greedy| format!("with {greedy:?}"));
            let offered = f64::from(options.pace) * options.polite as f64;
            let what = format!("callers at a fixed pace, CALLER_SHARE={value}");
            output.add(&what, Some(offered), &[Series::system(&side, vec![round])]);
        }
        line("times the p99 alone", format!("streams {:.1}, batches {:.1}", p99[1] / p99[0], p99[2] / p99[0]));
        services.gateway.stop().await;
    }
    Ok(())
}

/// Measures the callers at a fixed pace: the latency from the time at which a message was due to its response. The cost
/// is of all messages, the greedy caller's too.
async fn measure(
    services: &Services,
    watched: &Watched,
    options: &Fairness,
    greedy: Option<Greedy>,
) -> Result<Round, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let (load, body) = (Arc::new(options.load()), Bytes::from(options.load().random_body()));
    let accepted = Arc::new(AtomicUsize::new(0));
    let (meter, started) = (watched.start(), Instant::now());
    let rivals = match greedy {
        Some(greedy) => {
            let channel = Channel::from_shared(format!("http://{}", services.grpc))?.connect().await?;
            let client = MsgGatewayClient::new(channel).max_decoding_message_size(8 << 20);
            let wanted = TIMES * options.share * MAX_INFLIGHT / 100;
            let count = match greedy {
                Greedy::Streams => wanted.div_ceil(WINDOW),
                Greedy::Batches => wanted.div_ceil(BATCH),
            };
            let rival = |number: usize| Rival {
                client: client.clone(),
                load: load.clone(),
                body: body.clone(),
                sender: format!("{greedy:?} {number} {:?}", started.elapsed()),
                stop: stop.clone(),
                accepted: accepted.clone(),
            };
            (0..count).map(|number| tokio::spawn(rival(number).run(greedy))).collect()
        }
        None => Vec::new(),
    };
    let polite = (0..options.polite).map(|caller| {
        let (load, body, options) = (load.clone(), body.clone(), options.clone());
        let address = format!("http://{}", services.grpc);
        tokio::spawn(async move { polite(&address, &load, &body, &options, caller).await })
    });
    let (mut sum, mut rejected) = (histogram(), 0);
    for one in try_join_all(polite).await? {
        let (latencies, failed) = one?;
        sum.add(latencies)?;
        rejected += failed;
    }
    let (duration, greedy_msgs) = (started.elapsed(), accepted.load(Ordering::Relaxed));
    let polite_msgs = usize::try_from(sum.len())? - rejected;
    let costs = meter.stop((polite_msgs + greedy_msgs) as f64);
    stop.store(true, Ordering::Relaxed);
    for one in join_all(rivals).await {
        one??;
    }
    line("rejected; greedy messages/s", format!("{rejected}; {:.0}", rate(greedy_msgs, duration)));
    Ok(Round { rate: rate(polite_msgs, duration), latencies: sum, costs })
}

/// Sends one message at each tick. Returns the latencies and the number of rejected messages.
async fn polite(
    address: &str,
    load: &Load,
    body: &Bytes,
    options: &Fairness,
    caller: usize,
) -> Result<(Histogram<u64>, usize), Error> {
    let channel = Channel::from_shared(address.to_owned())?.connect().await?;
    let mut client = MsgGatewayClient::new(channel);
    let (mut latencies, mut rejected) = (histogram(), 0);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.pace);
    let sender = format!("polite {caller} {:?}", std::time::SystemTime::now());
    for n in 0..(options.pace * options.seconds) as usize {
        let due = ticks.tick().await;
        let msg = Some(callers::msg(load, body, &sender, n));
        match client.send_msg(SendMsgRequest { msg, wait_for: 0 }).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::ResourceExhausted => rejected += 1,
            Err(status) => return Err(status.into()),
        }
        latencies.saturating_record(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok((latencies, rejected))
}

/// One task of the greedy caller. All of them share a connection.
struct Rival {
    client: MsgGatewayClient<Channel>,
    load: Arc<Load>,
    body: Bytes,
    sender: String,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

impl Rival {
    async fn run(self, greedy: Greedy) -> Result<(), Error> {
        match greedy {
            Greedy::Streams => self.stream().await,
            Greedy::Batches => self.batches().await,
        }
    }

    fn msg(&self, n: usize) -> Msg {
        callers::msg(&self.load, &self.body, &self.sender, n)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn batches(self) -> Result<(), Error> {
        let mut first = 0;
        while !self.is_stopped() {
            let msgs = (first..first + BATCH).map(|n| self.msg(n)).collect();
            match self.client.clone().batch_send_msg(BatchSendMsgRequest { msgs, wait_for: 0 }).await {
                Ok(_) => {
                    self.accepted.fetch_add(BATCH, Ordering::Relaxed);
                    first += BATCH;
                }
                Err(status) if status.code() == Code::ResourceExhausted => tokio::time::sleep(RETRY).await,
                Err(status) => return Err(status.into()),
            }
        }
        Ok(())
    }

    async fn stream(self) -> Result<(), Error> {
        let (requests, received) = mpsc::channel(1);
        let window = Semaphore::new(WINDOW);
        let send = async {
            let mut first = 0;
            while !self.is_stopped() {
                window
                    .acquire_many(BATCH as u32)
                    .await
                    .map_err(|_| Status::cancelled("the stream has ended"))?
                    .forget();
                let entry = |n: usize| StreamSendEntry { correlation_id: n as u64, msg: Some(self.msg(n)) };
                let entries = (first..first + BATCH).map(entry).collect();
                requests
                    .send(StreamSendMsgRequest { entries, wait_for: 0 })
                    .await
                    .map_err(|_| "the stream has ended")?;
                first += BATCH;
            }
            drop(requests);
            Ok::<_, Error>(())
        };
        let receive = async {
            let mut client = self.client.clone();
            let mut responses = client.stream_send_msg(ReceiverStream::new(received)).await?.into_inner();
            while let Some(response) = responses.message().await? {
                self.accepted.fetch_add(response.results.len(), Ordering::Relaxed);
                window.add_permits(response.results.len());
            }
            Ok::<_, Error>(())
        };
        tokio::try_join!(send, receive)?;
        Ok(())
    }
}
