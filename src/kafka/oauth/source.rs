//! Where tokens come from: a file, or the token URL of an issuer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::token::Token;
use super::{CA_FILE, SECRET_FILE, TOKEN_FILE, TokenError};
use crate::config::{SettingError, read_secret};
use crate::http_client::{HttpUrl, TIMEOUT, tls_files};
use crate::tls::{self, ClientConfig};

/// How often the token file is read. The agent that writes it leaves the rest of a token's lifetime for this.
const FILE_INTERVAL: Duration = Duration::from_secs(2);
/// The time until changed content of the token file is read for the second time.
const CONFIRM: Duration = Duration::from_millis(500);
/// The part of a token's lifetime after which the next token is requested. The rest is for retries. librdkafka logs in again
/// after 90 % of the session that a broker granted.
const REQUEST_AFTER: std::ops::Range<f64> = 0.6..0.7;
/// The shortest time between two requests that succeed.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two attempts while they fail.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Maximum length of an issuer's explanation in an error.
const MAX_DETAIL: usize = 200;

/// The characters that may be in the value of a form as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where tokens come from.
#[derive(Debug)]
pub(super) enum Source {
    File(TokenFile),
    Issuer(ClientCredentials),
}

/// A file with a token, which another program replaces before the token expires.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    /// The content that was used last.
    last: Option<String>,
}

/// The token URL of an issuer, and how clients prove there who they are (RFC 6749, section 4.4).
#[derive(Clone, Debug)]
pub(super) struct ClientCredentials {
    pub(super) url: HttpUrl,
    pub(super) client_id: String,
    pub(super) secret_file: PathBuf,
    pub(super) scope: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
}

impl Source {
    /// Returns the present token.
    pub(super) async fn fetch(&mut self) -> Result<Token, TokenError> {
        match self {
            Source::File(file) => file.read().await,
            Source::Issuer(issuer) => issuer.request().await,
        }
    }

    /// Returns the time until the next token has to be fetched.
    pub(super) fn interval(&self, token: &Token) -> Duration {
        match self {
            Source::File(_) => FILE_INTERVAL,
            // The replicas of a service must not request their tokens together.
            Source::Issuer(_) => {
                token.remaining(SystemTime::now()).mul_f64(rand::random_range(REQUEST_AFTER)).max(MIN_INTERVAL)
            }
        }
    }

    /// Returns the time until the next attempt after so many that failed.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        match self {
            Source::File(_) => FILE_INTERVAL,
            Source::Issuer(_) => {
                let longest = MAX_BACKOFF.min(Duration::from_secs(1 << failures.min(4)));
                longest.mul_f64(rand::random_range(0.5..1.0))
            }
        }
    }
}

impl TokenFile {
    pub(super) fn new(path: PathBuf) -> Self {
        TokenFile { path, last: None }
    }

    async fn read(&mut self) -> Result<Token, TokenError> {
        let mut text = self.content().await?;
        // A file that is not replaced as a whole may have a part of the new token.
        while self.last.as_ref().is_some_and(|last| *last != text) {
            tokio::time::sleep(CONFIRM).await;
            let again = self.content().await?;
            if again == text {
                break;
            }
            text = again;
        }
        let token = Token::new(&text, None, SystemTime::now());
        self.last = Some(text);
        token.map_err(|error| TokenError::InFile(self.path.clone(), Box::new(error)))
    }

    async fn content(&self) -> Result<String, TokenError> {
        let path = self.path.clone();
        blocking(TOKEN_FILE, move || Ok(read_secret(&path).map_err(SettingError::of_file(TOKEN_FILE))?)).await
    }
}

impl ClientCredentials {
    async fn request(&self) -> Result<Token, TokenError> {
        let path = self.secret_file.clone();
        let secret = move || -> Result<String, TokenError> {
            Ok(read_secret(&path).map_err(SettingError::of_file(SECRET_FILE))?)
        };
        let secret = blocking(SECRET_FILE, secret).await?;
        let tls = if self.url.is_tls() { Some(self.tls().await?) } else { None };
        let user = [self.client_id.as_str(), &secret].map(|part| utf8_percent_encode(part, ENCODED).to_string());
        let authorization = format!("Basic {}", STANDARD.encode(user.join(":")));
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &self.scope {
            form.push_str(&format!("&scope={}", utf8_percent_encode(scope, ENCODED)));
        }
        let (status, body) = self.url.post_form(tls, &authorization, form).await.map_err(TokenError::Issuer)?;
        let fields = serde_json::from_slice::<Map<String, Value>>(&body).ok();
        if status != StatusCode::OK {
            let detail = fields.map(|fields| explanation(&fields, &secret)).unwrap_or_default();
            return Err(TokenError::Rejected { status, detail });
        }
        let fields = fields.ok_or(TokenError::NoToken)?;
        let token = fields.get("access_token").and_then(Value::as_str).ok_or(TokenError::NoToken)?;
        Token::new(token, fields.get("expires_in").and_then(seconds), SystemTime::now())
    }

    /// Reads the CAs, so that each request trusts those that the file has now.
    async fn tls(&self) -> Result<Arc<ClientConfig>, TokenError> {
        let ca_file = self.ca_file.clone();
        let load = move || -> Result<_, TokenError> {
            let material = tls_files(CA_FILE, ca_file).load()?;
            Ok(Arc::new(tls::client_config(&material)?))
        };
        blocking(CA_FILE, load).await
    }
}

/// Reads files in a thread that may block, and waits for it for a limited time: the file system may not respond.
async fn blocking<T: Send + 'static>(
    setting: &'static str,
    read: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, TokenError> {
    match tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(result)) => result,
        // It did not respond in time, or the process stops.
        Ok(Err(_)) | Err(_) => Err(SettingError::FileTimedOut { setting }.into()),
    }
}

/// Returns a lifetime in seconds. Some issuers write the number as a text.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Returns what an issuer says about a rejected request, without the secret.
fn explanation(fields: &Map<String, Value>, secret: &str) -> String {
    let texts = ["error", "error_description"].into_iter().filter_map(|name| fields.get(name)?.as_str());
    let printable = |text: &str| -> String {
        let text = text.replace(secret, "…");
        text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect()
    };
    texts.map(|text| format!(", {}", printable(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanation_of_the_issuer_is_short_and_without_the_secret() {
        let fields = serde_json::json!({
            "error": "invalid_client", "error_description": format!("hunter2 is\n wrong {}", "x".repeat(1000)),
        });
        let text = explanation(fields.as_object().expect("it is one"), "hunter2");
        assert!(text.starts_with(", invalid_client, … is wrong x") && text.chars().count() < 250, "{text}");
        assert_eq!(explanation(&Map::new(), "x"), "");
    }

    #[test]
    fn lifetimes_are_numbers_or_texts() {
        for value in [serde_json::json!(60), serde_json::json!("60"), serde_json::json!(60.0)] {
            assert_eq!(seconds(&value), Some(Duration::from_secs(60)), "{value}");
        }
        assert_eq!(seconds(&serde_json::json!(-1)), None);
        assert_eq!(seconds(&Value::Null), None);
    }

    #[test]
    fn tokens_are_requested_well_before_they_expire() {
        let issuer = Source::Issuer(ClientCredentials {
            url: HttpUrl::new("http://127.0.0.1:1/").expect("it is valid"),
            client_id: String::new(),
            secret_file: PathBuf::new(),
            scope: None,
            ca_file: None,
        });
        let token = Token::new("opaque", Some(Duration::from_secs(30)), SystemTime::now()).expect("it is valid");
        let interval = issuer.interval(&token).as_secs_f64();
        assert!((17.0..21.1).contains(&interval), "{interval}");
        for failures in 1..100 {
            let backoff = issuer.backoff(failures);
            assert!(backoff >= MIN_INTERVAL && backoff <= MAX_BACKOFF, "{failures}: {backoff:?}");
        }
    }
}
