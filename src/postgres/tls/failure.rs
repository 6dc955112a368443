//! Owns the errors of encrypted connections: what was found, what was expected and what to do.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use tokio_postgres::error::SqlState;

use super::super::error::HostError;
use crate::error::sources;
use crate::tls::CaSource;

/// Why a connection cannot be encrypted as the URL requires.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text names its fields")]
pub enum TlsFailure {
    #[error(
        "the server does not support TLS: turn on its `ssl` setting, or write sslmode=disable in the URL if everything \
         between here and the server is trusted"
    )]
    NotSupported,
    #[error("the server neither accepts nor declines TLS: it has no capacity, or it is no PostgreSQL server")]
    NoDecision,
    #[error("the server's certificate was not issued by {0}: give the CA of the server in sslrootcert")]
    UnknownCa(String),
    #[error(
        "the server's certificate is for {presented}, and not for {host}: name the server in the URL as its certificate \
         does, or give the server a certificate for this name"
    )]
    WrongName { host: String, presented: String },
    #[error("a certificate of the server {0}: renew it, and check the clocks of both machines")]
    NotValidNow(String),
    #[error("the server's certificate is the certificate of a CA: give the server one that a CA issued for its name")]
    IsCa,
    #[error("the server requires a certificate: give it in sslcert, and its key in sslkey")]
    CertificateRequired,
    #[error(
        "the server rejects our certificate ({0:?}): give one in sslcert that is valid and that a CA of the server's \
         ssl_ca_file issued"
    )]
    CertificateRejected(AlertDescription),
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

impl TlsFailure {
    /// Returns the error of a handshake with the server that the URL names `host`.
    pub(super) fn of_handshake(error: io::Error, host: &str, ca: Option<&CaSource>) -> HostError {
        let known = match rustls_error(&error) {
            Some(rustls::Error::InvalidCertificate(problem)) => TlsFailure::of_certificate(problem, host, ca),
            Some(rustls::Error::AlertReceived(alert)) => TlsFailure::of_alert(*alert),
            _ => None,
        };
        HostError::Tls(known.unwrap_or(TlsFailure::Handshake(error)))
    }

    fn of_certificate(problem: &CertificateError, host: &str, ca: Option<&CaSource>) -> Option<Self> {
        let at = |time: &UnixTime| {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs())).to_string()
        };
        Some(match problem {
            CertificateError::UnknownIssuer => TlsFailure::UnknownCa(match ca {
                Some(CaSource::File(file)) => format!("a CA of {}", file.path.display()),
                _ => "a CA of this system".to_owned(),
            }),
            CertificateError::NotValidForNameContext { presented, .. } => TlsFailure::WrongName {
                host: host.to_owned(),
                presented: if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") },
            },
            CertificateError::ExpiredContext { not_after, .. } => {
                TlsFailure::NotValidNow(format!("expired at {}", at(not_after)))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                TlsFailure::NotValidNow(format!("is valid from {}", at(not_before)))
            }
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => TlsFailure::IsCa,
            _ => return None,
        })
    }

    /// With TLS 1.3, an alert about our certificate arrives after the handshake.
    fn of_alert(alert: AlertDescription) -> Option<Self> {
        match alert {
            AlertDescription::CertificateRequired => Some(TlsFailure::CertificateRequired),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied => Some(TlsFailure::CertificateRejected(alert)),
            _ => None,
        }
    }
}

/// Returns the error of a login, with what to do about it if that is a matter of TLS.
pub(in super::super) fn login_error(error: tokio_postgres::Error) -> HostError {
    let alert = sources(&error).filter_map(|cause| cause.downcast_ref()).find_map(rustls_error);
    if let Some(rustls::Error::AlertReceived(alert)) = alert
        && let Some(failure) = TlsFailure::of_alert(*alert)
    {
        return HostError::Tls(failure);
    }
    match advice(&error) {
        Some(advice) => HostError::Login(error, advice),
        None => HostError::Driver(error),
    }
}

/// A server whose messages are translated gets no advice; its own text says the same.
fn advice(error: &tokio_postgres::Error) -> Option<&'static str> {
    let Some(rejection) = error.as_db_error() else {
        let unbound = sources(error).any(|cause| cause.to_string() == "server did not use channel binding");
        return unbound.then_some(
            "let the server use scram-sha-256 and a certificate with a signature of RSA or ECDSA, or remove \
             channel_binding=require from the URL",
        );
    };
    let message = rejection.message();
    if *rejection.code() != SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        None
    } else if message.contains("valid client certificate") {
        Some("give the certificate in sslcert, and its key in sslkey")
    } else if message.ends_with("no encryption") || message.ends_with("SSL off") {
        Some("if the server accepts this role with TLS only, write sslmode=verify-full in the URL")
    } else {
        None
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
