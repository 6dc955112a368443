//! Who a caller is: a subject with scopes, from a token or from a client certificate.

use msg_common::tls::PeerIdentity;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::auth::Rejection;
use crate::auth::scopes::Scopes;
use crate::auth::verify::keys::KeyTerm;

/// Seconds that the clocks of the gateway and the issuer may differ.
pub(crate) const SKEW_SECONDS: u64 = 30;

/// The kind of name in a client certificate that is the caller's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CertificateName {
    /// A URI of the subject alternative name, such as a SPIFFE ID
    Uri,
    /// A DNS name of the subject alternative name
    Dns,
}

/// Returns the subject of a client certificate: its only name of this kind. With several, anyone of them could be meant.
pub(crate) fn subject_of(peer: &PeerIdentity, kind: CertificateName) -> Result<&str, Rejection> {
    let names = match kind {
        CertificateName::Uri => &peer.uris,
        CertificateName::Dns => &peer.dns_names,
    };
    match names.as_slice() {
        [name] if !name.is_empty() => Ok(name),
        _ => Err(Rejection::Certificate),
    }
}

/// A caller whose credentials were verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    subject: String,
    scopes: Scopes,
    validity: Validity,
    tenant: Option<String>,
    /// The term of the key that verified the token; `None` for a certificate.
    key: Option<KeyTerm>,
}

/// When a token is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    not_before: Option<u64>,
    /// `None` for a certificate: its connection has a maximum age.
    expires: Option<u64>,
}

impl Identity {
    /// Reads the identity from the claims of a verified token. Checks `exp` and `nbf`, but does not compare them.
    pub(crate) fn of_claims(claims: &Map<String, Value>, subject_claim: &str) -> Result<Self, Rejection> {
        let subject = claims.get(subject_claim).and_then(Value::as_str).filter(|subject| !subject.is_empty());
        let not_before = claims.get("nbf").map(|nbf| seconds(nbf).ok_or(Rejection::Claims)).transpose()?;
        let expires = claims.get("exp").and_then(seconds).ok_or(Rejection::Claims)?;
        Ok(Identity {
            subject: subject.ok_or(Rejection::Claims)?.to_owned(),
            scopes: Scopes::of_claims(claims)?,
            validity: Validity { not_before, expires: Some(expires) },
            tenant: None,
            key: None,
        })
    }

    /// Adds the tenant, which is a claim of the same token. A tenant that cannot be read is an error: the caller would
    /// otherwise have no quota of a tenant.
    pub(crate) fn with_tenant(self, claims: &Map<String, Value>, claim: Option<&str>) -> Result<Self, Rejection> {
        let tenant = match claim.and_then(|claim| claims.get(claim)) {
            None => None,
            Some(Value::String(tenant)) if !tenant.is_empty() => Some(tenant.clone()),
            Some(_) => return Err(Rejection::Claims),
        };
        Ok(Identity { tenant, ..self })
    }

    /// Adds the term of the key that has verified the token.
    pub(crate) fn verified_with(self, key: KeyTerm) -> Self {
        Identity { key: Some(key), ..self }
    }

    /// Makes the identity of a certificate, which has no scopes and, as long as the connection is open, no end.
    pub(crate) fn of_subject(subject: &str) -> Self {
        let validity = Validity { not_before: None, expires: None };
        Identity { subject: subject.to_owned(), scopes: Scopes::default(), validity, tenant: None, key: None }
    }

    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    pub(crate) fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Returns what is cancelled when the key of the token is withdrawn.
    pub(crate) fn key_withdrawn(&self) -> Option<&CancellationToken> {
        self.key.as_ref().map(KeyTerm::withdrawn)
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Checks whether the token is valid at `now`, in seconds since 1970.
    pub(crate) fn check_time(&self, now: u64) -> Result<(), Rejection> {
        if self.validity.not_before.is_some_and(|start| start > now.saturating_add(SKEW_SECONDS)) {
            return Err(Rejection::NotYetValid);
        }
        if self.validity.expires.is_some_and(|end| end.saturating_add(SKEW_SECONDS) <= now) {
            return Err(Rejection::Expired);
        }
        Ok(())
    }

    /// Returns how many seconds a stream that opens at `now` may last. It ends at the token's `exp`; if it opens during
    /// the skew after that, at the end of the skew, because it would otherwise end before it starts.
    pub(crate) fn seconds_left(&self, now: u64) -> Option<u64> {
        let end = self.validity.expires?;
        let end = if end > now { end } else { end.saturating_add(SKEW_SECONDS) };
        Some(end.saturating_sub(now))
    }
}

/// Reads a NumericDate (RFC 7519). Rounds down, so that a token never lasts longer than its issuer says.
fn seconds(value: &Value) -> Option<u64> {
    let fractional = || value.as_f64().filter(|seconds| (0.0..1e18).contains(seconds)).map(|seconds| seconds as u64);
    value.as_u64().or_else(fractional)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(claims: &Value) -> Result<Identity, Rejection> {
        Identity::of_claims(claims.as_object().expect("an object"), "sub")
    }

    #[test]
    fn subject_is_the_configured_claim() {
        let claims = json!({ "sub": "1234", "user": "alice", "exp": 1000 });
        let claims = claims.as_object().expect("an object");
        assert_eq!(Identity::of_claims(claims, "user").expect("it is good").subject(), "alice");
        assert_eq!(Identity::of_claims(claims, "name"), Err(Rejection::Claims));
        for sub in [json!(""), json!(7), json!(["alice"]), Value::Null] {
            assert_eq!(identity(&json!({ "sub": sub, "exp": 1000 })), Err(Rejection::Claims), "{sub}");
        }
    }

    #[test]
    fn tenant_is_a_text_or_missing() {
        let with = |tenant: Value| {
            let claims = json!({ "sub": "alice", "exp": 1000, "org": tenant });
            let claims = claims.as_object().expect("an object");
            let of = |claim| {
                identity(&json!({ "sub": "alice", "exp": 1000 })).and_then(|one| one.with_tenant(claims, claim))
            };
            [None, Some("tenant"), Some("org")].map(|claim| of(claim).map(|one| one.tenant().map(str::to_owned)))
        };
        assert_eq!(with(json!("red")), [Ok(None), Ok(None), Ok(Some("red".to_owned()))]);
        for tenant in [json!(""), json!(7), json!(["red"]), Value::Null] {
            assert_eq!(with(tenant.clone()), [Ok(None), Ok(None), Err(Rejection::Claims)], "{tenant}");
        }
    }

    #[test]
    fn token_is_valid_from_nbf_to_exp_with_a_skew() {
        let token = identity(&json!({ "sub": "alice", "nbf": 1000, "exp": 2000 })).expect("it is good");
        for (now, expected) in [
            (969, Err(Rejection::NotYetValid)),
            (970, Ok(())),
            (2029, Ok(())),
            (2030, Err(Rejection::Expired)),
            (u64::MAX, Err(Rejection::Expired)),
        ] {
            assert_eq!(token.check_time(now), expected, "{now}");
        }
        let endless = identity(&json!({ "sub": "alice", "exp": u64::MAX })).expect("it is good");
        assert_eq!(endless.check_time(u64::MAX - 1), Ok(()));
    }

    #[test]
    fn times_that_are_no_numbers_are_rejected() {
        for exp in [Value::Null, json!("2000"), json!(-1), json!([1]), json!(1e300)] {
            assert_eq!(identity(&json!({ "sub": "alice", "exp": exp })), Err(Rejection::Claims), "{exp}");
            let token = json!({ "sub": "alice", "exp": 2000, "nbf": exp });
            assert_eq!(identity(&token), Err(Rejection::Claims), "{exp}");
        }
        assert_eq!(identity(&json!({ "sub": "alice" })), Err(Rejection::Claims));
        let fractional = identity(&json!({ "sub": "alice", "exp": 2000.9 })).expect("it is good");
        assert_eq!(fractional.seconds_left(1990), Some(10));
    }

    #[test]
    fn stream_ends_at_exp_or_at_the_end_of_the_skew() {
        let token = identity(&json!({ "sub": "alice", "exp": 2000 })).expect("it is good");
        assert_eq!([1999, 2000, 2029].map(|now| token.seconds_left(now)), [Some(1), Some(30), Some(1)]);
        assert_eq!(Identity::of_subject("alice").seconds_left(2000), None);
    }

    #[test]
    fn certificate_has_exactly_one_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let of = |uris: &[&str], dns: &[&str]| PeerIdentity { uris: names(uris), dns_names: names(dns) };
        let peer = of(&["spiffe://example.org/alice"], &["alice.example.org", "www.example.org"]);
        assert_eq!(subject_of(&peer, CertificateName::Uri), Ok("spiffe://example.org/alice"));
        assert_eq!(subject_of(&peer, CertificateName::Dns), Err(Rejection::Certificate));
        assert_eq!(subject_of(&of(&[], &["alice"]), CertificateName::Uri), Err(Rejection::Certificate));
        assert_eq!(subject_of(&of(&[""], &[]), CertificateName::Uri), Err(Rejection::Certificate));
    }
}
