//! Readers that watch: they receive the new messages of some inboxes, each time from the last seq that they have
//! received.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use msg_common::proto::watch_msgs_response::Event;
use msg_common::proto::{InboxCursor, StoredMsg, WatchMsgsRequest};
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::BACKOFF;
use super::outcome::{delay, reason};
use super::reader::{Reader, UNKNOWN, first, identify};
use crate::history::{Event as History, ReadWay, WATCH_WITHIN, now};
use crate::message::{number, recv_id};

/// Number of choices of an inbox; two may be the same.
const CHOICES: usize = 24;
/// The gateway sends heartbeats every 15 s.
const EVENT_TIMEOUT: Duration = Duration::from_secs(40);
/// How many seconds a watch is used.
const LIFETIME: std::ops::Range<f64> = 20.0..90.0;

/// Watches some inboxes without limit.
pub(crate) async fn run(mut reader: Reader) -> io::Result<()> {
    let inboxes: Vec<u32> = (0..CHOICES).map(|_| reader.inbox()).collect::<BTreeSet<_>>().into_iter().collect();
    let mut backoff = BACKOFF;
    let max_seqs = loop {
        match reader.max_seqs(&inboxes).await? {
            Some(max_seqs) => break max_seqs,
            None => sleep(backoff.failed()).await,
        }
    };
    let mut watch = Watch {
        reader,
        last: inboxes.into_iter().zip(max_seqs.into_iter().map(|max_seq| first(max_seq) - 1)).collect(),
    };
    loop {
        let (received, requested) = watch.once().await?;
        if received {
            backoff = BACKOFF;
        }
        if let Some(requested) = requested {
            sleep(backoff.failed().max(requested)).await;
        }
    }
}

struct Watch {
    reader: Reader,
    /// The last seq that was received, by inbox.
    last: BTreeMap<u32, i64>,
}

impl Watch {
    /// Watches until the stream ends or is old. Returns whether an event arrived, and how long to wait after a failure.
    async fn once(&mut self) -> io::Result<(bool, Option<Duration>)> {
        let omit_content = self.reader.rng.random_bool(0.5);
        let cursor = |(inbox, last): (&u32, &i64)| InboxCursor { recv_id: recv_id(*inbox), after_seq: Some(*last) };
        let request = WatchMsgsRequest { inboxes: self.last.iter().map(cursor).collect(), omit_content };
        let mut client = self.reader.gateway();
        let mut requested = now();
        let mut events = match self.reader.call(ReadWay::Watch, requested, client.watch_msgs(request)).await? {
            Ok(events) => events,
            Err(delay) => return Ok((false, Some(delay))),
        };
        let since = Instant::now();
        let old = since + Duration::from_secs_f64(self.reader.rng.random_range(LIFETIME));
        let mut received = false;
        loop {
            let stalled = Instant::now() + EVENT_TIMEOUT;
            let (reason, delay) = match timeout_at(old.min(stalled), events.message()).await {
                Ok(Ok(Some(event))) => {
                    received = true;
                    requested = now();
                    if let Some(Event::Msgs(watched)) = event.event {
                        self.receive(watched.msgs, omit_content)?;
                    }
                    continue;
                }
                Ok(Ok(None)) => ("ended well".to_owned(), Duration::ZERO),
                Ok(Err(status)) => (reason(&status), delay(&status)),
                Err(_) if old < stalled => {
                    if since.elapsed() >= WATCH_WITHIN {
                        self.record_progress()?;
                    }
                    return Ok((received, None));
                }
                Err(_) => ("stalled".to_owned(), Duration::ZERO),
            };
            self.reader.failed(ReadWay::Watch, requested, reason)?;
            return Ok((received, Some(delay)));
        }
    }

    /// Records how far a watch has come.
    fn record_progress(&self) -> io::Result<()> {
        let at = now();
        let requested = at - u64::try_from(WATCH_WITHIN.as_nanos()).expect("it is less than a minute");
        for (inbox, last) in &self.last {
            let (reader, way, from, msgs) = (self.reader.id, ReadWay::Watch, last + 1, Vec::new());
            let event = History::Read { reader, way, requested, at, inbox: *inbox, from, msgs, end: true };
            self.reader.load.history.put(event)?;
        }
        Ok(())
    }

    /// Records the received messages, inbox by inbox.
    fn receive(&mut self, msgs: Vec<StoredMsg>, omit_content: bool) -> io::Result<()> {
        let at = now();
        let mut inboxes: BTreeMap<u32, Vec<(i64, u32, u32)>> = BTreeMap::new();
        for stored in msgs {
            let inbox = stored.msg.as_ref().and_then(|msg| number(&msg.recv_id)).unwrap_or(UNKNOWN);
            inboxes.entry(inbox).or_default().push(identify(stored, omit_content));
        }
        for (inbox, msgs) in inboxes {
            // A message of an inbox that the watch did not request is recorded too: the checker reports it.
            let last = self.last.get_mut(&inbox);
            let from = last.as_ref().map_or(i64::MAX, |last| **last + 1);
            if let (Some(last), Some((highest, ..))) = (last, msgs.last()) {
                *last = *highest;
            }
            let (reader, way) = (self.reader.id, ReadWay::Watch);
            let event = History::Read { reader, way, requested: at, at, inbox, from, msgs, end: false };
            self.reader.load.history.put(event)?;
        }
        Ok(())
    }
}
