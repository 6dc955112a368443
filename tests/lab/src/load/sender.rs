//! What all senders do: number their messages, choose inboxes and gateways, and write down each request before it goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep_until};

use super::pace::Pace;
use super::{Client, Load};
use crate::history::{Event, Outcome, Way, now};

/// How many of the requests are to be answered when the rows are there.
const UNTIL_STORED: f64 = 0.1;

/// One sender.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) load: Arc<Load>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) id: u32,
    pub(crate) rng: StdRng,
    links: Vec<Client>,
    next: u32,
}

/// A request that is written down.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) call: u64,
    pub(crate) stored: bool,
}

impl Sender {
    pub(crate) fn new(load: Arc<Load>, pace: Arc<Pace>, links: Vec<Client>, id: u32, rng: StdRng) -> Sender {
        Sender { load, pace, id, rng, links, next: 0 }
    }

    /// The next message: its number, and its inbox.
    pub(crate) fn begin(&mut self, inbox: u32) -> (u32, u32) {
        self.next += 1;
        (self.next, inbox)
    }

    pub(crate) fn inbox(&mut self) -> u32 {
        self.load.inboxes.pick(self.id, &mut self.rng)
    }

    /// Any gateway.
    pub(crate) fn gateway(&mut self) -> (u8, Client) {
        let gateway = self.rng.random_range(0..self.links.len());
        (u8::try_from(gateway).expect("there are a few"), self.links[gateway].clone())
    }

    /// Waits until so many new messages may be begun; `false` when none may any more.
    pub(crate) async fn turn(&self, messages: usize) -> bool {
        let mut stop = self.load.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => false,
            () = sleep_until(self.pace.reserve(messages)) => true,
        }
    }

    /// Writes a request down; it goes after that.
    pub(crate) fn asks(
        &mut self,
        way: Way,
        stream: Option<u64>,
        gateway: u8,
        msgs: &[(u32, u32)],
    ) -> io::Result<Begun> {
        let call = self.load.calls.fetch_add(1, Ordering::Relaxed);
        let stored = self.rng.random_bool(UNTIL_STORED);
        let msgs = msgs.to_vec();
        let (at, sender, altered) = (now(), self.id, false);
        self.load.history.put(&Event::Send { call, at, sender, way, stream, stored, altered, gateway, msgs })?;
        Ok(Begun { call, stored })
    }

    /// Writes down what became of messages of a request.
    pub(crate) fn is_told(&self, call: u64, results: Vec<(u32, Outcome)>) -> io::Result<()> {
        self.load.history.put(&Event::Told { call, at: now(), results })
    }

    /// The number of a stream that is about to be opened.
    pub(crate) fn stream(&self) -> u64 {
        self.load.streams.fetch_add(1, Ordering::Relaxed)
    }
}

/// Whether it is time.
pub(crate) fn is_past(at: Instant) -> bool {
    at <= Instant::now()
}
