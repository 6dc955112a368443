//! Owns the calls of every sender: a call is recorded in the history before it is sent, and its outcomes after the
//! response.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use msg_common::id::msg_id;
use msg_common::proto::{BatchSendMsgRequest, Msg, SendMsgRequest, SendResult, WaitFor, send_result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::timeout;
use tonic::{Request, Status};
use uuid::Uuid;

use super::outcome::{MsgResult, of_result, of_status};
use super::{Client, Load};
use crate::history::{Event, Outcome, Way, now};
use crate::message::{Numbers, altered};

/// The connections and the number of one sender.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) load: Arc<Load>,
    pub(crate) id: u32,
    pub(crate) rng: StdRng,
    links: Vec<Client>,
}

#[derive(Debug)]
pub(crate) struct RecordedRequest {
    pub(crate) call: u64,
    pub(crate) stored: bool,
}

impl Caller {
    pub(crate) fn new(load: Arc<Load>, links: Vec<Client>, id: u32, rng: StdRng) -> Caller {
        Caller { load, id, rng, links }
    }

    /// Returns a second caller that sends concurrently under the same number.
    pub(crate) fn fork(&mut self) -> Caller {
        let rng = StdRng::from_rng(&mut self.rng);
        Caller::new(Arc::clone(&self.load), self.links.clone(), self.id, rng)
    }

    pub(crate) fn gateway(&mut self) -> (u8, Client) {
        let gateway = self.rng.random_range(0..self.links.len());
        (u8::try_from(gateway).expect("there are a few"), self.links[gateway].clone())
    }

    /// Records a request. The caller sends it afterwards.
    pub(crate) fn record_request(
        &mut self,
        way: Way,
        stream: Option<u64>,
        altered: bool,
        gateway: u8,
        msgs: &[(u32, u32)],
    ) -> io::Result<RecordedRequest> {
        let call = self.load.calls.fetch_add(1, Ordering::Relaxed);
        let stored = self.rng.random_bool(self.load.stored_share);
        let (at, sender, msgs) = (now(), self.id, msgs.to_vec());
        self.load.history.put(Event::Send { call, at, sender, way, stream, stored, altered, gateway, msgs })?;
        Ok(RecordedRequest { call, stored })
    }

    pub(crate) fn record_outcomes(&self, call: u64, results: Vec<(u32, Outcome)>) -> io::Result<()> {
        self.load.history.put(Event::Outcomes { call, at: now(), results })
    }

    pub(crate) fn stream(&self) -> u64 {
        self.load.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes one attempt, with other content if `is_altered`. Returns a result for each message.
    pub(crate) async fn attempt(
        &mut self,
        way: Way,
        is_altered: bool,
        msgs: &[(u32, u32)],
    ) -> io::Result<Vec<MsgResult>> {
        let (gateway, client) = self.gateway();
        let recorded = self.record_request(way, None, is_altered, gateway, msgs)?;
        let message = |&(n, inbox): &(u32, u32)| {
            let msg = self.load.messages.message(Numbers { sender: self.id, n, inbox });
            if is_altered { altered(msg) } else { msg }
        };
        let sent: Vec<Msg> = msgs.iter().map(message).collect();
        let ids: Vec<Uuid> = sent.iter().map(|msg| msg_id(&msg.send_id, &msg.recv_id, &msg.client_msg_id)).collect();
        let results: Vec<MsgResult> =
            match timeout(self.load.local_timeout(), self.call(client, way, &recorded, sent)).await {
                Ok(Ok(results)) => {
                    results.iter().zip(ids).try_for_each(|(result, id)| check_msg_id(result, id))?;
                    let nothing = std::iter::repeat_with(|| MsgResult::unknown("no result"));
                    results.into_iter().map(of_result).chain(nothing).take(msgs.len()).collect()
                }
                Ok(Err(status)) => vec![of_status(&status); msgs.len()],
                Err(_) => vec![MsgResult::unknown("local timeout"); msgs.len()],
            };
        let outcomes = (0..).zip(&results).map(|(index, result)| (index, result.outcome.clone()));
        self.record_outcomes(recorded.call, outcomes.collect())?;
        Ok(results)
    }

    async fn call(
        &self,
        mut client: Client,
        way: Way,
        recorded: &RecordedRequest,
        mut msgs: Vec<Msg>,
    ) -> Result<Vec<SendResult>, Status> {
        let wait_for = if recorded.stored { WaitFor::Stored } else { WaitFor::Accepted }.into();
        if way == Way::Batch {
            let mut request = Request::new(BatchSendMsgRequest { msgs, wait_for });
            request.set_timeout(self.load.call_timeout);
            return Ok(client.batch_send_msg(request).await?.into_inner().results);
        }
        let mut request = Request::new(SendMsgRequest { msg: msgs.pop(), wait_for });
        request.set_timeout(self.load.call_timeout);
        let placement = client.send_msg(request).await?.into_inner().placement;
        Ok(vec![SendResult { result: placement.map(send_result::Result::Placement) }])
    }
}

/// Fails if a placement names another message than the one that was sent: no later check could trust the history.
fn check_msg_id(result: &SendResult, expected: Uuid) -> io::Result<()> {
    match &result.result {
        Some(send_result::Result::Placement(placement)) if placement.msg_id != expected.to_string() => {
            let named = &placement.msg_id;
            Err(io::Error::other(format!("a placement names message {named:?}; the recipe gives {expected}")))
        }
        _ => Ok(()),
    }
}
