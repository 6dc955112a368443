//! The CPU time that both services need for a message, as a share of the bare gateway's in the same round: the speed of
//! the machine changes all of them.

use std::sync::Arc;

use msg_common::proto::WaitFor;
use msg_stack::{Services, Stack};

use super::callers::{self, Token};
use super::check::{Check, Measured};
use super::cost::Watched;
use super::drain::until_drained;
use super::figure::Output;
use super::limit::Limit;
use super::rounds::{self, Round, Series, Side};
use super::send::Target;
use super::{Error, Load, PARTITIONS, start};

const CALLERS: usize = 256;
/// Messages of each side in a round: with fewer, the unit of CPU times, which is 10 ms, would be visible.
const MESSAGES: usize = 100_000;
/// An estimate of how far the medians of two runs of one build differ; not measured yet.
const TOLERANCE: f64 = 0.15;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Cpu {
    /// Number of rounds, after a warm-up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    pub(crate) check: Check,
}

/// What a side does.
enum Way {
    Send(Target),
    /// Drains what both others have sent.
    Drain,
}

pub(crate) async fn run(stack: &Stack, options: &Cpu, output: &mut Output) -> Result<(), Error> {
    let Services { transfer, gateway, grpc, .. } = &start(stack, "cpu", PARTITIONS, &[]).await?;
    // It starts again for each drain.
    transfer.stop().await;
    let bare = Limit::bare_gateway(stack, PARTITIONS).await?;
    let clients = callers::clients(callers::connect(grpc).await?, &Token::default());
    let sides = [
        Side::limit("bare gateway", Way::Send(bare.target(stack).await?)),
        Side::system("gateway", Way::Send(Target { clients, watched: Watched::new(stack, &[gateway]) })),
        Side::system("transfer, which drains both", Way::Drain),
    ];
    let load = Arc::new(Load::of(20_000, 256));
    let series = rounds::measure(options.rounds, &sides, async |way| match way {
        Way::Send(target) => target.unary(&load, MESSAGES, CALLERS, WaitFor::Accepted).await,
        Way::Drain => {
            let round = until_drained(stack, transfer, None, 2 * MESSAGES, None).await;
            transfer.stop().await;
            round
        }
    });
    let series = series.await?;
    output.add(&format!("SendMsg, {CALLERS} callers, and the drain of its messages"), None, &series);
    bare.service.stop().await;
    gateway.stop().await;
    options.check.judge(&measured(&series))
}

/// Returns the costs of both services, in proportion to the bare gateway's and in seconds for a million messages.
fn measured(series: &[Series]) -> Vec<Measured> {
    let [bare, gateway, transfer] = series else { unreachable!("three sides were measured") };
    let mut measured = Vec::new();
    for (name, series) in [("gateway", gateway), ("transfer", transfer)] {
        let value = series.ratio(bare, own_cpu).median;
        let name_of = |what: &str| format!("{name}: CPU time a message, {what}");
        measured.push(Measured { name: name_of("of the bare gateway's"), value, tolerance: Some(TOLERANCE) });
        // A microsecond for each message is a second for a million of them.
        measured.push(Measured { name: name_of("µs"), value: series.spread(own_cpu).median, tolerance: None });
    }
    measured
}

/// Returns the CPU time of the process that the side measures, which is the first one.
fn own_cpu(round: &Round) -> f64 {
    round.costs.first().map_or(0.0, |cost| cost.cpu)
}
