//! An issuer for tests: keys of every kind, and tokens that are signed with them.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::auth::verify::TokenRules;

pub(crate) const ISSUER: &str = "https://issuer.example.org";
pub(crate) const AUDIENCE: &str = "msg-gateway";
/// The time of the tests, in seconds since 1970.
pub(crate) const NOW: u64 = 1_700_000_000;

pub(crate) fn rules(algorithms: &[Algorithm]) -> TokenRules {
    TokenRules {
        algorithms: algorithms.to_vec(),
        issuer: ISSUER.into(),
        audience: AUDIENCE.into(),
        subject_claim: "sub".into(),
        tenant_claim: None,
    }
}

/// The claims of a good token of alice that is valid for an hour.
pub(crate) fn claims() -> Value {
    json!({ "sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": NOW + 3600 })
}

/// Good claims, except for one. With `null`, the claim is removed.
pub(crate) fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let object = claims.as_object_mut().expect("an object");
    if value.is_null() {
        object.remove(name)
    } else {
        object.insert(name.into(), value)
    };
    claims
}

/// A key pair of the issuer.
pub(crate) struct SigningKey {
    pub(crate) algorithm: Algorithm,
    pub(crate) kid: &'static str,
    key: EncodingKey,
    /// The public key as a PEM file.
    pub(crate) pem: String,
}

impl SigningKey {
    pub(crate) fn new(algorithm: Algorithm, kid: &'static str) -> Self {
        let (key, public) = match algorithm {
            Algorithm::ES256 => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDSA => ed25519(),
            _ => rsa(KeySize::Rsa2048),
        };
        SigningKey { algorithm, kid, key, pem: pem("PUBLIC KEY", &public) }
    }

    /// Signs with a `kid`.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(&Header { kid: Some(self.kid.into()), ..Header::new(self.algorithm) }, claims)
    }

    pub(crate) fn sign_with(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).expect("it can be signed")
    }

    /// Returns the public key as an entry of a JWK set.
    pub(crate) fn jwk(&self) -> Value {
        // The library knows the curve only by the algorithm, and the algorithm is optional in a JWK.
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("it is a key pair");
        let mut jwk = serde_json::to_value(jwk).expect("it is JSON");
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }
}

pub(crate) fn jwks(keys: &[&SigningKey]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

/// A token with any header, whose signature is wrong.
pub(crate) fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (header, claims) = (header.to_string(), claims.to_string());
    format!("{}.{}.{}", part(header.as_bytes()), part(claims.as_bytes()), part(signature))
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> (EncodingKey, Vec<u8>) {
    let private = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).expect("it is generated");
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref()).expect("it was generated");
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("it is a key");
    (EncodingKey::from_ec_der(private.as_ref()), public.as_ref().to_vec())
}

fn ed25519() -> (EncodingKey, Vec<u8>) {
    let private = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).expect("it is generated");
    let pair = Ed25519KeyPair::from_pkcs8(private.as_ref()).expect("it was generated");
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("it is a key");
    (EncodingKey::from_ed_der(private.as_ref()), public.as_ref().to_vec())
}

fn rsa(size: KeySize) -> (EncodingKey, Vec<u8>) {
    let pair = RsaKeyPair::generate(size).expect("it is generated");
    let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).expect("it is a key");
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("it is a key");
    let key = EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes());
    (key.expect("it is a key"), public.as_ref().to_vec())
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}
