//! Readers that pull: an inbox from its start or from the last seq that they have read, page by page; and sometimes
//! only the last seq of many inboxes.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use msg_common::proto::{Order, PullMsgsRequest};
use rand::RngExt;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::reader::{Reader, first, identify};
use super::status;
use crate::history::{Event, ReadWay, now};
use crate::message::recv_id;

/// The time from one read to the next.
const GAP: Duration = Duration::from_millis(200);
const PAGE: i32 = 200;
/// Maximum number of pages of an inbox that grows while it is read.
const PAGES: usize = 30;
/// The share of reads that only request the last seqs, and of how many inboxes.
const ONLY_MAX_SEQS: f64 = 0.1;
const INBOXES: usize = 20;
/// The share of reads that only request the status of a message.
const ONLY_STATUS: f64 = 0.3;

/// Reads one inbox after the other.
pub(crate) async fn run(reader: Reader) -> io::Result<()> {
    let mut ticks = interval(GAP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut puller = Puller { reader, last: HashMap::new(), ticks };
    loop {
        puller.ticks.tick().await;
        if puller.reader.rng.random_bool(ONLY_MAX_SEQS) {
            let inboxes: Vec<u32> = (0..INBOXES).map(|_| puller.reader.inbox()).collect();
            puller.reader.max_seqs(&inboxes).await?;
        } else if puller.reader.rng.random_bool(ONLY_STATUS) {
            status::request(&mut puller.reader).await?;
        } else {
            puller.read().await?;
        }
    }
}

struct Puller {
    reader: Reader,
    /// The last seq that was read, by inbox.
    last: HashMap<u32, i64>,
    ticks: Interval,
}

impl Puller {
    /// Reads an inbox to its end.
    async fn read(&mut self) -> io::Result<()> {
        let inbox = self.reader.inbox();
        let last = self.last.get(&inbox).copied().filter(|_| self.reader.rng.random_bool(0.5));
        let from = match last {
            // Read the last message again: it must still be there.
            Some(last) => last,
            None => match self.reader.max_seqs(&[inbox]).await?.as_deref() {
                Some([max_seq]) => first(*max_seq),
                _ => return Ok(()),
            },
        };
        let omit_content = self.reader.rng.random_bool(0.5);
        let mut request = PullMsgsRequest {
            recv_id: recv_id(inbox),
            from_seq: from,
            to_seq: 0,
            order: Order::Ascending.into(),
            page_size: PAGE,
            page_token: String::new(),
            omit_content,
        };
        let mut from = from;
        for _ in 0..PAGES {
            self.ticks.tick().await;
            let mut client = self.reader.gateway();
            let requested = now();
            let call = client.pull_msgs(self.reader.request(request.clone()));
            let Ok(page) = self.reader.call(ReadWay::Pull, requested, call).await? else { return Ok(()) };
            let at = now();
            let (reader, end) = (self.reader.id, page.next_page_token.is_empty());
            let msgs: Vec<_> = page.msgs.into_iter().map(|stored| identify(stored, omit_content)).collect();
            let highest = msgs.last().map(|(seq, ..)| *seq);
            self.reader.load.history.put(Event::Read {
                reader,
                way: ReadWay::Pull,
                requested,
                at,
                inbox,
                from,
                msgs,
                end,
            })?;
            if let Some(highest) = highest {
                let last = self.last.entry(inbox).or_default();
                *last = highest.max(*last);
                from = highest + 1;
            }
            if end {
                return Ok(());
            }
            request.page_token = page.next_page_token;
        }
        Ok(())
    }
}
