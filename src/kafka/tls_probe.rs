//! Finds out why a broker's certificate is not accepted. librdkafka only reports that OpenSSL's verification failed, and
//! gives no access to its result.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use crate::tls::{self, expiry};

/// The timeout of connecting, and of each read and write.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What is wrong with the certificate of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It names other hosts.
    OtherHost,
    Expired,
    /// It is for this host, so its CA is not trusted.
    OtherCa,
}

/// Connects to the broker that librdkafka's text of an error names, and checks its certificate. Sends nothing but the start
/// of a handshake. Returns `None` if the problem is not known. Blocks.
pub(super) fn problem(detail: &str) -> Option<Problem> {
    let (host, port) = broker(detail)?;
    let addresses = (host, port).to_socket_addrs().ok()?;
    let mut stream = addresses.into_iter().find_map(|address| TcpStream::connect_timeout(&address, TIMEOUT).ok())?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    let inspector = Arc::new(Inspector::default());
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(inspector.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    // It always fails, because the inspector accepts no certificate.
    let _ = connection.complete_io(&mut stream);
    *inspector.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the host and the port in a text such as `sasl_ssl://kafka-1:9093/bootstrap: SSL handshake failed: …`.
fn broker(detail: &str) -> Option<(&str, u16)> {
    let (_, rest) = detail.split_once("://")?;
    let (address, _) = rest.split_once('/')?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}

/// Accepts no certificate, and keeps what is wrong with it.
#[derive(Debug, Default)]
struct Inspector(Mutex<Option<Problem>>);

impl ServerCertVerifier for Inspector {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = judge(certificate, name);
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls12_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

fn judge(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Option<Problem> {
    let expires = UNIX_EPOCH + Duration::from_secs(expiry(certificate).ok()?);
    if expires < SystemTime::now() {
        return Some(Problem::Expired);
    }
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    match rustls::client::verify_server_name(&parsed, name) {
        Ok(()) => Some(Problem::OtherCa),
        // OpenSSL accepts the common name of a certificate without alternative names.
        Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
            (!presented.is_empty()).then_some(Problem::OtherHost)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_is_read_from_the_text_of_the_error() {
        for (text, expected) in [
            ("ssl://kafka-1:9093/bootstrap: SSL handshake failed: x", Some(("kafka-1", 9093))),
            ("sasl_ssl://[::1]:9093/2: SSL handshake failed: x", Some(("::1", 9093))),
            ("GroupCoordinator: ssl://a.b:1/3: x", Some(("a.b", 1))),
            ("SSL handshake failed: https://x", None),
            ("ssl://kafka-1/bootstrap: x", None),
            ("", None),
        ] {
            assert_eq!(broker(text), expected, "{text}");
        }
    }
}
