//! The load: a process of its own that sends and reads through the gateways, and records its requests and their
//! responses. Owns the arguments and the end of the process.

pub(crate) mod caller;
mod calls;
pub(crate) mod connect;
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
use msg_common::backoff::Backoff;
use msg_common::config::parse_duration;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as flag;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

use self::caller::Caller;
pub use self::connect::Client;
use self::connect::{Access, links};
use self::inboxes::Inboxes;
use self::pace::Pace;
use self::reader::Reader;
use self::sender::Sender;
use self::status::Accepted;
use super::error::LabError;
use super::history::Writer;
use super::message::{Computed, Messages};

/// How many senders or readers share connections, one to each gateway.
const SHARING: usize = 8;
/// The wait before a retry, unless the gateway requests a longer one.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// Additional time for a call beyond its own timeout, which a dead connection or a frozen gateway does not observe.
const GRACE: Duration = Duration::from_secs(1);
/// The maximum time from the stop signal until every outcome is known.
const DRAIN: Duration = Duration::from_secs(60);
const STORED_SHARE: f64 = 0.1;
/// The shares of the rate. The kinds of senders that exist divide the rate by these.
const UNARY: u32 = 20;
const BATCH: u32 = 40;
const STREAM: u32 = 40;

/// The arguments of `msg-dev lab-load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Addresses of the gateways (host:port)
    #[arg(long = "gateway", required = true, value_name = "ADDR")]
    pub(crate) gateways: Vec<String>,
    /// File for the history; it must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) history: PathBuf,
    /// Number of the first sender; the other senders and the readers have the numbers after it
    #[arg(long, value_name = "N")]
    pub(crate) first_sender: u32,
    /// Number of inboxes that all senders share
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..i64::from(inboxes::PRIVATE)))]
    pub(crate) inboxes: u32,
    /// New messages to send a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: u32,
    /// Number of senders with SendMsg
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) unary: u32,
    /// Number of senders with BatchSendMsg
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) batch: u32,
    /// Number of senders with StreamSendMsg
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) stream: u32,
    /// Number of readers with PullMsgs and GetMaxSeqs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) pullers: u32,
    /// Number of readers with WatchMsgs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) watchers: u32,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Timeout of a call, such as `5s` or `250ms`
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) call_timeout: Duration,
    /// File with the CA of the gateways, in PEM: connections use TLS
    #[arg(long, value_name = "FILE", requires = "token_file")]
    pub(crate) ca_file: Option<PathBuf>,
    /// File with the token that each call carries
    #[arg(long, value_name = "FILE", requires = "ca_file")]
    pub(crate) token_file: Option<PathBuf>,
}

impl LoadArgs {
    fn access(&self) -> Result<Access, LabError> {
        match (&self.ca_file, &self.token_file) {
            (Some(ca), Some(token)) => Access::read(ca, token),
            _ => Ok(Access::Plain),
        }
    }

    pub(crate) fn senders(&self) -> u32 {
        self.unary + self.batch + self.stream
    }

    /// How many numbers this process uses, from `first_sender` on. Another process starts after them.
    pub(crate) fn numbers(&self) -> u32 {
        self.senders() + self.pullers + self.watchers
    }
}

/// The state that all senders and readers of the process share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) history: Writer,
    pub(crate) calls: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) messages: Box<dyn Messages>,
    pub(crate) stored_share: f64,
    /// Accepted messages that readers may query.
    pub(crate) accepted: Accepted,
    pub(crate) call_timeout: Duration,
    pub(crate) stop: flag::Receiver<bool>,
}

impl Load {
    /// Whether no new message may be sent.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// After this time the sender stops waiting for a call.
    pub(crate) fn local_timeout(&self) -> Duration {
        self.call_timeout + GRACE
    }
}

/// Runs until SIGTERM, and then until the outcome of every message is known.
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
    let links = links(&args.gateways, (args.numbers() as usize).div_ceil(SHARING), &args.access()?)?;
    let links = |number: u32| links[number as usize / SHARING].clone();
    let rng = |number: u32| StdRng::seed_from_u64(args.seed.rotate_left(32) ^ u64::from(args.first_sender + number));

    let mut senders = JoinSet::new();
    let all = [(args.unary, UNARY), (args.batch, BATCH), (args.stream, STREAM)];
    let shares: u32 = all.iter().filter(|(count, _)| *count > 0).map(|(_, share)| share).sum();
    let mut number = 0;
    for (kind, (count, share)) in all.into_iter().enumerate() {
        let pace = Arc::new(Pace::new(f64::from(args.rate * share) / f64::from(shares.max(1))));
        for _ in 0..count {
            let caller = Caller::new(load.clone(), links(number), args.first_sender + number, rng(number));
            let sender = Sender::new(caller, pace.clone(), inboxes);
            match kind {
                0 => senders.spawn(calls::one_by_one(sender)),
                1 => senders.spawn(calls::in_batches(sender)),
                _ => senders.spawn(stream::run(sender)),
            };
            number += 1;
        }
    }
    let mut readers = JoinSet::new();
    for number in number..args.numbers() {
        let owners = args.first_sender..args.first_sender + args.senders();
        let reader = Reader::new(load.clone(), links(number), args.first_sender + number, owners, inboxes, rng(number));
        match number < args.senders() + args.pullers {
            true => readers.spawn(pull::run(reader)),
            false => readers.spawn(watch::run(reader)),
        };
    }

    tokio::select! {
        _ = term.recv() => {}
        // Until the stop signal, a task ends only when it cannot write the history.
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
    // An outcome that is still open then is unknown, and the history says so.
    timeout(DRAIN, settled).await.unwrap_or(Ok(()))
}

fn flat(ended: Result<io::Result<()>, JoinError>) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(ended??)
}
