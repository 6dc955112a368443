//! The keys that tokens are verified with, and how they are read from a PEM file, a JWK set or a secret.

use std::str::FromStr;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::auth::Rejection;
use crate::auth::verify::cache::TokenCache;

/// Maximum number of keys of a source. Issuers publish two or three.
const MAX_KEYS: usize = 100;
/// Maximum number of keys that are tried for one token, so that a token without a `kid` costs little.
const MAX_TRIED: usize = 4;
/// Minimum size of an RSA key. The provider of cryptography rejects every signature of a smaller one.
const MIN_RSA_BYTES: usize = 2048 / 8;
/// Minimum size of a secret: as many bytes as the digest of HS256 has (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// Why a source has no usable keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a PEM file with public keys.
    #[error("holds no public key in PEM form: begin it with -----BEGIN PUBLIC KEY-----")]
    NotPem,
    /// It has a private key, which verifies nothing and should not be here.
    #[error("holds a private key: give the public key only")]
    Private,
    /// A key of a PEM file cannot be read.
    #[error("key {number} of the file cannot be read")]
    Unreadable {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
    /// The text is not a JWK set.
    #[error("is no JWK set")]
    NotJwks(#[source] serde_json::Error),
    /// The JSON has no list of keys.
    #[error("is no JWK set: it has no list `keys`")]
    NoList,
    /// No key can be used with the configured algorithms.
    #[error("has {found} keys, and none that fits --auth-jwt-algorithms and verifies signatures")]
    NoneFits {
        /// The number of keys in it.
        found: usize,
    },
    /// It has too many keys.
    #[error("has {0} keys; at most {MAX_KEYS}")]
    TooMany(usize),
    /// The secret is too short.
    #[error("has {0} bytes; a secret needs at least {MIN_SECRET_BYTES}")]
    ShortSecret(usize),
}

/// The keys of the issuer at one time, with the tokens that were verified with them. When the keys are replaced, so are
/// the tokens: a key that was withdrawn stops working.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: Vec<Key>,
    pub(super) verified: TokenCache,
}

#[derive(Debug)]
pub(super) struct Key {
    /// `None` fits every token: the keys of a PEM file and a secret have no ID.
    kid: Option<String>,
    /// The configured algorithms that fit the type of the key. A token with another one is not verified at all, so a
    /// public key is never used as a secret.
    algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
    /// How long the key is in force.
    pub(super) term: KeyTerm,
}

/// How long a key is in force: until it is not among the issuer's keys any more. Two are equal if they are of the same
/// key, with the same ID and the same algorithms.
#[derive(Clone, Debug)]
pub(crate) struct KeyTerm {
    fingerprint: [u8; 32],
    withdrawn: CancellationToken,
}

impl PartialEq for KeyTerm {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for KeyTerm {}

impl KeyTerm {
    /// Returns what is cancelled when the key is withdrawn.
    pub(crate) fn withdrawn(&self) -> &CancellationToken {
        &self.withdrawn
    }
}

impl Keys {
    /// Returns the keys of an issuer that has withdrawn all of them. They verify no token.
    pub(crate) fn none() -> Self {
        Keys { keys: Vec::new(), verified: TokenCache::default() }
    }

    /// Continues the terms of the keys that are among `previous` too. Returns those that these keys end.
    pub(super) fn succeed(&mut self, previous: &Keys) -> Vec<KeyTerm> {
        for key in &mut self.keys {
            if let Some(same) = previous.keys.iter().find(|previous| previous.term == key.term) {
                key.term = same.term.clone();
            }
        }
        previous.terms().filter(|term| self.terms().all(|kept| kept != *term)).cloned().collect()
    }

    pub(super) fn terms(&self) -> impl Iterator<Item = &KeyTerm> {
        self.keys.iter().map(|key| &key.term)
    }

    /// Reads public keys from a PEM file.
    pub(crate) fn from_pem(text: &str, allowed: &[Algorithm]) -> Result<Self, KeyError> {
        const END: &str = "-----END PUBLIC KEY-----";
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some((block, after)) = rest.split_once(END) {
            rest = after;
            let number = keys.len() + 1;
            let pem = format!("{block}{END}\n");
            let key = public_key(pem.as_bytes()).map_err(|source| KeyError::Unreadable { number, source })?;
            keys.push(Key::new(None, fitting(&key, allowed), key));
        }
        if keys.is_empty() { Err(KeyError::NotPem) } else { Keys::of(keys) }
    }

    /// Reads public keys from a JWK set. Leaves out keys of other types and for other purposes (RFC 7517, section 5).
    pub(crate) fn from_jwks(text: &[u8], allowed: &[Algorithm]) -> Result<Self, KeyError> {
        let set: Value = serde_json::from_slice(text).map_err(KeyError::NotJwks)?;
        let list = set.get("keys").and_then(Value::as_array).ok_or(KeyError::NoList)?;
        if list.len() > MAX_KEYS {
            return Err(KeyError::TooMany(list.len()));
        }
        let found = list.len();
        let keys: Vec<Key> = list.iter().filter_map(|jwk| from_jwk(jwk, allowed)).collect();
        if keys.is_empty() {
            return Err(KeyError::NoneFits { found });
        }
        let left_out = found - keys.len();
        if left_out > 0 {
            tracing::info!(
                used = keys.len(),
                left_out,
                "left out keys of the token issuer that verify no accepted token"
            );
        }
        Keys::of(keys)
    }

    /// Makes a key of a secret.
    pub(crate) fn from_secret(secret: &str, allowed: &[Algorithm]) -> Result<Self, KeyError> {
        let short = KeyError::ShortSecret(secret.len());
        if secret.len() < MIN_SECRET_BYTES {
            return Err(short);
        }
        let key = DecodingKey::from_secret(secret.as_bytes()).map_err(|_| short)?;
        let algorithms = allowed.iter().copied().filter(|alg| alg.family() == AlgorithmFamily::Hmac).collect();
        Keys::of(vec![Key::new(None, algorithms, key)])
    }

    fn of(keys: Vec<Key>) -> Result<Self, KeyError> {
        let found = keys.len();
        let keys: Vec<Key> = keys.into_iter().filter(|key| !key.algorithms.is_empty()).collect();
        if keys.is_empty() {
            return Err(KeyError::NoneFits { found });
        }
        Ok(Keys { keys, verified: TokenCache::default() })
    }

    /// Returns the keys that may have signed a token with this header.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<&Key>, Rejection> {
        // A token without a `kid` may be of any key.
        let is_named = |key: &&Key| kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid;
        let named: Vec<&Key> = self.keys.iter().filter(is_named).collect();
        if named.is_empty() {
            return Err(Rejection::UnknownKey);
        }
        let fitting: Vec<&Key> = named.into_iter().filter(|key| key.algorithms.contains(&algorithm)).collect();
        match fitting.len() {
            0 => Err(Rejection::Algorithm),
            1..=MAX_TRIED => Ok(fitting),
            _ => Err(Rejection::UnknownKey),
        }
    }
}

impl Key {
    fn new(kid: Option<String>, algorithms: Vec<Algorithm>, key: DecodingKey) -> Self {
        let mut hash = Sha256::new();
        // The ID is a string in quotes or `None`, and the algorithms are names, so the parts cannot run together.
        hash.update(format!("{kid:?} {algorithms:?} "));
        match key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => hash.update(bytes),
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                hash.update(n.len().to_be_bytes());
                hash.update(n);
                hash.update(e);
            }
        }
        let term = KeyTerm { fingerprint: hash.finalize().into(), withdrawn: CancellationToken::new() };
        Key { kid, algorithms, key, term }
    }

    /// Returns whether a token of another key may have been tried with this one.
    pub(super) fn has_no_id(&self) -> bool {
        self.kid.is_none()
    }
}

fn public_key(pem: &[u8]) -> Result<DecodingKey, jsonwebtoken::errors::Error> {
    DecodingKey::from_ed_pem(pem).or_else(|_| DecodingKey::from_ec_pem(pem)).or_else(|_| DecodingKey::from_rsa_pem(pem))
}

/// Returns the allowed algorithms that fit a public key: those of its family and, on a curve, of its size.
fn fitting(key: &DecodingKey, allowed: &[Algorithm]) -> Vec<Algorithm> {
    // A JWK has the sizes, whatever form the key was read from.
    let Ok(jwk) = Jwk::from_decoding_key(key, None) else { return Vec::new() };
    let fits = |algorithm: &Algorithm| match &jwk.algorithm {
        AlgorithmParameters::RSA(parameters) => {
            algorithm.family() == AlgorithmFamily::Rsa && base64_bytes(&parameters.n) >= MIN_RSA_BYTES
        }
        AlgorithmParameters::EllipticCurve(parameters) => match algorithm {
            Algorithm::ES256 => parameters.curve == EllipticCurve::P256,
            Algorithm::ES384 => parameters.curve == EllipticCurve::P384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(_) => algorithm.family() == AlgorithmFamily::Ed,
        // A secret in a JWK set is for everyone who can read the set.
        _ => false,
    };
    allowed.iter().copied().filter(fits).collect()
}

fn base64_bytes(text: &str) -> usize {
    text.len() * 3 / 4
}

/// Reads a key of a JWK set; `None` if it is of another type or for another purpose.
fn from_jwk(jwk: &Value, allowed: &[Algorithm]) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(jwk.clone()).ok()?;
    let common = &jwk.common;
    let verifies = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    if !verifies || matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    let own = common.key_algorithm.map(|own| Algorithm::from_str(&own.to_string()).ok());
    let is_own = |algorithm: &Algorithm| own.is_none_or(|own| own == Some(*algorithm));
    let algorithms: Vec<_> = fitting(&key, allowed).into_iter().filter(is_own).collect();
    (!algorithms.is_empty()).then(|| Key::new(common.key_id.clone(), algorithms, key))
}
