//! The one table of what each method requires of its caller, and the checks. Everything that is not in it is denied.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use msg_common::id::msg_id;
use msg_common::proto::GetMsgStatusRequest;
use msg_common::proto::msg_gateway_server::SERVICE_NAME;
use uuid::Uuid;

use crate::auth::identity::Identity;
use crate::auth::rejection::count;
use crate::status::Failure;

/// What a method requires of its caller. A scope (`msg.send.any`, `msg.send:PATTERN`, `msg.read.any`,
/// `msg.read:PATTERN`) stands for the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// `send_id` of each message is the subject.
    Send,
    /// `recv_id` of each inbox is the subject.
    Read,
    /// `recv_id` is the subject, or the message is the caller's own: its ID follows from the caller's `send_id`.
    ReadOrOwnMessage,
    /// Any known caller: it describes the contract, which is public.
    Known,
}

/// Every method of the contract. A method without a row here is denied, and fails a test.
const RULES: [(&str, Rule); 7] = [
    ("SendMsg", Rule::Send),
    ("BatchSendMsg", Rule::Send),
    ("StreamSendMsg", Rule::Send),
    ("PullMsgs", Rule::Read),
    ("GetMaxSeqs", Rule::Read),
    ("GetMsgStatus", Rule::ReadOrOwnMessage),
    ("WatchMsgs", Rule::Read),
];

impl Rule {
    /// Returns the rule of a call by its path.
    pub(super) fn of_path(path: &str) -> Result<Self, Failure> {
        let (service, method) = path.strip_prefix('/').unwrap_or(path).split_once('/').unwrap_or((path, ""));
        if service.starts_with("grpc.reflection.") {
            return Ok(Rule::Known);
        }
        let row = RULES.iter().find(|(name, _)| service == SERVICE_NAME && *name == method);
        row.map(|(_, rule)| *rule).ok_or_else(|| denied("no caller may call this method".into()))
    }
}

/// The caller of one call, and what its method requires. The router puts it into the extensions of the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Option<(Arc<Identity>, Rule)>);

impl Caller {
    /// A caller that may do everything, because the gateway asks for no credentials.
    pub(crate) fn anyone() -> Self {
        Caller(None)
    }

    pub(super) fn known(identity: Arc<Identity>, rule: Rule) -> Self {
        Caller(Some((identity, rule)))
    }

    /// Checks that the caller may send with this `send_id`, which is the field `field` of the request.
    pub(crate) fn check_send(&self, send_id: &str, field: impl FnOnce() -> String) -> Result<(), Failure> {
        let Some((identity, rule)) = &self.0 else { return Ok(()) };
        if *rule == Rule::Send && may_send(identity, send_id) {
            return Ok(());
        }
        Err(denied(format!("{} is not the caller; that needs the scope msg.send.any or msg.send:PATTERN", field())))
    }

    /// Checks that the caller may read this inbox, which is the field `field` of the request.
    pub(crate) fn check_read(&self, recv_id: &str, field: impl FnOnce() -> String) -> Result<(), Failure> {
        let Some((identity, rule)) = &self.0 else { return Ok(()) };
        if *rule == Rule::Read && may_read(identity, recv_id) {
            return Ok(());
        }
        let text = "is not the caller's inbox; that needs the scope msg.read.any or msg.read:PATTERN";
        Err(denied(format!("{} {text}", field())))
    }

    /// Checks that the caller may know the state of this message: it may read the inbox, or it sent the message.
    pub(crate) fn check_status(&self, request: &GetMsgStatusRequest) -> Result<(), Failure> {
        let Some((identity, rule)) = &self.0 else { return Ok(()) };
        let is_own = || may_send(identity, &request.send_id) && is_sent_by(request);
        if *rule == Rule::ReadOrOwnMessage && (may_read(identity, &request.recv_id) || is_own()) {
            return Ok(());
        }
        let text = "recv_id is not the caller's inbox; the sender may ask with its send_id and the client_msg_id";
        Err(denied(text.into()))
    }

    /// Returns when a stream of this caller has to end, because its token expires.
    pub(crate) fn stream_end(&self) -> Option<Instant> {
        let (identity, _) = self.0.as_ref()?;
        let left = identity.seconds_left(unix_seconds(SystemTime::now()))?;
        // A token may be valid for longer than an Instant can hold.
        Instant::now().checked_add(Duration::from_secs(left))
    }
}

fn may_send(identity: &Identity, send_id: &str) -> bool {
    identity.subject() == send_id || identity.scopes().may_send(send_id)
}

fn may_read(identity: &Identity, recv_id: &str) -> bool {
    identity.subject() == recv_id || identity.scopes().may_read(recv_id)
}

/// Returns whether the message is of the request's `send_id`. With a `client_msg_id`, the ID of a message follows from
/// it and from its `send_id`, so the ID proves the sender. Without one, the ID is random, and only the sender and the
/// readers of the inbox ever got it.
fn is_sent_by(request: &GetMsgStatusRequest) -> bool {
    const RANDOM: usize = 7;
    let Ok(requested) = Uuid::try_parse(&request.msg_id) else { return false };
    if request.client_msg_id.is_empty() {
        return requested.get_version_num() == RANDOM;
    }
    msg_id(&request.send_id, &request.recv_id, &request.client_msg_id) == requested
}

fn denied(text: String) -> Failure {
    count("denied");
    Failure::PermissionDenied(text)
}

pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
