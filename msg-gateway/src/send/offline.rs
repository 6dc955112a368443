//! BatchSendMsg without its transport and its producer: the code whose instructions the benchmarks count.

use std::time::Duration;

use bytes::Bytes;
use msg_common::limits::Limits;
use msg_common::partition::Partition;
use msg_common::proto::{BatchSendMsgRequest, BatchSendMsgResponse};
use prost::Message;

use crate::auth::rules::Caller;
use crate::send::outcome::Outcome;
use crate::send::record::{Record, amount_in_flight, id_of};
use crate::send::{check_entry, into_result, result_of};

/// Decodes a request, checks its messages, makes their records, and encodes the response that accepts all of them.
/// Panics if the request is invalid.
pub fn batch(limits: &Limits, request: Bytes, partitions: Partition) -> Vec<u8> {
    let request = BatchSendMsgRequest::decode(request).expect("the request is valid");
    let caller = Caller::anyone();
    let result = |(index, msg)| {
        check_entry(limits, &caller, &msg, || format!("msgs[{index}]"))?;
        std::hint::black_box(amount_in_flight(&msg));
        let id = id_of(&msg);
        let pending = Record::new(msg, id, partitions).pending();
        result_of(&pending, Outcome::Stored { offset: Some(1_000_000) }, Duration::ZERO)
    };
    let results = request.msgs.into_iter().enumerate().map(result).map(into_result).collect();
    BatchSendMsgResponse { results }.encode_to_vec()
}
