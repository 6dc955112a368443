//! A token as librdkafka needs it: with its expiry and its principal, which are read from the token itself.

use std::ffi::CString;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::TokenError;

/// A principal's name where a token has none. librdkafka only logs it: the brokers read the token.
const UNNAMED: &str = "unnamed";

/// A token that Kafka clients log in with.
pub(crate) struct Token {
    pub(super) value: CString,
    /// The name in librdkafka's logs.
    pub(super) principal: CString,
    pub(super) expiry: SystemTime,
    /// Keys and values in turn, which the brokers get together with the token.
    pub(super) extensions: Vec<CString>,
}

impl std::fmt::Debug for Token {
    /// Leaves out the token, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("principal", &self.principal)
            .field("expiry", &self.expiry)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Reads a token. `lifetime` is what the issuer said, if it said it; a token that is no JWT needs it.
    pub(super) fn new(text: &str, lifetime: Option<Duration>, now: SystemTime) -> Result<Self, TokenError> {
        let claims = claims(text);
        let claim = |name: &str| claims.as_ref().and_then(|claims| claims.get(name));
        let from_claim = claim("exp").and_then(Value::as_f64).and_then(at_seconds);
        let from_issuer = lifetime.and_then(|lifetime| now.checked_add(lifetime));
        let expiry = match (from_claim, from_issuer) {
            (Some(claim), Some(issuer)) => claim.min(issuer),
            (Some(expiry), None) | (None, Some(expiry)) => expiry,
            (None, None) if claims.is_none() => return Err(TokenError::NotJwt),
            (None, None) => return Err(TokenError::NoExpiry),
        };
        if expiry <= now {
            return Err(TokenError::Expired(now.duration_since(expiry).unwrap_or_default().as_secs()));
        }
        // librdkafka rejects all other characters.
        let value = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let value = value.and_then(|text| CString::new(text).ok()).ok_or(TokenError::Characters)?;
        let principal = claim("sub").and_then(Value::as_str).and_then(|name| CString::new(name).ok());
        let principal = principal.unwrap_or_else(|| CString::new(UNNAMED).expect("it contains no NUL"));
        Ok(Token { value, principal, expiry, extensions: Vec::new() })
    }

    pub(super) fn with_extensions(self, extensions: &[(String, String)]) -> Self {
        let texts = extensions.iter().flat_map(|(key, value)| [key, value]);
        let extensions = texts.filter_map(|text| CString::new(text.as_str()).ok()).collect();
        Token { extensions, ..self }
    }

    /// Returns when the token expires, in milliseconds since 1970.
    pub(super) fn expiry_millis(&self) -> i64 {
        let since = self.expiry.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    pub(super) fn remaining(&self, now: SystemTime) -> Duration {
        self.expiry.duration_since(now).unwrap_or_default()
    }
}

/// Returns the claims of a JWT. The brokers verify its signature.
fn claims(text: &str) -> Option<Map<String, Value>> {
    let mut parts = text.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// Returns a time that is given in seconds since 1970, which may have a fraction.
fn at_seconds(seconds: f64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1000)
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn read(text: &str, lifetime: Option<u64>) -> Result<(i64, String), TokenError> {
        let token = Token::new(text, lifetime.map(Duration::from_secs), now())?;
        Ok((token.expiry_millis(), token.principal.into_string().expect("it is text")))
    }

    #[test]
    fn expiry_and_principal_are_those_of_the_claims() {
        let token = jwt(r#"{"sub":"app","exp":1030}"#);
        assert_eq!(read(&token, None).expect("it is valid"), (1_030_000, "app".to_owned()));
        assert_eq!(read(&token, Some(10)).expect("it is valid").0, 1_010_000, "the issuer says less");
        assert_eq!(read(&token, Some(60)).expect("it is valid").0, 1_030_000, "the token says less");
        assert_eq!(read(&jwt(r#"{"exp":1030.5}"#), None).expect("it is valid"), (1_030_500, UNNAMED.to_owned()));
        assert_eq!(read("opaque", Some(10)).expect("it is valid"), (1_010_000, UNNAMED.to_owned()));
    }

    #[test]
    fn unusable_tokens_are_rejected_without_their_text() {
        for (text, lifetime, expected) in [
            ("opaque".to_owned(), None, "no JWT"),
            (jwt("{}"), None, "no claim exp"),
            (jwt(r#"{"exp":"soon"}"#), None, "no claim exp"),
            (jwt(r#"{"exp":-1}"#), None, "no claim exp"),
            (jwt(r#"{"exp":990}"#), None, "expired 10 s ago"),
            (jwt(r#"{"exp":990}"#), Some(60), "expired 10 s ago"),
            ("two words".to_owned(), Some(60), "characters"),
            ("nul\0".to_owned(), Some(60), "characters"),
        ] {
            let error = read(&text, lifetime).expect_err(&text).to_string();
            assert!(error.contains(expected) && !error.contains(&text), "{text}: {error}");
        }
    }

    #[test]
    fn debug_text_does_not_contain_the_token() {
        let token = Token::new("opaque", Some(Duration::from_secs(1)), now()).expect("it is valid");
        assert!(!format!("{token:?}").contains("opaque"));
    }
}
