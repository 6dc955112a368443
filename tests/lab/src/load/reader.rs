//! What all readers share: they choose inboxes and gateways, request last seqs, and record what they receive.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use msg_common::proto::{GetMaxSeqsRequest, StoredMsg};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::inboxes::Inboxes;
use super::outcome::{delay, reason};
use super::{Client, Load};
use crate::history::{Event, Nanos, ReadWay, now};
use crate::message::{message, number, recv_id};

/// The sender and number of a message that is not exactly, byte for byte, a message of the load.
pub(crate) const UNKNOWN: u32 = u32::MAX;
/// The highest last seq of an inbox that is read from its start.
const LARGE: i64 = 5_000;
/// The number of messages that are read from a larger inbox.
const LAST: i64 = 2_000;

#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) load: Arc<Load>,
    pub(crate) id: u32,
    pub(crate) rng: StdRng,
    links: Vec<Client>,
    /// The senders of this process, whose own inboxes are read, too.
    owners: Range<u32>,
    inboxes: Inboxes,
}

impl Reader {
    pub(crate) fn new(
        load: Arc<Load>,
        links: Vec<Client>,
        id: u32,
        owners: Range<u32>,
        inboxes: Inboxes,
        rng: StdRng,
    ) -> Reader {
        Reader { load, id, rng, links, owners, inboxes }
    }

    pub(crate) fn inbox(&mut self) -> u32 {
        let owner = if self.owners.is_empty() { 0 } else { self.rng.random_range(self.owners.clone()) };
        self.inboxes.pick(owner, &mut self.rng)
    }

    pub(crate) fn gateway(&mut self) -> Client {
        self.links[self.rng.random_range(0..self.links.len())].clone()
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.load.call_timeout);
        request
    }

    /// Returns the response of a call. After a failure, which is recorded, returns how long the gateway requests to
    /// wait.
    pub(crate) async fn call<T>(
        &self,
        way: ReadWay,
        requested: Nanos,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> io::Result<Result<T, Duration>> {
        match timeout(self.load.local_timeout(), call).await {
            Ok(Ok(response)) => Ok(Ok(response.into_inner())),
            Ok(Err(status)) => {
                self.failed(way, requested, reason(&status))?;
                Ok(Err(delay(&status)))
            }
            Err(_) => {
                self.failed(way, requested, "local timeout".to_owned())?;
                Ok(Err(Duration::ZERO))
            }
        }
    }

    pub(crate) fn failed(&self, way: ReadWay, requested: Nanos, reason: String) -> io::Result<()> {
        self.load.history.put(Event::ReadFailed { reader: self.id, way, requested, at: now(), reason })
    }

    /// Returns the last seqs of these inboxes; none after a failure.
    pub(crate) async fn max_seqs(&mut self, inboxes: &[u32]) -> io::Result<Option<Vec<i64>>> {
        let mut client = self.gateway();
        let request = self.request(GetMaxSeqsRequest { recv_ids: inboxes.iter().map(|id| recv_id(*id)).collect() });
        let requested = now();
        let Ok(response) = self.call(ReadWay::MaxSeqs, requested, client.get_max_seqs(request)).await? else {
            return Ok(None);
        };
        let seqs: Vec<i64> = response.inboxes.iter().map(|inbox| inbox.max_seq).collect();
        let recorded = inboxes.iter().copied().zip(seqs.iter().copied()).collect();
        self.load.history.put(Event::MaxSeqs { reader: self.id, requested, at: now(), seqs: recorded })?;
        Ok(Some(seqs))
    }
}

/// Returns the first seq to read of an inbox with this last seq.
pub(crate) fn first(max_seq: i64) -> i64 {
    if max_seq > LARGE { max_seq - LAST } else { 1 }
}

/// Returns a message as the history names it: `seq`, sender, `n`.
pub(crate) fn identify(stored: StoredMsg, omit_content: bool) -> (i64, u32, u32) {
    let seq = stored.seq;
    let known = stored.msg.and_then(|msg| {
        let (sender, n, inbox) = (number(&msg.send_id)?, number(&msg.client_msg_id)?, number(&msg.recv_id)?);
        let mut sent = message(sender, n, inbox);
        if omit_content {
            sent.content.clear();
        }
        (sent == msg).then_some((sender, n))
    });
    let (sender, n) = known.unwrap_or((UNKNOWN, UNKNOWN));
    (seq, sender, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_inbox_is_read_whole_and_large_one_only_at_its_end() {
        for (max_seq, expected) in [(0, 1), (1, 1), (5_000, 1), (5_001, 3_001)] {
            assert_eq!(first(max_seq), expected);
        }
    }

    #[test]
    fn message_with_any_difference_is_of_an_unknown_sender() {
        let stored = |change: &dyn Fn(&mut msg_common::proto::Msg)| {
            let mut msg = message(3, 14, 15);
            change(&mut msg);
            StoredMsg { seq: 9, msg: Some(msg), ..StoredMsg::default() }
        };
        assert_eq!(identify(stored(&|_| {}), false), (9, 3, 14));
        assert_eq!(identify(stored(&|msg| msg.content.clear()), true), (9, 3, 14));
        assert_eq!(identify(stored(&|msg| msg.content.clear()), false), (9, UNKNOWN, UNKNOWN));
        assert_eq!(identify(stored(&|msg| msg.attributes.clear()), false), (9, UNKNOWN, UNKNOWN));
        assert_eq!(identify(stored(&|msg| msg.send_id = "alice".into()), false), (9, UNKNOWN, UNKNOWN));
        assert_eq!(identify(StoredMsg { seq: 9, ..StoredMsg::default() }, false), (9, UNKNOWN, UNKNOWN));
    }
}
