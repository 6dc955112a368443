//! Why a call is not authenticated: the label of the metric, and the text for the caller.

use metrics::counter;

use crate::metrics::AUTH_REJECTIONS;
use crate::status::Failure;

/// Why credentials are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The call has no bearer token.
    Missing,
    /// The token is no JWT, or is given twice.
    Malformed,
    TooLarge,
    /// The algorithm is not configured, or does not fit the key.
    Algorithm,
    /// The issuer's keys do not include the token's.
    UnknownKey,
    Signature,
    Expired,
    NotYetValid,
    Issuer,
    Audience,
    /// A required claim is missing, or a claim has a wrong type.
    Claims,
    /// There is no client certificate, or not exactly one name of the configured kind in it.
    Certificate,
    /// The gateway has no keys, or cannot check whether the issuer has new ones.
    NoKeys,
}

impl Rejection {
    /// Counts the rejection, and returns the error for the caller. It says what to correct, and repeats nothing of the
    /// token.
    pub(crate) fn into_failure(self) -> Failure {
        count(self.label());
        match self {
            Rejection::NoKeys => {
                Failure::NotSent("the gateway cannot check tokens at present: it has no keys of their issuer".into())
            }
            rejection => Failure::Unauthenticated(rejection.text()),
        }
    }

    /// Returns the label of the metric, which is also the reason in the audit log.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Rejection::Missing => "missing",
            Rejection::Malformed => "malformed",
            Rejection::TooLarge => "too_large",
            Rejection::Algorithm => "algorithm",
            Rejection::UnknownKey => "unknown_key",
            Rejection::Signature => "signature",
            Rejection::Expired => "expired",
            Rejection::NotYetValid => "not_yet_valid",
            Rejection::Issuer => "issuer",
            Rejection::Audience => "audience",
            Rejection::Claims => "claims",
            Rejection::Certificate => "certificate",
            Rejection::NoKeys => "no_keys",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Rejection::Missing => "the call has no token; send the header `authorization: Bearer TOKEN`",
            Rejection::Malformed => "the token is no JSON Web Token, or more than one is given",
            Rejection::TooLarge => "the token is too large",
            Rejection::Algorithm => "the token is signed with an algorithm that is not accepted",
            Rejection::UnknownKey => "the token is signed with a key that is not known",
            Rejection::Signature => "the signature of the token is wrong",
            Rejection::Expired => "the token has expired; get a new one",
            Rejection::NotYetValid => "the token is not valid yet",
            Rejection::Issuer => "the token is of another issuer",
            Rejection::Audience => "the token is for another audience",
            Rejection::Claims => "the token lacks a required claim, or a claim has a wrong type",
            Rejection::Certificate => "the call needs a client certificate with exactly one name of the accepted kind",
            Rejection::NoKeys => "the gateway cannot check tokens at present",
        }
    }
}

/// Counts a rejected call or entry.
pub(crate) fn count(reason: &'static str) {
    counter!(AUTH_REJECTIONS, "reason" => reason).increment(1);
}
