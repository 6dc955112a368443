//! Who calls, and what the caller may do. `verify` checks tokens, `identity` and `scopes` say who a caller is, and `rules`
//! has the table of what each method requires. The router authenticates every call before its body is read. The methods
//! check the rule for each `send_id` and `recv_id`.

mod audit;
pub(crate) mod identity;
pub(crate) mod rejection;
pub(crate) mod rules;
pub(crate) mod scopes;
mod start;
pub(crate) mod verify;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request};

pub(crate) use self::audit::record_handshake;
use self::audit::{AuditedCall, Denial};
pub(crate) use self::identity::CertificateName;
use self::identity::{Identity, subject_of};
pub(crate) use self::rejection::Rejection;
use self::rules::{Caller, Rule};
pub(crate) use self::start::AuthError;
pub(crate) use self::start::start;
use self::verify::Tokens;
use crate::incoming::Lifetime;
use crate::status::Failure;

/// Authenticates calls.
#[derive(Clone)]
pub(crate) struct Authenticator(Option<Required>);

/// The credentials that every call needs. If both are given, both are needed, and the token says who the caller is.
#[derive(Clone)]
pub(crate) struct Required {
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) certificate: Option<CertificateName>,
}

/// The result of an authentication.
pub(crate) enum Authentication {
    Done(Result<Caller, Failure>),
    /// The issuer's keys are fetched first.
    Waiting(BoxFuture<'static, Result<Caller, Failure>>),
}

impl Authenticator {
    /// Makes an authenticator that lets everyone do everything.
    pub(crate) fn open() -> Self {
        Authenticator(None)
    }

    pub(crate) fn requiring(required: Required) -> Self {
        Authenticator(Some(required))
    }

    /// Returns whether a call of this path needs no credentials, though others do.
    pub(crate) fn is_exempt(&self, path: &str) -> bool {
        self.0.is_some() && path.starts_with("/grpc.health.v1.Health/")
    }

    /// Authenticates the caller of a request, by the head of the request alone.
    pub(crate) fn authenticate<B>(&self, request: &Request<B>) -> Authentication {
        let Some(required) = &self.0 else { return Authentication::Done(Ok(Caller::anyone())) };
        let path = request.uri().path();
        if self.is_exempt(path) {
            return Authentication::Done(Ok(Caller::anyone()));
        }
        let (rule, call) = (Rule::of_path(path), AuditedCall::of(request));
        match required.identity(request) {
            Ok(identity) => Authentication::Done(admit(identity, rule, call)),
            Err(Unverified::Rejected(rejection)) => Authentication::Done(Err(call.rejected(rejection))),
            Err(Unverified::NeedsKeys(token)) => {
                let tokens = required.tokens.clone();
                Authentication::Waiting(Box::pin(async move {
                    let rejected = |rejection| call.rejected(rejection);
                    let tokens = tokens.ok_or(Rejection::Missing).map_err(rejected)?;
                    let identity = tokens.verify_with_fresh_keys(&token).await.map_err(rejected)?;
                    admit(identity, rule, call)
                }))
            }
        }
    }
}

/// Returns the caller of a method, if the table has a rule for the method.
fn admit(identity: Arc<Identity>, rule: Option<Rule>, call: AuditedCall) -> Result<Caller, Failure> {
    let Some(rule) = rule else {
        let denial = Denial { inbox: None, sender: None, reason: "no_rule" };
        return Err(call.denied(identity.subject(), denial, "no caller may call this method".into()));
    };
    Ok(Caller::known(identity, rule, call))
}

/// Why a caller has no identity yet.
enum Unverified {
    Rejected(Rejection),
    /// The key of this token is not known, and the issuer may have it.
    NeedsKeys(String),
}

impl From<Rejection> for Unverified {
    fn from(rejection: Rejection) -> Self {
        Unverified::Rejected(rejection)
    }
}

impl Required {
    fn identity<B>(&self, request: &Request<B>) -> Result<Arc<Identity>, Unverified> {
        let subject = match self.certificate {
            Some(kind) => Some(subject_of_peer(request, kind)?),
            None => None,
        };
        match (&self.tokens, subject) {
            (Some(tokens), _) => {
                let token = bearer(request.headers())?;
                tokens.verify(token).map_err(|rejection| {
                    if tokens.can_fetch_for(rejection) {
                        Unverified::NeedsKeys(token.to_owned())
                    } else {
                        Unverified::Rejected(rejection)
                    }
                })
            }
            (None, Some(subject)) => Ok(Arc::new(Identity::of_subject(subject))),
            (None, None) => Err(Rejection::Missing.into()),
        }
    }
}

/// Returns the subject of the client certificate. The connection's [`Lifetime`] is in the extensions of each request.
fn subject_of_peer<B>(request: &Request<B>, kind: CertificateName) -> Result<&str, Rejection> {
    let peer = request.extensions().get::<Lifetime>().and_then(Lifetime::peer).ok_or(Rejection::Certificate)?;
    subject_of(peer, kind)
}

/// Returns the bearer token of a call. Two headers are rejected: a proxy could have checked the other one.
fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Rejection::Malformed)?,
        (Some(_), Some(_)) => return Err(Rejection::Malformed),
        (None, _) => return Err(Rejection::Missing),
    };
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Rejection::Missing),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use msg_common::tls::PeerIdentity;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_str(value).expect("it is valid"));
        values.map(|value| (AUTHORIZATION, value)).collect()
    }

    #[test]
    fn token_is_read_from_exactly_one_header() {
        for (values, expected) in [
            (&["Bearer a.b.c"][..], Ok("a.b.c")),
            (&["bearer a.b.c"], Ok("a.b.c")),
            (&["Bearer  a.b.c "], Ok("a.b.c")),
            (&[], Err(Rejection::Missing)),
            (&["a.b.c"], Err(Rejection::Missing)),
            (&["Basic YTpi"], Err(Rejection::Missing)),
            (&["Bearer a.b.c", "Bearer a.b.d"], Err(Rejection::Malformed)),
            (&["Bearer a.b.c", "Basic YTpi"], Err(Rejection::Malformed)),
        ] {
            assert_eq!(bearer(&headers(values)), expected, "{values:?}");
        }
    }

    fn certificate_only() -> Authenticator {
        Authenticator::requiring(Required { tokens: None, certificate: Some(CertificateName::Uri) })
    }

    fn done(authentication: Authentication) -> Result<Caller, Failure> {
        match authentication {
            Authentication::Done(result) => result,
            Authentication::Waiting(_) => panic!("it needs no keys"),
        }
    }

    #[test]
    fn call_without_a_certificate_is_rejected_except_health() {
        let request = |path: &str| Request::post(path).body(()).expect("it is valid");
        for path in ["/msg.v1.MsgGateway/SendMsg", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/"] {
            let rejected = done(certificate_only().authenticate(&request(path)));
            assert!(matches!(rejected, Err(Failure::Unauthenticated(_))), "{path}: {rejected:?}");
            assert!(done(Authenticator::open().authenticate(&request(path))).is_ok(), "{path}");
        }
        let health = request("/grpc.health.v1.Health/Check");
        assert!(done(certificate_only().authenticate(&health)).is_ok());
    }

    #[test]
    fn certificate_gives_the_subject() {
        let mut request = Request::post("/msg.v1.MsgGateway/PullMsgs").body(()).expect("it is valid");
        let peer = PeerIdentity { uris: vec!["alice".to_owned()], dns_names: Vec::new() };
        request.extensions_mut().insert(Lifetime::of_peer(peer));
        let caller = done(certificate_only().authenticate(&request)).expect("it has a certificate");
        assert!(caller.check_read("alice", || "recv_id".into()).is_ok());
        assert!(caller.check_read("bob", || "recv_id".into()).is_err());
    }

    #[test]
    fn method_without_a_rule_is_denied() {
        let mut request = Request::post("/msg.v1.MsgGateway/DeleteMsgs").body(()).expect("it is valid");
        let peer = PeerIdentity { uris: vec!["alice".to_owned()], dns_names: Vec::new() };
        request.extensions_mut().insert(Lifetime::of_peer(peer));
        let denied = done(certificate_only().authenticate(&request));
        assert!(matches!(denied, Err(Failure::PermissionDenied(_))), "{denied:?}");
    }
}
