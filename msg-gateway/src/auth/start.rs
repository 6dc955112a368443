//! Makes the authenticator of the configured mode, and starts what keeps its keys fresh.

use std::sync::Arc;

use msg_common::admin::Readiness;
use msg_common::http_client::{HttpUrl, UrlError, tls_files};
use msg_common::reload::Reloader;
use msg_common::tls::{self, TlsError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::verify::endpoint::{CA_FILE, Endpoint};
use crate::auth::verify::refresh::{self, Refresher};
use crate::auth::verify::source::{KeyFileError, VerifierKeys};
use crate::auth::verify::{Tokens, Verifier};
use crate::auth::{Authenticator, Required};
use crate::config::auth::{AuthMode, AuthOptions, KeySource};

/// Why callers cannot be authenticated. The settings were checked, so a file has changed since.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No keys are configured.
    #[error("no keys are configured")]
    NoKeys,
    /// The file with the keys cannot be used.
    #[error("keys of the token issuer")]
    File(#[from] KeyFileError),
    /// The URL of the keys cannot be used.
    #[error("url of the keys of the token issuer")]
    Url(#[from] UrlError),
    /// The certificate authorities of that URL cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Starts the authentication. Its tasks run until `stop`.
pub(crate) fn start(
    options: &AuthOptions,
    readiness: &Readiness,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Authenticator, AuthError> {
    let mode = options.auth_mode;
    if mode == AuthMode::None {
        return Ok(Authenticator::open());
    }
    let tokens = if mode.needs_token() { Some(Arc::new(tokens(options, readiness, tasks, stop)?)) } else { None };
    let certificate = mode.needs_certificate().then_some(options.auth_mtls_name);
    Ok(Authenticator::requiring(Required { tokens, certificate }))
}

fn tokens(
    options: &AuthOptions,
    readiness: &Readiness,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Tokens, AuthError> {
    let rules = options.token_rules();
    match options.key_source().ok_or(AuthError::NoKeys)? {
        KeySource::File(file) => {
            let verifier = Arc::new(Verifier::new(rules, None));
            let reloader = Reloader::load("auth_keys", VerifierKeys { file, verifier: verifier.clone() })?;
            tasks.spawn(reloader.run(stop.clone()));
            Ok(Tokens { verifier, refresher: None })
        }
        KeySource::Url { url, ca_file } => {
            let url = HttpUrl::new(&url)?;
            let tls = if url.is_tls() {
                let reloader = tls::reloader("auth_jwks", tls_files(CA_FILE, ca_file), tls::client_config)?;
                let settings = reloader.value();
                tasks.spawn(reloader.run(stop.clone()));
                Some(settings)
            } else {
                None
            };
            let endpoint = Endpoint::new(url, tls);
            let verifier = Arc::new(Verifier::new(rules, None));
            readiness.not_ready(refresh::COMPONENT, "fetching the keys of the token issuer");
            let refresher = Refresher::new(Box::new(endpoint), verifier.clone(), readiness.clone());
            let refresher = Arc::new(refresher);
            tasks.spawn(refresher.clone().run(stop.clone()));
            Ok(Tokens { verifier, refresher: Some(refresher) })
        }
    }
}
