//! The whole message flow: callers send through the gateway, and the transfer stores, all on this machine. The
//! limit is a server of the same contract that does nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use msg_common::proto::WaitFor;
use msg_stack::Stack;

use super::callers::Token;
use super::cost::Watched;
use super::figure::Output;
use super::limit::Limit;
use super::rounds::{self, Round, Series, Side};
use super::send::Target;
use super::{Error, Load, callers, line, memory, rate, start, until};

/// What a side calls.
enum Way {
    Nothing,
    Pipe,
}

pub(crate) async fn run(stack: &Stack, load: &Load, output: &mut Output) -> Result<(), Error> {
    let services = start(stack, "pipe", load.partitions, &load.set()).await?;
    let (transfer, gateway) = (&services.transfer, &services.gateway);
    println!("{} messages of {} bytes to {} inboxes, {} callers", load.messages, load.body, load.inboxes, load.callers);
    let load = &Arc::new(load.clone());
    let clients = callers::clients(callers::connect(&services.grpc).await?, &Token::default());
    let target = Target { clients, watched: Watched::new(stack, &[gateway, transfer]) };
    let nothing = Limit::nothing(stack).await?;
    let limit = nothing.target(stack).await?;

    let messages = (load.messages / 5).max(1);
    let stored = async || Ok::<f64, Error>(transfer.metric("msg_transfer_stored_messages_total").await?);
    // From the first send to the last row, with the cost of both.
    let mut rows = Vec::new();
    let sides = [Side::limit("tonic that does nothing", Way::Nothing), Side::system("sent", Way::Pipe)];
    let series = rounds::measure(load.rounds, &sides, async |way| match way {
        Way::Nothing => limit.unary(load, messages, load.callers, WaitFor::Accepted).await,
        Way::Pipe => {
            let (meter, before, started) = (target.watched.start(), stored().await?, Instant::now());
            let sent = target.unary(load, messages, load.callers, WaitFor::Accepted).await?;
            let wanted = before + messages as f64;
            until("all rows", Duration::from_secs(600), async || Ok(stored().await? >= wanted)).await?;
            rows.push(Round::new(rate(messages, started.elapsed()), meter.stop(messages as f64)));
            Ok(sent)
        }
    });
    let mut series = series.await?;
    // The first one is the warm-up's.
    series.push(Series::system("stored", rows.split_off(1)));
    output.add(&format!("SendMsg with the whole pipe, {} callers", load.callers), None, &series);
    line("peak memory, gateway and transfer", format!("{:.0} MB, {:.0} MB", memory(gateway).1, memory(transfer).1));
    nothing.service.stop().await;
    services.stop().await;
    Ok(())
}
