//! Requests of the status of messages that were accepted just before.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use msg_common::id::msg_id;
use msg_common::proto::{GetMsgStatusRequest, MsgState};
use rand::RngExt;

use super::reader::Reader;
use crate::history::{Event, ReadWay, State, now};
use crate::message::{recv_id, send_id};

/// Maximum number of messages to choose from; the oldest is dropped.
const KEPT: usize = 500;

/// The messages of this process that were accepted last.
#[derive(Debug, Default)]
pub(crate) struct Accepted(Mutex<VecDeque<AcceptedMsg>>);

#[derive(Clone, Copy, Debug)]
struct AcceptedMsg {
    sender: u32,
    n: u32,
    inbox: u32,
    position: (i32, i64),
}

impl Accepted {
    pub(crate) fn note(&self, sender: u32, (n, inbox): (u32, u32), position: (i32, i64)) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(AcceptedMsg { sender, n, inbox, position });
    }

    fn any(&self, pick: impl FnOnce(usize) -> usize) -> Option<AcceptedMsg> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_empty() { None } else { Some(kept[pick(kept.len())]) }
    }
}

/// The number of a message that is never sent: messages are numbered from 1.
const NEVER_SENT: u32 = 0;

/// Requests the status of one of these messages, half of the time without its position, or of a message that was never
/// sent.
pub(crate) async fn request(reader: &mut Reader) -> io::Result<()> {
    let load = reader.load.clone();
    let Some(AcceptedMsg { sender, n, inbox, position }) = load.accepted.any(|count| reader.rng.random_range(0..count))
    else {
        return Ok(());
    };
    let n = if reader.rng.random_bool(0.3) { NEVER_SENT } else { n };
    let position = Some(position).filter(|_| n != NEVER_SENT && reader.rng.random_bool(0.5));
    let recv_id = recv_id(inbox);
    let (send_id, client_msg_id) = (send_id(sender), n.to_string());
    let msg_id = msg_id(&send_id, &recv_id, &client_msg_id).to_string();
    let (partition, offset) = position.unzip();
    let request = reader.request(GetMsgStatusRequest { recv_id, msg_id, partition, offset, send_id, client_msg_id });
    let mut client = reader.gateway();
    let requested = now();
    let Ok(response) = reader.call(ReadWay::Status, requested, client.get_msg_status(request)).await? else {
        return Ok(());
    };
    let state = match response.state() {
        MsgState::Stored => State::Stored(response.seq),
        MsgState::DeadLettered => State::DeadLettered,
        MsgState::Pending => State::Pending,
        MsgState::NotFound | MsgState::Unspecified => State::NotFound,
    };
    reader.load.history.put(Event::Status { reader: reader.id, requested, at: now(), sender, n, state })
}
