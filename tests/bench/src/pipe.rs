//! The whole message flow: callers send through the gateway, and the transfer stores, all on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_common::proto::WaitFor;
use msg_stack::Stack;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::callers::Token;
use super::{Error, Load, callers, line, memory, rate, send, start, until};

pub(crate) async fn run(stack: &Stack, load: &Load) -> Result<(), Error> {
    let services = start(stack, "pipe", &load.set).await?;
    let (transfer, sender) = (&services.transfer, &services.gateway);
    let idle = (memory(sender).0, memory(transfer).0);
    println!("{} messages of {} bytes to {} inboxes, {} callers", load.messages, load.body, load.inboxes, load.callers);
    line("idle memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", idle.0, idle.1));

    let channels = callers::connect(&services).await?;
    let clients = callers::clients(channels.clone(), &Token::default());
    let nothing = health_calls(channels, load).await?;
    line("a call that does nothing", format!("{nothing:.0} calls/s"));

    let started = Instant::now();
    let sent = send::unary(&clients, &Arc::new(load.clone()), load.messages, load.callers, WaitFor::Accepted).await?;
    let stored = async || transfer.metric("msg_transfer_stored_messages_total").await;
    until("all rows", Duration::from_secs(600), async || Ok(stored().await? >= load.messages as f64)).await?;
    let all = started.elapsed();
    line("sent and acknowledged by Kafka", format!("{:.0} messages/s", sent.rate));
    line("of the call that does nothing", format!("{:.0} %", 100.0 * sent.rate / nothing));
    line("from the first send to the last row", format!("{:.0} messages/s", rate(load.messages, all)));
    line("SendMsg", sent.quantiles());
    line("peak memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", memory(sender).1, memory(transfer).1));
    services.stop().await;
    Ok(())
}

/// Measures the limit: the same server, connections and callers, with a call that uses neither Kafka nor the database.
async fn health_calls(channels: Vec<Channel>, load: &Load) -> Result<f64, Error> {
    let calls = (load.messages / 4).max(1);
    let measured = callers::run(load.callers, calls, 1, move |caller, _| {
        let mut client = HealthClient::new(channels[caller % channels.len()].clone());
        async move { client.check(HealthCheckRequest::default()).await.map(|_| ()) }
    });
    Ok(measured.await?.rate)
}
