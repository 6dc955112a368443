//! Owns TLS: certificates, keys and CAs from PEM files, and the settings of rustls that all servers and clients share.
//!
//! A server, or a client such as the database's, gives its [`TlsFiles`] and a function that builds its settings to a
//! [`TlsSource`], and a [`Reloader`] replaces the settings when the files change:
//!
//! ```no_run
//! # use std::path::PathBuf;
//! # use msg_common::tls::{self, CaSource, PairFiles, PemFile, TlsError, TlsFiles};
//! # async fn start(cert: PathBuf, key: PathBuf, stop: tokio_util::sync::CancellationToken) -> Result<(), TlsError> {
//! let pair = PairFiles { certificate: PemFile::new("--tls-cert-file", cert), key: PemFile::new("--tls-key-file", key) };
//! let files = TlsFiles { pair: Some(pair), ca: None };
//! let reloader = tls::reloader("grpc", files, |material| tls::server_config(material, &[b"h2"]))?;
//! let settings = reloader.value();
//! tokio::spawn(reloader.run(stop));
//! let for_this_connection = settings.current();
//! # Ok(())
//! # }
//! ```

mod certificate;
mod error;
mod files;
mod pem;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use metrics::{describe_counter, describe_gauge, gauge};
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
pub use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub(crate) use self::certificate::expiry;
pub use self::certificate::{CertificateError, PeerIdentity};
pub use self::error::TlsError;
pub use self::files::{CaSource, Material, PairFiles, PemFile, TlsFiles, TlsPair, TlsSource};
pub use self::stream::{ServerStream, handshake_failure};
use crate::reload::Reloader;

/// When the own certificate expires, by `use`.
const CERTIFICATE_EXPIRY: &str = "msg_tls_certificate_expiry_timestamp_seconds";

/// TLS handshakes of clients that failed, by `use` and `cause`.
const HANDSHAKE_FAILURES: &str = "msg_tls_handshake_failures_total";

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// Returns the cryptography of all TLS connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads the files, builds the first value, and returns what replaces it when the files change. `usage` is a label of the
/// metrics.
pub fn reloader<T: Send + Sync + 'static>(
    usage: &'static str,
    files: TlsFiles,
    build: impl Fn(&Material) -> Result<T, TlsError> + Send + Sync + 'static,
) -> Result<Reloader<TlsSource<T>>, TlsError> {
    Reloader::load(usage, TlsSource::new(usage, files, build))
}

/// Returns the settings of a server. With CAs, each client must have a certificate of one of them.
pub fn server_config(material: &Material, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(&VERSIONS).map_err(settings)?;
    let builder = match &material.roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(settings)?)
        }
    };
    let certified = material.certified.clone().ok_or_else(|| settings("a server needs a certificate"))?;
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // No session is resumed: the certificate of a client is verified in a full handshake only, so a removed CA would still be
    // accepted. Connections live for a long time, so there is little to save.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Returns the settings of a client that verifies the server's certificate and its name. Without CAs it accepts no server. It
/// presents its own certificate, if it has one.
pub fn client_config(material: &Material) -> Result<ClientConfig, TlsError> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_protocol_versions(&VERSIONS).map_err(settings)?;
    let roots = material.roots.clone().unwrap_or_else(|| Arc::new(RootCertStore::empty()));
    let builder = builder.with_root_certificates(roots);
    Ok(match material.certified.clone() {
        None => builder.with_no_client_auth(),
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
    })
}

/// Shows in the metrics when the own certificate expires, if there is one.
pub(crate) fn show_expiry(usage: &'static str, material: &Material) {
    if let Some(expiry) = material.expiry {
        gauge!(CERTIFICATE_EXPIRY, "use" => usage).set(expiry as f64);
    }
}

/// Shows when the first certificate of a PEM text expires, for a library that reads the text itself. A text that is not
/// readable shows nothing: the library says what is wrong with it.
pub(crate) fn show_expiry_of_pem(usage: &'static str, chain: &str) {
    let expiries = CertificateDer::pem_slice_iter(chain.as_bytes()).filter_map(|der| expiry(&der.ok()?).ok());
    if let Some(first) = expiries.min() {
        gauge!(CERTIFICATE_EXPIRY, "use" => usage).set(first as f64);
    }
}

fn settings(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TlsError {
    TlsError::Settings(error.into())
}

/// Describes the metrics of this module.
pub(crate) fn describe() {
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        "When the certificate in use expires, in seconds since 1970, by use; of a chain, the first that expires"
    );
    describe_counter!(
        HANDSHAKE_FAILURES,
        "Connections whose TLS handshake failed, by use and cause; handshakes that time out are not counted here"
    );
}
