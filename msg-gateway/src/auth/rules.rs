//! The one table of what each method requires of its caller, and the checks. Everything that is not in it is denied.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use msg_common::id::msg_id;
use msg_common::proto::msg_gateway_server::SERVICE_NAME;
use msg_common::proto::{GetMsgStatusRequest, Msg};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::auth::audit::{AuditedCall, Denial};
use crate::auth::identity::Identity;
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
    /// Returns the rule of a call by its path. Without one, no caller may call the method.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        if is_reflection(path) { Some(Rule::Known) } else { row(path).map(|(_, rule)| *rule) }
    }
}

/// Returns the name of a call's method. A caller can write any path, so only names of the table are repeated.
pub(super) fn method_name(path: &str) -> &'static str {
    if is_reflection(path) { "reflection" } else { row(path).map_or("unknown", |(name, _)| name) }
}

fn row(path: &str) -> Option<&'static (&'static str, Rule)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    RULES.iter().find(|(name, _)| service == SERVICE_NAME && *name == method)
}

fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.") && path[1..].contains('/')
}

/// The caller of one call, and what its method requires. The router puts it into the extensions of the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Option<Known>);

/// A caller whose credentials were verified.
#[derive(Clone, Debug)]
struct Known {
    identity: Arc<Identity>,
    rule: Rule,
    call: AuditedCall,
}

impl Caller {
    /// A caller that may do everything, because the gateway asks for no credentials.
    pub(crate) fn anyone() -> Self {
        Caller(None)
    }

    pub(super) fn known(identity: Arc<Identity>, rule: Rule, call: AuditedCall) -> Self {
        Caller(Some(Known { identity, rule, call }))
    }

    /// Returns the authenticated subject.
    pub(crate) fn subject(&self) -> Option<&str> {
        self.0.as_ref().map(|known| known.identity.subject())
    }

    /// Returns the tenant that the caller's token names.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.0.as_ref().and_then(|known| known.identity.tenant())
    }

    /// Checks that the caller may send with the message's `send_id`, which is the field `field` of the request.
    pub(crate) fn check_send(&self, msg: &Msg, field: impl FnOnce() -> String) -> Result<(), Failure> {
        let Some(known) = &self.0 else { return Ok(()) };
        if known.rule == Rule::Send && may_send(&known.identity, &msg.send_id) {
            return Ok(());
        }
        let denial = Denial { inbox: Some(&msg.recv_id), sender: Some(&msg.send_id), reason: "foreign_send_id" };
        let text = "is not the caller; that needs the scope msg.send.any or msg.send:PATTERN";
        Err(known.denied(denial, format!("{} {text}", field())))
    }

    /// Checks that the caller may read this inbox, which is the field `field` of the request.
    pub(crate) fn check_read(&self, recv_id: &str, field: impl FnOnce() -> String) -> Result<(), Failure> {
        let Some(known) = &self.0 else { return Ok(()) };
        if known.rule == Rule::Read && may_read(&known.identity, recv_id) {
            return Ok(());
        }
        let denial = Denial { inbox: Some(recv_id), sender: None, reason: "foreign_inbox" };
        let text = "is not the caller's inbox; that needs the scope msg.read.any or msg.read:PATTERN";
        Err(known.denied(denial, format!("{} {text}", field())))
    }

    /// Checks that the caller may know the state of this message: it may read the inbox, or it sent the message.
    pub(crate) fn check_status(&self, request: &GetMsgStatusRequest) -> Result<(), Failure> {
        let Some(known) = &self.0 else { return Ok(()) };
        let identity = &known.identity;
        let is_own = || may_send(identity, &request.send_id) && is_sent_by(request);
        if known.rule == Rule::ReadOrOwnMessage && (may_read(identity, &request.recv_id) || is_own()) {
            return Ok(());
        }
        let sender = Some(request.send_id.as_str()).filter(|id| !id.is_empty());
        let denial = Denial { inbox: Some(&request.recv_id), sender, reason: "foreign_message" };
        let text = "recv_id is not the caller's inbox; the sender may ask with its send_id and the client_msg_id";
        Err(known.denied(denial, text.into()))
    }

    /// Returns when a stream of this caller has to end, because its token expires.
    pub(crate) fn stream_end(&self) -> Option<Instant> {
        let left = self.0.as_ref()?.identity.seconds_left(unix_seconds(SystemTime::now()))?;
        // A token may be valid for longer than an Instant can hold.
        Instant::now().checked_add(Duration::from_secs(left))
    }

    /// Returns what is cancelled when the streams of this caller have to end, because the key of its token is withdrawn.
    pub(crate) fn key_withdrawn(&self) -> Option<&CancellationToken> {
        self.0.as_ref()?.identity.key_withdrawn()
    }
}

impl Known {
    fn denied(&self, denial: Denial<'_>, text: String) -> Failure {
        self.call.denied(self.identity.subject(), denial, text)
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

pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
