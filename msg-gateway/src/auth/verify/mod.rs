//! Verifies bearer tokens: JSON Web Tokens that an issuer has signed for this gateway.

pub(crate) mod cache;
pub(crate) mod endpoint;
pub(crate) mod keys;
pub(crate) mod refresh;
pub(crate) mod source;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use crate::auth::Rejection;
use crate::auth::identity::Identity;
use crate::auth::rules::unix_seconds;
use crate::auth::verify::cache::digest;
use crate::auth::verify::keys::{KeyTerm, Keys};
use crate::auth::verify::refresh::Refresher;

/// Maximum length of a token. All headers of a request together may have 16 KiB.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// What a token has to say.
#[derive(Clone, Debug)]
pub(crate) struct TokenRules {
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) issuer: String,
    pub(crate) audience: String,
    /// The claim with the subject.
    pub(crate) subject_claim: String,
    /// The claim with the tenant, if tenants have quotas.
    pub(crate) tenant_claim: Option<String>,
}

/// Verifies tokens with the issuer's current keys.
pub(crate) struct Verifier {
    rules: TokenRules,
    /// Prepared for each algorithm: the library requires that all algorithms of a validation are of one family.
    validations: Vec<(Algorithm, Validation)>,
    /// `None` until the first keys were fetched, and after they have become too old.
    keys: ArcSwapOption<Keys>,
}

impl Verifier {
    pub(crate) fn new(rules: TokenRules, keys: Option<Keys>) -> Self {
        let validation = |algorithm: &Algorithm| {
            let mut validation = Validation::new(*algorithm);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            validation.set_issuer(&[&rules.issuer]);
            validation.set_audience(&[&rules.audience]);
            // The times are compared in `Identity`, because those of a cached token have to be compared again.
            validation.validate_exp = false;
            (*algorithm, validation)
        };
        let validations = rules.algorithms.iter().map(validation).collect();
        Verifier { rules, validations, keys: ArcSwapOption::new(keys.map(Arc::new)) }
    }

    pub(crate) fn rules(&self) -> &TokenRules {
        &self.rules
    }

    /// Replaces the keys, and forgets the tokens that were verified with the old ones. Ends the streams of callers whose
    /// key is not among the new ones. Only one task replaces the keys of a verifier.
    pub(crate) fn replace_keys(&self, mut keys: Option<Keys>) {
        let ended: Vec<KeyTerm> = match (self.keys.load_full(), &mut keys) {
            (None, _) => Vec::new(),
            (Some(previous), Some(keys)) => keys.succeed(&previous),
            (Some(previous), None) => previous.terms().cloned().collect(),
        };
        self.keys.store(keys.map(Arc::new));
        // After that: a stream that is opened again must be verified with the new keys.
        ended.iter().for_each(|term| term.withdrawn().cancel());
    }

    /// Verifies a token. Returns who it is about.
    pub(crate) fn verify(&self, token: &str) -> Result<Arc<Identity>, Rejection> {
        self.verify_at(token, unix_seconds(SystemTime::now()))
    }

    fn verify_at(&self, token: &str, now: u64) -> Result<Arc<Identity>, Rejection> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Rejection::TooLarge);
        }
        let Some(keys) = self.keys.load_full() else { return Err(Rejection::NoKeys) };
        let digest = digest(token);
        if let Some(identity) = keys.verified.get(&digest) {
            return match identity.check_time(now) {
                Ok(()) => Ok(identity),
                Err(rejection) => {
                    keys.verified.remove(&digest);
                    Err(rejection)
                }
            };
        }
        let (claims, term) = self.verify_signature(&keys, token)?;
        let identity = Identity::of_claims(&claims, &self.rules.subject_claim)?;
        let identity = identity.with_tenant(&claims, self.rules.tenant_claim.as_deref())?;
        let identity = Arc::new(identity.verified_with(term));
        identity.check_time(now)?;
        keys.verified.put(digest, identity.clone());
        Ok(identity)
    }

    /// Verifies the signature, the issuer and the audience. Returns the claims, and the term of the key.
    fn verify_signature(&self, keys: &Keys, token: &str) -> Result<(Map<String, Value>, KeyTerm), Rejection> {
        // `alg=none` and algorithms that the library does not know are errors here.
        let header = decode_header(token).map_err(|_| Rejection::Malformed)?;
        let validation = self.validations.iter().find(|(algorithm, _)| *algorithm == header.alg);
        let (_, validation) = validation.ok_or(Rejection::Algorithm)?;
        let mut rejection = Rejection::UnknownKey;
        for key in keys.find(header.kid.as_deref(), header.alg)? {
            match decode::<Map<String, Value>>(token, &key.key, validation) {
                // The library accepts a list of issuers; RFC 7519 does not.
                Ok(token) if token.claims.get("iss").is_some_and(Value::is_string) => {
                    return Ok((token.claims, key.term.clone()));
                }
                Ok(_) => return Err(Rejection::Issuer),
                // The key may have been replaced by another one that has no ID either.
                Err(error) if *error.kind() == ErrorKind::InvalidSignature && key.has_no_id() => {}
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => rejection = Rejection::Signature,
                Err(error) => return Err(rejection_of(&error)),
            }
        }
        Err(rejection)
    }
}

fn rejection_of(error: &Error) -> Rejection {
    match error.kind() {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidKeyFormat => Rejection::Algorithm,
        ErrorKind::InvalidIssuer => Rejection::Issuer,
        ErrorKind::InvalidAudience => Rejection::Audience,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Rejection::Claims,
        _ => Rejection::Malformed,
    }
}

/// Tokens, and where the keys come from that they are verified with.
pub(crate) struct Tokens {
    pub(crate) verifier: Arc<Verifier>,
    /// `None` if the keys are in a file.
    pub(crate) refresher: Option<Arc<Refresher>>,
}

impl Tokens {
    pub(crate) fn verify(&self, token: &str) -> Result<Arc<Identity>, Rejection> {
        self.verifier.verify(token)
    }

    /// Returns whether the issuer may be asked for the key of a token that was rejected.
    pub(crate) fn can_fetch_for(&self, rejection: Rejection) -> bool {
        matches!(rejection, Rejection::UnknownKey | Rejection::NoKeys) && self.refresher.is_some()
    }

    /// Verifies a token again after the keys were fetched, if that is due.
    pub(crate) async fn verify_with_fresh_keys(&self, token: &str) -> Result<Arc<Identity>, Rejection> {
        let Some(refresher) = &self.refresher else { return self.verify(token) };
        let is_fresh = refresher.refresh_for_unknown_key().await;
        self.verify(token).map_err(|rejection| match rejection {
            // The issuer may have the key. The caller is not to blame, and can try again.
            Rejection::UnknownKey if !is_fresh => Rejection::NoKeys,
            rejection => rejection,
        })
    }
}
