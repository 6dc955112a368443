//! StreamSendMsg: the caller sends entries, and gets their results as they become known. `machine` decides and has no
//! I/O; `driver` has the I/O and decides nothing.

mod driver;
mod failed_entries;
mod machine;
mod replies;

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::Stream;
use msg_common::limits::MAX_REQUEST_MSGS;
use msg_common::proto::StreamSendMsgRequest;
use tonic::Status;

use crate::incoming::Lifetime;
use crate::response_permit::ResponsePermit;
use crate::send::record::id_of;
use crate::send::stream::driver::Driver;
use crate::send::stream::machine::{Machine, Settings};
pub(crate) use crate::send::stream::replies::ReplyStream;
use crate::send::{Call, Sender, trace};
use crate::status::Failure;

/// Maximum number of failed entries that have to be sent again. With more, the stream ends.
const MAX_FAILED_ENTRIES: usize = 10_000;

impl Sender {
    /// Opens a stream, which a task of its own serves. The connection, and so the drain, waits until its last reply
    /// was read.
    pub(crate) fn open_stream(
        self: &Arc<Self>,
        requests: impl Stream<Item = Result<StreamSendMsgRequest, Status>> + Send + 'static,
        call: Call<'_>,
        lifetime: Lifetime,
    ) -> Result<(ReplyStream, Arc<ResponsePermit>), Failure> {
        let now = Instant::now();
        // Reject the call if its deadline leaves no time at all.
        self.timing.respond_by(call.arrival, call.timeout, now)?;
        let permit = self.budgets.send_streams.try_acquire(1)?;
        let budgets = (&self.budgets.send_streams_by_caller, &self.budgets.send_streams_by_tenant);
        let mut permits = call.account.acquire_one(budgets.0, budgets.1)?;
        permits.push(permit);
        // A timeout may reach beyond what an Instant can hold.
        let left = call.timeout.and_then(|timeout| self.timing.before_deadline(timeout));
        let settings = Settings {
            limits: self.limits.clone(),
            caller: call.caller.clone(),
            id_of,
            max_wait: self.timing.max_wait,
            settle_time: self.settle_time,
            until: left.and_then(|left| call.arrival.checked_add(left)),
            max_inflight: self.max_stream_inflight,
            max_failed: MAX_FAILED_ENTRIES,
            max_reply: MAX_REQUEST_MSGS,
        };
        let traceparent = call.traceparent.filter(|value| trace::is_valid(value)).map(<[u8]>::to_vec);
        let unwritten = ResponsePermit::new(permits);
        let (reply_sender, replies) = replies::channel(unwritten.clone());
        let machine = Machine::new(settings, self.budgets.stream_results.empty());
        let driver = Driver::new(self.clone(), call.account, traceparent);
        tokio::spawn(driver.run(machine, requests, reply_sender, lifetime));
        Ok((replies, unwritten))
    }
}
