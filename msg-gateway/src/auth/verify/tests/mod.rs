//! Tokens that are good, and every way in which a token can be wrong.

pub(crate) mod issuer;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use self::issuer::{AUDIENCE, ISSUER, NOW, SigningKey, claims, claims_with, forged, jwks, rules};
use super::keys::KeyError;
use super::*;

const PUBLIC_KEY_ALGORITHMS: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::PS256, Algorithm::RS512, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

fn verifier(keys: &[&SigningKey], algorithms: &[Algorithm]) -> Verifier {
    let keys = Keys::from_jwks(jwks(keys).as_bytes(), algorithms).expect("they are good");
    Verifier::new(rules(algorithms), Some(keys))
}

/// A verifier of a set with one key for ES256.
fn es256() -> (SigningKey, Verifier) {
    let key = SigningKey::new(Algorithm::ES256, "a");
    let verifier = verifier(&[&key], &[Algorithm::ES256]);
    (key, verifier)
}

fn subject(verified: Result<Arc<Identity>, Rejection>) -> Result<String, Rejection> {
    verified.map(|identity| identity.subject().to_owned())
}

#[test]
fn token_of_each_algorithm_is_verified() {
    let all = PUBLIC_KEY_ALGORITHMS;
    for algorithm in all {
        let key = SigningKey::new(algorithm, "a");
        let token = key.sign(&claims());
        let set = verifier(&[&key], &all);
        assert_eq!(subject(set.verify_at(&token, NOW)), Ok("alice".into()), "{algorithm:?}, JWK set");
        assert_eq!(subject(set.verify_at(&token, NOW)), Ok("alice".into()), "{algorithm:?}, cached");
        let pem = Keys::from_pem(&key.pem, &all).expect("it is a key");
        let file = Verifier::new(rules(&all), Some(pem));
        assert_eq!(subject(file.verify_at(&token, NOW)), Ok("alice".into()), "{algorithm:?}, PEM file");
        let others: Vec<_> = all.into_iter().filter(|other| *other != algorithm).collect();
        let strict = Verifier::new(rules(&others), Keys::from_pem(&key.pem, &others).ok());
        let rejected = strict.verify_at(&token, NOW);
        assert!(matches!(rejected, Err(Rejection::Algorithm | Rejection::NoKeys)), "{algorithm:?}: {rejected:?}");
    }
}

#[test]
fn unsigned_token_is_rejected() {
    let (_, verifier) = es256();
    for alg in ["none", "None", "NONE", "nOnE", "", "HS1", "ES256K"] {
        for header in [json!({ "alg": alg }), json!({ "alg": alg, "kid": "a", "typ": "JWT" })] {
            let rejected = verifier.verify_at(&forged(&header, &claims(), b""), NOW);
            assert_eq!(rejected, Err(Rejection::Malformed), "{header}");
        }
    }
    let unsigned = forged(&json!({ "alg": "ES256", "kid": "a" }), &claims(), b"");
    assert_eq!(verifier.verify_at(&unsigned, NOW), Err(Rejection::Signature));
}

/// The attacker signs with HMAC, and takes the public key, which everyone knows, as the secret.
#[test]
fn public_key_is_never_used_as_a_secret() {
    let key = SigningKey::new(Algorithm::RS256, "a");
    let header = Header { kid: Some("a".into()), ..Header::new(Algorithm::HS256) };
    let secret = EncodingKey::from_secret(key.pem.as_bytes()).expect("it is not empty");
    let token = encode(&header, &claims(), &secret).expect("it can be signed");
    // Even settings that allow both HMAC and RSA do not change that.
    for allowed in [&[Algorithm::RS256][..], &[Algorithm::RS256, Algorithm::HS256]] {
        let pem = Keys::from_pem(&key.pem, allowed).expect("it is a key");
        let file = Verifier::new(rules(allowed), Some(pem));
        assert_eq!(file.verify_at(&token, NOW), Err(Rejection::Algorithm), "{allowed:?}");
        assert_eq!(verifier(&[&key], allowed).verify_at(&token, NOW), Err(Rejection::Algorithm), "{allowed:?}");
    }
    let set = json!({ "keys": [{ "kty": "oct", "kid": "a", "alg": "HS256", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0" }] });
    let published = Keys::from_jwks(set.to_string().as_bytes(), &[Algorithm::HS256, Algorithm::RS256]);
    assert!(matches!(published, Err(KeyError::NoneFits { found: 1 })), "a published secret is a key");
}

#[test]
fn secret_verifies_only_its_own_tokens() {
    let secret = "0123456789abcdef0123456789abcdef";
    let allowed = [Algorithm::HS256];
    let verifier = Verifier::new(rules(&allowed), Keys::from_secret(secret, &allowed).ok());
    let token = |secret: &str, algorithm| {
        let key = EncodingKey::from_secret(secret.as_bytes()).expect("it is not empty");
        encode(&Header::new(algorithm), &claims(), &key).expect("it can be signed")
    };
    assert_eq!(subject(verifier.verify_at(&token(secret, Algorithm::HS256), NOW)), Ok("alice".into()));
    assert_eq!(verifier.verify_at(&token(secret, Algorithm::HS512), NOW), Err(Rejection::Algorithm));
    let other = token("0123456789abcdef0123456789abcdee", Algorithm::HS256);
    assert_eq!(verifier.verify_at(&other, NOW), Err(Rejection::UnknownKey));
    assert!(matches!(Keys::from_secret("short", &allowed), Err(KeyError::ShortSecret(5))));
    assert!(matches!(Keys::from_secret(secret, &[Algorithm::RS256]), Err(KeyError::NoneFits { .. })));
}

#[test]
fn claims_of_another_issuer_or_audience_are_rejected() {
    let (key, verifier) = es256();
    for (name, value, expected) in [
        ("iss", json!("https://evil.example.org"), Rejection::Issuer),
        ("iss", json!([ISSUER]), Rejection::Issuer),
        ("iss", json!(ISSUER.to_uppercase()), Rejection::Issuer),
        ("iss", json!(7), Rejection::Claims),
        ("iss", Value::Null, Rejection::Claims),
        ("aud", json!("another-service"), Rejection::Audience),
        ("aud", json!(["another-service"]), Rejection::Audience),
        ("aud", json!([]), Rejection::Audience),
        ("aud", json!({}), Rejection::Claims),
        ("aud", Value::Null, Rejection::Claims),
        ("exp", Value::Null, Rejection::Claims),
        ("exp", json!("tomorrow"), Rejection::Claims),
        ("exp", json!(NOW - 30), Rejection::Expired),
        ("nbf", json!(NOW + 31), Rejection::NotYetValid),
        ("nbf", json!("tomorrow"), Rejection::Claims),
        ("sub", Value::Null, Rejection::Claims),
        ("scope", json!(7), Rejection::Claims),
    ] {
        let token = key.sign(&claims_with(name, value.clone()));
        assert_eq!(verifier.verify_at(&token, NOW), Err(expected), "{name}: {value}");
    }
    for (name, value) in [
        ("aud", json!(["another-service", AUDIENCE])),
        ("exp", json!(NOW - 29)),
        ("nbf", json!(NOW + 30)),
        ("iat", json!(NOW + 1000)),
        ("scope", json!("")),
    ] {
        let token = key.sign(&claims_with(name, value.clone()));
        assert_eq!(subject(verifier.verify_at(&token, NOW)), Ok("alice".into()), "{name}: {value}");
    }
}

#[test]
fn changed_token_is_rejected() {
    let (key, verifier) = es256();
    let token = key.sign(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let other = key.sign(&claims_with("sub", json!("mallory")));
    let others: Vec<&str> = other.split('.').collect();
    let mixed = format!("{}.{}.{}", parts[0], others[1], parts[2]);
    assert_eq!(verifier.verify_at(&mixed, NOW), Err(Rejection::Signature));
    let stranger = SigningKey::new(Algorithm::ES256, "a").sign(&claims());
    assert_eq!(verifier.verify_at(&stranger, NOW), Err(Rejection::Signature));
    for text in ["", ".", "..", "a.b.c", "a.b", &parts[0..2].join("."), &format!("{token}.x"), &token.replace('.', " ")]
    {
        assert_eq!(verifier.verify_at(text, NOW), Err(Rejection::Malformed), "{text}");
    }
    let large = key.sign(&claims_with("more", json!("x".repeat(MAX_TOKEN_BYTES))));
    assert_eq!(verifier.verify_at(&large, NOW), Err(Rejection::TooLarge));
    // An extension that the gateway does not know, and that the issuer says must be known (RFC 7515, section 4.1.11).
    let header = Header { kid: Some("a".into()), crit: Some(vec!["x".into()]), ..Header::new(Algorithm::ES256) };
    assert_eq!(verifier.verify_at(&key.sign_with(&header, &claims()), NOW), Err(Rejection::Malformed));
}

/// An attacker writes its own key, or where to find it, into the header.
#[test]
fn token_does_not_bring_its_own_key() {
    let (key, verifier) = es256();
    let attacker = SigningKey::new(Algorithm::ES256, "a");
    let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(attacker.jwk()).expect("it is a key");
    let url = || Some("https://evil.example.org/keys".to_owned());
    let header = |kid: Option<&str>| Header {
        kid: kid.map(str::to_owned),
        jku: url(),
        jwk: Some(jwk.clone()),
        x5u: url(),
        ..Header::new(Algorithm::ES256)
    };
    let named = header(Some("a"));
    assert_eq!(verifier.verify_at(&attacker.sign_with(&named, &claims()), NOW), Err(Rejection::Signature));
    let unnamed = header(None);
    assert!(verifier.verify_at(&attacker.sign_with(&unnamed, &claims()), NOW).is_err());
    assert!(verifier.verify_at(&key.sign_with(&unnamed, &claims()), NOW).is_ok(), "they are ignored");
}

#[test]
fn key_is_chosen_by_its_id_and_its_purpose() {
    let (a, b) = (SigningKey::new(Algorithm::ES256, "a"), SigningKey::new(Algorithm::ES256, "b"));
    let both = verifier(&[&a, &b], &[Algorithm::ES256]);
    assert!(both.verify_at(&a.sign(&claims()), NOW).is_ok() && both.verify_at(&b.sign(&claims()), NOW).is_ok());
    let as_b = Header { kid: Some("b".into()), ..Header::new(Algorithm::ES256) };
    assert_eq!(both.verify_at(&a.sign_with(&as_b, &claims()), NOW), Err(Rejection::Signature));
    let unnamed = a.sign_with(&Header::new(Algorithm::ES256), &claims());
    assert!(both.verify_at(&unnamed, NOW).is_ok(), "a token without a kid may be of any key");
    let only_b = verifier(&[&b], &[Algorithm::ES256]);
    assert_eq!(only_b.verify_at(&a.sign(&claims()), NOW), Err(Rejection::UnknownKey));
    for (name, value) in [("use", json!("enc")), ("key_ops", json!(["sign"])), ("alg", json!("ES384"))] {
        let mut jwk = a.jwk();
        jwk[name] = value;
        let set = json!({ "keys": [jwk, { "kty": "XYZ", "kid": "c" }, 7] }).to_string();
        let none = Keys::from_jwks(set.as_bytes(), &[Algorithm::ES256]);
        assert!(matches!(none, Err(KeyError::NoneFits { found: 3 })), "{name}");
        let set = json!({ "keys": [jwk, b.jwk()] }).to_string();
        assert!(Keys::from_jwks(set.as_bytes(), &[Algorithm::ES256]).is_ok(), "{name}");
    }
}

#[test]
fn token_stops_with_its_time_and_with_its_key() {
    let (key, verifier) = es256();
    let token = key.sign(&claims_with("exp", json!(NOW + 10)));
    assert!(verifier.verify_at(&token, NOW).is_ok());
    assert!(verifier.verify_at(&token, NOW + 39).is_ok());
    assert_eq!(verifier.verify_at(&token, NOW + 40), Err(Rejection::Expired), "cached");
    assert_eq!(verifier.verify_at(&token, NOW + 40), Err(Rejection::Expired), "not cached any more");
    let token = key.sign(&claims());
    assert!(verifier.verify_at(&token, NOW).is_ok());
    let next = SigningKey::new(Algorithm::ES256, "b");
    let keys = Keys::from_jwks(jwks(&[&next]).as_bytes(), &[Algorithm::ES256]);
    verifier.replace_keys(keys.ok());
    assert_eq!(verifier.verify_at(&token, NOW), Err(Rejection::UnknownKey));
    assert!(verifier.verify_at(&next.sign(&claims()), NOW).is_ok());
    verifier.replace_keys(None);
    assert_eq!(verifier.verify_at(&next.sign(&claims()), NOW), Err(Rejection::NoKeys));
}

#[test]
fn streams_of_a_withdrawn_key_end_and_those_of_others_do_not() {
    let allowed = [Algorithm::ES256];
    let (a, b) = (SigningKey::new(Algorithm::ES256, "a"), SigningKey::new(Algorithm::ES256, "b"));
    let verifier = verifier(&[&a, &b], &allowed);
    let opened = |key: &SigningKey| {
        let identity = verifier.verify_at(&key.sign(&claims()), NOW).expect("its key is known");
        identity.key_withdrawn().expect("it is of a token").clone()
    };
    let published = |keys: &[&SigningKey]| Keys::from_jwks(jwks(keys).as_bytes(), &allowed).expect("they are good");
    let (of_a, of_b) = (opened(&a), opened(&b));
    verifier.replace_keys(Some(published(&[&b, &a])));
    assert!(!of_a.is_cancelled() && !of_b.is_cancelled(), "the same keys in another order");
    verifier.replace_keys(Some(published(&[&b])));
    assert!(of_a.is_cancelled() && !of_b.is_cancelled());
    // A key of the same name is another key.
    verifier.replace_keys(Some(published(&[&SigningKey::new(Algorithm::ES256, "b"), &a])));
    assert!(of_b.is_cancelled());
    // A key that returns is in force for new streams.
    let again = opened(&a);
    assert!(!again.is_cancelled());
    verifier.replace_keys(Some(Keys::none()));
    assert!(again.is_cancelled());
    verifier.replace_keys(Some(published(&[&a])));
    let again = opened(&a);
    verifier.replace_keys(None);
    assert!(again.is_cancelled(), "keys that are too old");
    for (first, second) in [(a.pem.as_str(), b.pem.as_str()), (b.pem.as_str(), a.pem.as_str())] {
        verifier.replace_keys(Some(Keys::from_pem(first, &allowed).expect("it is a key")));
        let of_file = opened(if first == a.pem { &a } else { &b });
        verifier.replace_keys(Some(Keys::from_pem(&format!("{second}{first}"), &allowed).expect("two keys")));
        assert!(!of_file.is_cancelled());
        verifier.replace_keys(Some(Keys::from_pem(second, &allowed).expect("it is a key")));
        assert!(of_file.is_cancelled(), "a PEM file");
    }
}

#[test]
fn streams_of_a_replaced_secret_end() {
    let (old, allowed) = ("0123456789abcdef0123456789abcdef", [Algorithm::HS256]);
    let verifier = Verifier::new(rules(&allowed), Keys::from_secret(old, &allowed).ok());
    let key = EncodingKey::from_secret(old.as_bytes()).expect("it is not empty");
    let token = encode(&Header::new(Algorithm::HS256), &claims(), &key).expect("it can be signed");
    let identity = verifier.verify_at(&token, NOW).expect("it is good");
    let withdrawn = identity.key_withdrawn().expect("it is of a token");
    verifier.replace_keys(Keys::from_secret(old, &allowed).ok());
    assert!(!withdrawn.is_cancelled());
    verifier.replace_keys(Keys::from_secret("0123456789abcdef0123456789abcdee", &allowed).ok());
    assert!(withdrawn.is_cancelled());
}

#[test]
fn files_that_hold_no_public_key_are_named() {
    let allowed = [Algorithm::ES256];
    let (a, b) = (SigningKey::new(Algorithm::ES256, "a"), SigningKey::new(Algorithm::ES256, "b"));
    let two = Keys::from_pem(&format!("{}\n{}", a.pem, b.pem), &allowed).expect("two keys");
    let verifier = Verifier::new(rules(&allowed), Some(two));
    assert!(verifier.verify_at(&a.sign(&claims()), NOW).is_ok() && verifier.verify_at(&b.sign(&claims()), NOW).is_ok());
    for (text, expected) in [
        ("", "no public key"),
        ("hello", "no public key"),
        ("-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n", "private key"),
        ("-----BEGIN PUBLIC KEY-----\nMC4=\n-----END PUBLIC KEY-----\n", "key 1"),
        (&SigningKey::new(Algorithm::EdDSA, "a").pem, "none that fits"),
    ] {
        let error = Keys::from_pem(text, &allowed).expect_err("it holds no key").to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    for (text, expected) in [
        ("", "no JWK set"),
        ("[]", "no list"),
        (r#"{"keys":7}"#, "no list"),
        (r#"{"keys":[]}"#, "none that fits"),
        (&json!({ "keys": vec![7; 101] }).to_string(), "at most"),
    ] {
        let error = Keys::from_jwks(text.as_bytes(), &allowed).expect_err("it holds no key").to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
