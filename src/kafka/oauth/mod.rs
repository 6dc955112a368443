//! Logins to Kafka with tokens (OAUTHBEARER): the settings, the source of the tokens, and the token that all clients share.

mod refresh;
mod shared;
mod source;
mod token;

use std::path::PathBuf;

use clap::Args;
use http::StatusCode;
use tokio_util::sync::CancellationToken;

use self::refresh::Refresher;
pub(super) use self::shared::Registration;
pub use self::shared::SharedToken;
use self::source::{ClientCredentials, Source, TokenFile};
use self::token::Token;
use crate::config::{SettingError, read_secret};
use crate::error::chain;
use crate::http_client::{HttpError, HttpUrl, tls_files};
use crate::tls::TlsError;

pub(crate) use self::refresh::describe;

/// Where the token comes from that clients log in with, for the mechanism OAUTHBEARER.
#[derive(Args, Clone, Debug, Default)]
pub struct OauthOptions {
    /// File with the token that clients log in with, a JWT, for OAUTHBEARER. Another program replaces it before the token
    /// expires, as Kubernetes does with the token of a service account. It is read every 2 s
    #[arg(long, env = "KAFKA_OAUTH_TOKEN_FILE", value_name = "FILE")]
    pub kafka_oauth_token_file: Option<PathBuf>,
    /// HTTPS URL where an issuer gives tokens to clients that log in with OAUTHBEARER (OAuth 2.0 client credentials). The
    /// next token is requested after two thirds of the lifetime of the last one
    #[arg(long, env = "KAFKA_OAUTH_TOKEN_URL", value_name = "URL")]
    pub kafka_oauth_token_url: Option<String>,
    /// Client ID for --kafka-oauth-token-url
    #[arg(long, env = "KAFKA_OAUTH_CLIENT_ID", value_name = "ID")]
    pub kafka_oauth_client_id: Option<String>,
    /// File with the client's secret for --kafka-oauth-token-url. It is read for each request. Spaces and line ends around
    /// it do not count
    #[arg(long, env = "KAFKA_OAUTH_CLIENT_SECRET_FILE", value_name = "FILE")]
    pub kafka_oauth_client_secret_file: Option<PathBuf>,
    /// Scope to request at --kafka-oauth-token-url; several are separated by spaces [default: the issuer's]
    #[arg(long, env = "KAFKA_OAUTH_SCOPE", value_name = "SCOPE")]
    pub kafka_oauth_scope: Option<String>,
    /// File with the certificate authorities to trust for --kafka-oauth-token-url, in PEM form, instead of the system's
    #[arg(long, env = "KAFKA_OAUTH_CA_FILE", value_name = "FILE")]
    pub kafka_oauth_ca_file: Option<PathBuf>,
    /// SASL extensions that the brokers get together with the token, separated by commas; some providers need them
    #[arg(long, env = "KAFKA_OAUTH_EXTENSIONS", value_name = "KEY=VALUE,…")]
    pub kafka_oauth_extensions: Option<String>,
}

const TOKEN_FILE: &str = "--kafka-oauth-token-file";
const TOKEN_URL: &str = "--kafka-oauth-token-url";
const CLIENT_ID: &str = "--kafka-oauth-client-id";
const SECRET_FILE: &str = "--kafka-oauth-client-secret-file";
const SCOPE: &str = "--kafka-oauth-scope";
const CA_FILE: &str = "--kafka-oauth-ca-file";
const EXTENSIONS: &str = "--kafka-oauth-extensions";

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error(transparent)]
    File(#[from] SettingError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{TOKEN_FILE}: {}", .0.display())]
    InFile(PathBuf, #[source] Box<TokenError>),
    #[error("{TOKEN_URL}")]
    Issuer(#[source] HttpError),
    #[error(
        "{TOKEN_URL}: the issuer rejects the request: HTTP status {status}{detail}; correct {CLIENT_ID}, {SECRET_FILE} or {SCOPE}"
    )]
    Rejected {
        status: StatusCode,
        /// What the issuer says, with a comma before it.
        detail: String,
    },
    #[error("{TOKEN_URL}: the response has no access_token")]
    NoToken,
    #[error("the token is no JWT, and the issuer reports no expires_in")]
    NotJwt,
    #[error("the token has no claim exp")]
    NoExpiry,
    #[error("the token expired {0} s ago; check what renews it, and the clocks")]
    Expired(u64),
    #[error("the token has characters that no token may have")]
    Characters,
}

impl OauthOptions {
    /// Returns the problems of options that need or exclude each other. `mechanism` is the mechanism of the clients, and
    /// whether it is given as our own setting, which needs a source of tokens.
    pub(super) fn combination_problems(&self, mechanism: &str, is_setting: bool) -> Vec<String> {
        let given = self.given();
        let is_given = |flag: &'static str| given.contains(&flag);
        if !mechanism.eq_ignore_ascii_case("OAUTHBEARER") {
            let fix = "set --kafka-sasl-mechanism to OAUTHBEARER";
            return given.iter().map(|flag| format!("{flag} has no effect without OAUTHBEARER: {fix}")).collect();
        }
        let mut problems = Vec::new();
        if is_given(TOKEN_FILE) && is_given(TOKEN_URL) {
            problems.push(format!("{TOKEN_FILE} and {TOKEN_URL} are given: give one source of tokens"));
        }
        if !is_given(TOKEN_FILE) && !is_given(TOKEN_URL) && (is_setting || !given.is_empty()) {
            problems.push(format!("OAUTHBEARER needs {TOKEN_FILE}, or {TOKEN_URL} with {CLIENT_ID} and {SECRET_FILE}"));
        }
        for flag in [CLIENT_ID, SECRET_FILE, SCOPE, CA_FILE] {
            let needed = flag == CLIENT_ID || flag == SECRET_FILE;
            match (is_given(TOKEN_URL), is_given(flag)) {
                (true, false) if needed => problems.push(format!("{TOKEN_URL} needs {flag}")),
                (false, true) => problems.push(format!("{flag} has no effect without {TOKEN_URL}")),
                _ => {}
            }
        }
        if let Some(text) = &self.kafka_oauth_extensions {
            problems.extend(extensions(text).err());
        }
        problems
    }

    /// Reads the files, so that a bad one is found at the start. A token that has expired is no problem of the settings.
    pub(super) fn content_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (flag, path) in
            [(TOKEN_FILE, &self.kafka_oauth_token_file), (SECRET_FILE, &self.kafka_oauth_client_secret_file)]
        {
            let Some(path) = path else { continue };
            match read_secret(path).map_err(SettingError::of_file(flag)) {
                Err(error) => problems.push(chain(&error)),
                Ok(text) if flag == TOKEN_FILE => {
                    let read = Token::new(&text, None, std::time::SystemTime::now());
                    let error = read.err().filter(|error| !matches!(error, TokenError::Expired(_)));
                    let in_file = |error| chain(&TokenError::InFile(path.clone(), Box::new(error)));
                    problems.extend(error.map(in_file));
                }
                Ok(_) => {}
            }
        }
        if let Some(url) = &self.kafka_oauth_token_url {
            match HttpUrl::new(url) {
                Err(error) => problems.push(format!("{TOKEN_URL} {}", chain(&error))),
                Ok(url) if url.is_tls() => {
                    problems.extend(tls_files(CA_FILE, self.kafka_oauth_ca_file.clone()).problems());
                }
                Ok(_) => {}
            }
        }
        problems
    }

    /// Returns a task that fetches tokens for `token` until `stop`, if a source is given.
    pub(super) fn refresh(
        &self,
        token: &SharedToken,
        stop: CancellationToken,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let file = self.kafka_oauth_token_file.clone().map(|path| Source::File(TokenFile::new(path)));
        let source = file.or_else(|| self.issuer().map(Source::Issuer))?;
        let extensions = self.kafka_oauth_extensions.as_deref().map(extensions);
        let extensions = extensions.and_then(Result::ok).unwrap_or_default();
        Some(Refresher { source, extensions, token: token.clone() }.run(stop))
    }

    fn issuer(&self) -> Option<ClientCredentials> {
        Some(ClientCredentials {
            url: HttpUrl::new(self.kafka_oauth_token_url.as_ref()?).ok()?,
            client_id: self.kafka_oauth_client_id.clone()?,
            secret_file: self.kafka_oauth_client_secret_file.clone()?,
            scope: self.kafka_oauth_scope.clone(),
            ca_file: self.kafka_oauth_ca_file.clone(),
        })
    }

    /// Returns the flags that are given.
    fn given(&self) -> Vec<&'static str> {
        let flags = [
            (TOKEN_FILE, self.kafka_oauth_token_file.is_some()),
            (TOKEN_URL, self.kafka_oauth_token_url.is_some()),
            (CLIENT_ID, self.kafka_oauth_client_id.is_some()),
            (SECRET_FILE, self.kafka_oauth_client_secret_file.is_some()),
            (SCOPE, self.kafka_oauth_scope.is_some()),
            (CA_FILE, self.kafka_oauth_ca_file.is_some()),
            (EXTENSIONS, self.kafka_oauth_extensions.is_some()),
        ];
        flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// Reads the extensions. The error is the problem, without a value.
fn extensions(text: &str) -> Result<Vec<(String, String)>, String> {
    let parse = |entry: &str| {
        let (key, value) = entry.trim().split_once('=')?;
        let is_key = !key.is_empty() && key != "auth" && key.chars().all(|c| c.is_ascii_alphabetic());
        let is_value = value.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        (is_key && is_value).then(|| (key.to_owned(), value.to_owned()))
    };
    let problem = || {
        format!(
            "{EXTENSIONS} must be KEY=VALUE, separated by commas; a key has letters only and is not `auth`, a value is ASCII"
        )
    };
    text.split(',').map(|entry| parse(entry).ok_or_else(problem)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> OauthOptions {
        OauthOptions {
            kafka_oauth_token_url: Some("http://127.0.0.1:1/token".into()),
            kafka_oauth_client_id: Some("app".into()),
            kafka_oauth_client_secret_file: Some("/secret".into()),
            ..OauthOptions::default()
        }
    }

    #[test]
    fn impossible_combinations_are_rejected_with_what_to_do() {
        let file = || OauthOptions { kafka_oauth_token_file: Some("/token".into()), ..OauthOptions::default() };
        for (options, mechanism, expected) in [
            (options(), "OAUTHBEARER", &[][..]),
            (file(), "OAUTHBEARER", &[]),
            (OauthOptions::default(), "PLAIN", &[]),
            (file(), "PLAIN", &["--kafka-oauth-token-file has no effect without OAUTHBEARER"]),
            (OauthOptions::default(), "OAUTHBEARER", &["OAUTHBEARER needs --kafka-oauth-token-file, or"]),
            (
                OauthOptions { kafka_oauth_token_file: Some("/t".into()), ..options() },
                "OAUTHBEARER",
                &["give one source"],
            ),
            (
                OauthOptions { kafka_oauth_client_id: None, kafka_oauth_client_secret_file: None, ..options() },
                "OAUTHBEARER",
                &["needs --kafka-oauth-client-id", "needs --kafka-oauth-client-secret-file"],
            ),
            (
                OauthOptions { kafka_oauth_scope: Some("kafka".into()), ..file() },
                "OAUTHBEARER",
                &["--kafka-oauth-scope has no effect without --kafka-oauth-token-url"],
            ),
            (
                OauthOptions { kafka_oauth_extensions: Some("auth=x".into()), ..file() },
                "OAUTHBEARER",
                &["--kafka-oauth-extensions must be"],
            ),
        ] {
            let found = options.combination_problems(mechanism, true);
            assert_eq!(found.len(), expected.len(), "{options:?}: {found:?}");
            for text in expected {
                assert!(found.iter().any(|problem| problem.contains(text)), "{text}: {found:?}");
            }
        }
        assert!(
            OauthOptions::default().combination_problems("OAUTHBEARER", false).is_empty(),
            "librdkafka has a source"
        );
    }

    #[test]
    fn unusable_contents_are_rejected_without_the_secret() {
        let folder = tempfile::tempdir().expect("it is created");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("it is written");
            Some(path)
        };
        let secret = || file("secret", "hunter2\n");
        for (options, expected) in [
            (OauthOptions { kafka_oauth_client_secret_file: secret(), ..options() }, &[][..]),
            (options(), &["--kafka-oauth-client-secret-file: cannot read"]),
            (
                OauthOptions {
                    kafka_oauth_token_url: Some("http://issuer.example.org/token".into()),
                    kafka_oauth_client_secret_file: secret(),
                    ..options()
                },
                &["--kafka-oauth-token-url must start with https://"],
            ),
            (
                OauthOptions { kafka_oauth_token_file: file("token", "hunter2"), ..OauthOptions::default() },
                &["the token is no JWT"],
            ),
            (
                // It has the claims {"exp":1}.
                OauthOptions { kafka_oauth_token_file: file("old", "e30.eyJleHAiOjF9.x"), ..OauthOptions::default() },
                &[],
            ),
        ] {
            let found = options.content_problems();
            assert_eq!(found.len(), expected.len(), "{options:?}: {found:?}");
            for text in expected {
                assert!(found.iter().any(|problem| problem.contains(text)), "{text}: {found:?}");
            }
            assert!(!found.iter().any(|problem| problem.contains("hunter2")), "{found:?}");
        }
    }

    #[test]
    fn extensions_are_keys_and_values() {
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let found = extensions("logicalCluster=lkc-1, identityPoolId=pool-2=x").expect("they are valid");
        assert_eq!(found, [entry("logicalCluster", "lkc-1"), entry("identityPoolId", "pool-2=x")]);
        for bad in ["", "a", "=b", "a1=b", "auth=b", "a=\u{e4}"] {
            assert!(extensions(bad).is_err(), "{bad}");
        }
    }
}
