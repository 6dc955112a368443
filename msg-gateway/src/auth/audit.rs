//! What the audit log says of a call that is refused.

use std::net::IpAddr;

use http::Request;
use msg_common::audit::Refusal;
use msg_common::tls::handshake_failure;

use crate::auth::Rejection;
use crate::auth::rejection::count;
use crate::auth::rules::method_name;
use crate::incoming::Lifetime;
use crate::status::Failure;

/// A call, as the audit log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AuditedCall {
    address: Option<IpAddr>,
    method: &'static str,
}

/// What a caller was not allowed to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denial<'a> {
    pub(crate) inbox: Option<&'a str>,
    pub(crate) sender: Option<&'a str>,
    pub(crate) reason: &'static str,
}

impl AuditedCall {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let address = request.extensions().get::<Lifetime>().and_then(Lifetime::address);
        AuditedCall { address, method: method_name(request.uri().path()) }
    }

    /// Records that the caller's credentials were rejected. Returns the error for the caller. Claims of a token that was
    /// not verified are not recorded: the caller could have written anything there.
    pub(crate) fn rejected(self, rejection: Rejection) -> Failure {
        self.record(None, Denial { inbox: None, sender: None, reason: rejection.label() });
        rejection.into_failure()
    }

    /// Records that this caller may not do that. Returns the error for the caller.
    pub(crate) fn denied(self, subject: &str, denial: Denial<'_>, text: String) -> Failure {
        count("denied");
        self.record(Some(subject), denial);
        Failure::PermissionDenied(text)
    }

    fn record(self, who: Option<&str>, Denial { inbox, sender, reason }: Denial<'_>) {
        let AuditedCall { address, method } = self;
        Refusal { who, address, method, inbox, sender, reason }.record();
    }
}

/// Records a TLS handshake that failed because of the caller's certificate.
pub(crate) fn record_handshake(address: Option<IpAddr>, error: &std::io::Error) {
    let reason = handshake_failure(error);
    if ["no_client_certificate", "bad_client_certificate"].contains(&reason) {
        Refusal { who: None, address, method: "TLS handshake", inbox: None, sender: None, reason }.record();
    }
}
