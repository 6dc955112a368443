//! Latency of SendMsg: until the message is stored with callers that wait for each other (closed loop), and until Kafka
//! has it at fixed rates (open loop).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use msg_common::proto::{SendMsgRequest, WaitFor};
use msg_stack::Stack;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::callers::{self, Token, histogram, msg};
use super::cost::Watched;
use super::figure::Output;
use super::librdkafka::Reporting;
use super::limit::Limit;
use super::rounds::{self, Round, Side};
use super::send::{Target, sender};
use super::{Error, Load, line, start};

/// The rates of the open loop, as shares of the gateway's maximum in the closed loop.
const SHARES: [f64; 3] = [0.25, 0.5, 0.75];

#[derive(Debug, clap::Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    load: Load,
    /// Seconds of each round at a fixed rate
    #[arg(long, default_value_t = 4)]
    seconds: u32,
}

/// What a side of the open loop calls.
enum Way {
    Librdkafka(Arc<Reporting>),
    Server(Target),
}

pub(crate) async fn run(stack: &Stack, options: &Latency, output: &mut Output) -> Result<(), Error> {
    let load = &Arc::new(options.load.clone());
    let services = start(stack, "latency", load.partitions, &load.set()).await?;
    let (transfer, gateway) = (&services.transfer, &services.gateway);
    println!("messages of {} bytes to {} inboxes", load.body, load.inboxes);
    let clients = callers::clients(callers::connect(&services.grpc).await?, &Token::default());
    let both = Target { clients: clients.clone(), watched: Watched::new(stack, &[gateway, transfer]) };
    for (callers, messages) in [(1, 300), (64, load.messages / 100), (1000, load.messages / 50)] {
        let side = [Side::system("gateway", ())];
        let series =
            rounds::measure(load.rounds, &side, async |()| both.unary(load, messages, callers, WaitFor::Stored).await);
        output.add(&format!("SendMsg until stored, {callers} callers"), None, &series.await?);
    }
    // Stop the transfer: the rest measures only the path into Kafka.
    transfer.stop().await;

    let bare = Limit::bare_gateway(stack, load.partitions).await?;
    let target = Target { clients, watched: Watched::new(stack, &[gateway]) };
    let sides = [Side::limit("bare gateway", bare.target(stack).await?), Side::system("gateway", target.clone())];
    let series = rounds::measure(load.rounds, &sides, async |target| {
        target.unary(load, load.messages / 20, load.callers, WaitFor::Accepted).await
    });
    let series = series.await?;
    output.add(&format!("SendMsg, {} callers", load.callers), None, &series);
    let maximum = series[1].spread(|round| round.rate).median;

    let seconds = f64::from(options.seconds);
    for rate in SHARES.map(|share| share * maximum) {
        let producer = Reporting::new(stack.kafka().bootstrap(), load.partitions)?;
        let sides = [
            Side::limit("librdkafka alone", Way::Librdkafka(Arc::new(producer))),
            Side::limit("bare gateway", Way::Server(bare.target(stack).await?)),
            Side::system("gateway", Way::Server(target.clone())),
        ];
        let series = rounds::measure(load.rounds, &sides, async |way| match way {
            Way::Librdkafka(producer) => librdkafka(stack, load, producer, rate, seconds).await,
            Way::Server(target) => server(target, load, rate, seconds).await,
        });
        output.add("SendMsg, open loop", Some(rate), &series.await?);
    }
    bare.service.stop().await;
    gateway.stop().await;
    Ok(())
}

async fn server(target: &Target, load: &Arc<Load>, rate: f64, seconds: f64) -> Result<Round, Error> {
    let (clients, load, body) = (target.clients.clone(), load.clone(), Bytes::from(load.random_body()));
    let sender = sender();
    open_loop(&target.watched, rate, seconds, move |n| {
        let mut client = clients[n % clients.len()].clone();
        let msg = Some(msg(&load, &body, &sender, n));
        async move {
            client.send_msg(SendMsgRequest { msg, wait_for: WaitFor::Accepted.into() }).await?;
            Ok(())
        }
    })
    .await
}

async fn librdkafka(
    stack: &Stack,
    load: &Arc<Load>,
    producer: &Arc<Reporting>,
    rate: f64,
    seconds: f64,
) -> Result<Round, Error> {
    let (producer, load, body) = (producer.clone(), load.clone(), Bytes::from(load.random_body()));
    let sender = sender();
    open_loop(&Watched::new(stack, &[]), rate, seconds, move |n| {
        let (producer, msg) = (producer.clone(), msg(&load, &body, &sender, n));
        async move {
            producer.send(msg).await?;
            Ok(())
        }
    })
    .await
}

/// Calls at a fixed rate, however long the responses need. A latency counts from the time at which the call was due, so
/// a server that is stalled delays every call that was due meanwhile.
async fn open_loop<C, F>(watched: &Watched, rate: f64, seconds: f64, call: C) -> Result<Round, Error>
where
    C: Fn(usize) -> F + Send + 'static,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let meter = watched.start();
    let (ended, mut responses) = mpsc::unbounded_channel();
    let (runtime, started) = (Handle::current(), Instant::now());
    // On a thread of its own: the runtime's timers are a millisecond apart.
    thread::Builder::new().name("open-loop".to_owned()).spawn(move || {
        for n in 0..(rate * seconds) as usize {
            let due = started + Duration::from_secs_f64(n as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let (call, ended) = (call(n), ended.clone());
            runtime.spawn(async move {
                let result = call.await;
                // The receiver waits until the last sender is dropped.
                let _ = ended.send((due.elapsed(), result));
            });
        }
    })?;
    let (mut latencies, mut failed, mut error) = (histogram(), 0, None);
    while let Some((latency, result)) = responses.recv().await {
        match result {
            Ok(()) => latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
            Err(reason) => (failed, error) = (failed + 1, Some(reason)),
        }
    }
    let sent = latencies.len() as f64;
    if let Some(error) = error {
        line("failed calls, which have no latency", format!("{failed}; the last one: {error}"));
    }
    Ok(Round { rate: sent / started.elapsed().as_secs_f64(), latencies, costs: meter.stop(sent) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stall_delays_the_calls_that_were_due_meanwhile() {
        let stall = Duration::from_millis(200);
        let ends = tokio::time::Instant::now() + stall;
        let watched = Watched::client();
        let round = open_loop(&watched, 100.0, 0.3, move |_| async move {
            tokio::time::sleep_until(ends).await;
            Ok(())
        });
        let round = round.await.expect("no call fails");
        assert_eq!(round.latencies.len(), 30);
        assert!(round.latencies.max() > 150_000, "{} µs", round.latencies.max());
        let median = round.latencies.value_at_quantile(0.5);
        assert!((20_000..180_000).contains(&median), "calls that were due later wait for less: {median} µs");
    }
}
