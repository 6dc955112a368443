//! The whole message flow: callers send through the gateway, and the transfer stores, all on this machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_common::proto::{Msg, SendMsgRequest, SessionType};
use msg_stack::Stack;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{Error, Load, counter, line, memory, rate, start, until};

/// HTTP/2 connections that the callers share.
const CONNECTIONS: usize = 4;

pub(crate) async fn run(stack: &Stack, load: &Load) -> Result<(), Error> {
    let services = start(stack, "pipe", &load.set).await?;
    let (transfer, sender) = (&services.transfer, &services.gateway);
    let idle = (memory(sender).0, memory(transfer).0);
    println!("{} messages of {} bytes to {} inboxes, {} callers", load.messages, load.body, load.inboxes, load.callers);
    line("idle memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", idle.0, idle.1));

    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(Channel::from_shared(format!("http://{}", services.grpc))?.connect().await?);
    }
    let nothing = health_calls(&channels, load).await?;
    line("a call that does nothing", format!("{nothing:.0} calls/s"));

    let started = Instant::now();
    let latencies = send_all(&channels, load).await?;
    let sent = started.elapsed();
    let stored = async || counter(transfer, "msg_transfer_stored_messages_total").await;
    until("all rows", Duration::from_secs(600), async || Ok(stored().await? >= load.messages as f64)).await?;
    let all = started.elapsed();
    line("sent and acknowledged by Kafka", format!("{:.0} messages/s", rate(load.messages, sent)));
    line("of the call that does nothing", format!("{:.0} %", 100.0 * rate(load.messages, sent) / nothing));
    line("from the first send to the last row", format!("{:.0} messages/s", rate(load.messages, all)));
    let at = |quantile| Duration::from_micros(latencies.value_at_quantile(quantile));
    line("SendMsg p50, p99, max", format!("{:?}, {:?}, {:?}", at(0.5), at(0.99), at(1.0)));
    line("peak memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", memory(sender).1, memory(transfer).1));
    services.stop().await;
    Ok(())
}

/// Measures the limit: the same server, connections and callers, with a call that uses neither Kafka nor the database.
async fn health_calls(channels: &[Channel], load: &Load) -> Result<f64, Error> {
    let calls = (load.messages / 4).max(1);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let callers = (0..load.callers).map(|caller| {
        let mut client = HealthClient::new(channels[caller % channels.len()].clone());
        let next = next.clone();
        tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < calls {
                client.check(HealthCheckRequest::default()).await?;
            }
            Ok::<(), tonic::Status>(())
        })
    });
    for result in try_join_all(callers).await? {
        result?;
    }
    Ok(rate(calls, started.elapsed()))
}

async fn send_all(channels: &[Channel], load: &Load) -> Result<Histogram<u64>, Error> {
    let next = Arc::new(AtomicUsize::new(0));
    let callers = (0..load.callers).map(|caller| {
        let mut client = MsgGatewayClient::new(channels[caller % channels.len()].clone());
        let (next, messages) = (next.clone(), load.messages);
        let body = bytes::Bytes::from(load.random_body());
        let inboxes: Vec<String> = (caller..load.inboxes).step_by(load.callers).map(|n| format!("inbox-{n}")).collect();
        tokio::spawn(async move {
            let mut latencies = Histogram::<u64>::new_with_max(60_000_000, 3).expect("the bounds are good");
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= messages {
                    return Ok::<_, tonic::Status>(latencies);
                }
                let msg = Msg {
                    recv_id: inboxes.get(n % inboxes.len().max(1)).cloned().unwrap_or_else(|| "inbox".to_owned()),
                    send_id: format!("sender-{caller}"),
                    client_msg_id: n.to_string(),
                    session_type: SessionType::Single.into(),
                    content_type: "text/plain".into(),
                    content: body.clone(),
                    ..Msg::default()
                };
                let started = Instant::now();
                client.send_msg(SendMsgRequest { msg: Some(msg), wait_for: 0 }).await?;
                latencies.saturating_record(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        })
    });
    let mut all = Histogram::<u64>::new_with_max(60_000_000, 3)?;
    for latencies in try_join_all(callers).await? {
        all.add(latencies?)?;
    }
    Ok(all)
}
