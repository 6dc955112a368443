//! The load: a process of its own that sends and reads through the gateways, and writes down what it asked and what it was told.
//! Owns its arguments, its connections and its end.

mod backoff;
pub(crate) mod caller;
mod calls;
mod inboxes;
mod outcome;
mod pace;
pub(crate) mod planned;
mod pull;
mod reader;
mod sender;
pub(crate) mod status;
mod stream;
mod watch;
mod window;

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::Args;
use msg_common::config::parse_duration;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as flag;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use self::caller::Caller;
use self::inboxes::Inboxes;
use self::pace::Pace;
use self::reader::Reader;
use self::sender::Sender;
use self::status::Accepted;
use super::history::Writer;
use super::message::{Computed, Messages};

/// So many senders or readers share their connections, one to each gateway.
const SHARING: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Beyond the call's own time-out, which a dead connection or a stopped gateway does not keep.
const GRACE: Duration = Duration::from_secs(1);
/// Once it is told to stop, for everything that was begun.
const DRAIN: Duration = Duration::from_secs(60);
/// How many of the requests wait until the rows are there.
const STORED_SHARE: f64 = 0.1;
/// The shares of the rate, in which the kinds that are there divide it.
const UNARY: u32 = 20;
const BATCH: u32 = 40;
const STREAM: u32 = 40;

/// A client of one gateway.
pub type Client = MsgGatewayClient<Channel>;

/// `msg-dev lab-load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Addresses of the gateways (host:port)
    #[arg(long = "gateway", required = true, value_name = "ADDR")]
    pub(crate) gateways: Vec<String>,
    /// File for the history; it must not be there
    #[arg(long, value_name = "FILE")]
    pub(crate) history: PathBuf,
    /// The first sender's number; the others' and the readers' follow it
    #[arg(long, value_name = "N")]
    pub(crate) first_sender: u32,
    /// Inboxes that all senders share
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..i64::from(inboxes::PRIVATE)))]
    pub(crate) inboxes: u32,
    /// New messages a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: u32,
    /// Senders with SendMsg
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) unary: u32,
    /// Senders with BatchSendMsg
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) batch: u32,
    /// Senders with StreamSendMsg
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) stream: u32,
    /// Readers with PullMsgs and GetMaxSeqs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) pullers: u32,
    /// Readers with WatchMsgs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) watchers: u32,
    /// Of the random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The deadline of a call
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) call_timeout: Duration,
}

impl LoadArgs {
    pub(crate) fn senders(&self) -> u32 {
        self.unary + self.batch + self.stream
    }

    /// How many numbers it takes, from `first_sender` on: another process begins behind them.
    pub(crate) fn numbers(&self) -> u32 {
        self.senders() + self.pullers + self.watchers
    }
}

/// What all senders and readers of the process share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) history: Writer,
    pub(crate) calls: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) messages: Box<dyn Messages>,
    /// The share of the requests that wait until their messages are stored.
    pub(crate) stored_share: f64,
    /// What may be asked for.
    pub(crate) accepted: Accepted,
    pub(crate) call_timeout: Duration,
    pub(crate) stop: flag::Receiver<bool>,
}

impl Load {
    /// Nothing new is to be begun.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// After this a call is not waited for any more.
    pub(crate) fn patience(&self) -> Duration {
        self.call_timeout + GRACE
    }
}

/// Runs until it is told to stop (SIGTERM), and then until what was begun has its outcome.
pub async fn run(args: LoadArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut term = signal(SignalKind::terminate())?;
    let (stop, stopped) = flag::channel(false);
    let load = Arc::new(Load {
        history: Writer::create(&args.history)?,
        calls: AtomicU64::new(0),
        streams: AtomicU64::new(0),
        messages: Box::new(Computed),
        stored_share: STORED_SHARE,
        accepted: Accepted::default(),
        call_timeout: args.call_timeout,
        stop: stopped,
    });
    let inboxes = Inboxes { shared: args.inboxes };
    let links = links(&args.gateways, (args.numbers() as usize).div_ceil(SHARING))?;
    let links = |place: u32| links[place as usize / SHARING].clone();
    let rng = |place: u32| StdRng::seed_from_u64(args.seed.rotate_left(32) ^ u64::from(args.first_sender + place));

    let mut senders = JoinSet::new();
    let all = [(args.unary, UNARY), (args.batch, BATCH), (args.stream, STREAM)];
    let shares: u32 = all.iter().filter(|(count, _)| *count > 0).map(|(_, share)| share).sum();
    let mut place = 0;
    for (kind, (count, share)) in all.into_iter().enumerate() {
        let pace = Arc::new(Pace::new(f64::from(args.rate * share) / f64::from(shares.max(1))));
        for _ in 0..count {
            let caller = Caller::new(load.clone(), links(place), args.first_sender + place, rng(place));
            let sender = Sender::new(caller, pace.clone(), inboxes);
            match kind {
                0 => senders.spawn(calls::one_by_one(sender)),
                1 => senders.spawn(calls::in_batches(sender)),
                _ => senders.spawn(stream::run(sender)),
            };
            place += 1;
        }
    }
    let mut readers = JoinSet::new();
    for place in place..args.numbers() {
        let owners = args.first_sender..args.first_sender + args.senders();
        let reader = Reader::new(load.clone(), links(place), args.first_sender + place, owners, inboxes, rng(place));
        match place < args.senders() + args.pullers {
            true => readers.spawn(pull::run(reader)),
            false => readers.spawn(watch::run(reader)),
        };
    }

    tokio::select! {
        _ = term.recv() => {}
        // While nobody stops them they end only when the history cannot be written.
        Some(ended) = senders.join_next() => return flat(ended),
        Some(ended) = readers.join_next() => return flat(ended),
    }
    stop.send_replace(true);
    let settled = async {
        while let Some(ended) = senders.join_next().await {
            flat(ended)?;
        }
        Ok(())
    };
    // What is still open then is unknown, and the history says so.
    timeout(DRAIN, settled).await.unwrap_or(Ok(()))
}

fn flat(ended: Result<io::Result<()>, JoinError>) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(ended??)
}

/// For each of `count` groups of senders and readers, a connection to each gateway. It comes back by itself when it breaks, and breaks by
/// itself when nobody answers.
pub(crate) fn links(gateways: &[String], count: usize) -> Result<Vec<Vec<Client>>, tonic::transport::Error> {
    let connect = |gateway: &String| {
        let endpoint = Endpoint::from_shared(format!("http://{gateway}"))?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        Ok(MsgGatewayClient::new(endpoint.connect_lazy()).max_decoding_message_size(8 << 20))
    };
    (0..count).map(|_| gateways.iter().map(connect).collect()).collect()
}
