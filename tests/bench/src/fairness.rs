//! What a greedy caller costs the others: the latency of callers that send at a fixed pace, alone and next to one caller
//! that has 100 times its share to send, with one value of CALLER_SHARE after the other.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use msg_common::proto::SendMsgRequest;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_stack::{Services, Stack};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use super::callers::{self, histogram};
use super::cost::Watched;
use super::figure::Output;
use super::greedy::{GreedyArgs, Way};
use super::load::Load;
use super::rounds::{Round, Series};
use super::{Error, PARTITIONS, TOPIC, line, rate, settings, until};

/// How many times its share the greedy caller tries to have in flight.
const TIMES: usize = 100;
/// MAX_INFLIGHT_MSGS of the gateways.
const MAX_INFLIGHT: usize = 20_000;
/// Seconds of the warm-up.
const WARM_UP: u32 = 5;
/// The time in which the greedy caller has to get messages through.
const START: Duration = Duration::from_secs(60);

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
    /// Values of CALLER_SHARE; 0 is no share
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1])]
    shares: Vec<usize>,
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

pub(crate) async fn run(stack: &Stack, options: &Fairness, output: &mut Output) -> Result<(), Error> {
    stack.kafka().create_topic(TOPIC, PARTITIONS, &[]).await?;
    let url = stack.postgres().create_database("fairness").await?;
    let inflight = MAX_INFLIGHT.to_string();
    for share in &options.shares {
        let wanted = if *share == 0 { MAX_INFLIGHT } else { TIMES * share * MAX_INFLIGHT / 100 };
        println!(
            "{} callers at {} messages/s each; the greedy caller tries to have {wanted} of {inflight} in flight",
            options.polite, options.pace
        );
        let share = share.to_string();
        let mut settings = settings(&options.set)?;
        settings.extend([("CALLER_SHARE", share.as_str()), ("MAX_INFLIGHT_MSGS", inflight.as_str())]);
        let services = stack.pipe(TOPIC, PARTITIONS, &url).start(stack.logs(), &settings).await?;
        // The rest of the machine measures only the path into Kafka.
        services.transfer.stop().await;
        measure(stack, &services, &Fairness { seconds: WARM_UP, ..options.clone() }, Some((Way::Batches, wanted)))
            .await?;
        let mut p99 = Vec::new();
        for way in [None, Some(Way::Streams), Some(Way::Batches)] {
            let round = measure(stack, &services, options, way.map(|way| (way, wanted))).await?;
            p99.push(round.latencies.value_at_quantile(0.99) as f64);
            let side = way.map_or("alone".to_owned(), |way| format!("with {way:?}"));
            let offered = f64::from(options.pace) * options.polite as f64;
            let what = format!("callers at a fixed pace, CALLER_SHARE={share}");
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
    stack: &Stack,
    services: &Services,
    options: &Fairness,
    greedy: Option<(Way, usize)>,
) -> Result<Round, Error> {
    let sent = async || services.gateway.metric("msg_gateway_messages_total").await.unwrap_or_default();
    let greedy = match greedy {
        Some((way, wanted)) => {
            let gateway = services.grpc.to_string();
            let before = sent().await;
            let args = GreedyArgs { gateway, way, wanted, inboxes: options.inboxes, body: options.body };
            let greedy = args.start(stack)?;
            until("the greedy caller sends", START, async || Ok(sent().await > before)).await?;
            Some(greedy)
        }
        None => None,
    };
    let services_watched: Vec<_> = [&services.gateway].into_iter().chain(&greedy).collect();
    let watched = Watched::new(stack, &services_watched);
    let (before, meter, started) = (sent().await, watched.start(), Instant::now());
    let load = Load::of(options.inboxes, options.body);
    let body = Bytes::from(load.random_body());
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
    let (duration, greedy_msgs) = (started.elapsed(), sent().await - before);
    let polite_msgs = usize::try_from(sum.len())?;
    let costs = meter.stop(polite_msgs as f64 + greedy_msgs);
    if let Some(greedy) = greedy {
        greedy.kill().await;
    }
    line("rejected; greedy messages/s", format!("{rejected}; {:.0}", greedy_msgs / duration.as_secs_f64()));
    Ok(Round { rate: rate(polite_msgs, duration), latencies: sum, costs })
}

/// Sends one message at each tick, whatever became of the earlier ones. Returns the latencies and the number of rejected
/// messages.
async fn polite(
    address: &str,
    load: &Load,
    body: &Bytes,
    options: &Fairness,
    caller: usize,
) -> Result<(Histogram<u64>, usize), Error> {
    let channel = Channel::from_shared(address.to_owned())?.connect().await?;
    let client = MsgGatewayClient::new(channel);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.pace);
    let sender = format!("polite {caller} {:?}", std::time::SystemTime::now());
    let mut calls = JoinSet::new();
    for n in 0..(options.pace * options.seconds) as usize {
        let due = ticks.tick().await;
        let msg = Some(callers::msg(load, body, &sender, n));
        let mut client = client.clone();
        calls.spawn(async move {
            let result = client.send_msg(SendMsgRequest { msg, wait_for: 0 }).await;
            (result, due.elapsed())
        });
    }
    let (mut latencies, mut rejected) = (histogram(), 0);
    while let Some(call) = calls.join_next().await {
        let (result, latency) = call?;
        match result {
            Ok(_) => latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
            Err(status) if status.code() == Code::ResourceExhausted => rejected += 1,
            Err(status) => return Err(status.into()),
        }
    }
    Ok((latencies, rejected))
}
