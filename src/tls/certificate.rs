//! Reads from a certificate what rustls does not return: when it expires, and whom it names.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// A certificate that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("the certificate cannot be decoded: {0}")]
pub struct CertificateError(#[from] x509_cert::der::Error);

/// Returns when a certificate expires, in seconds since 1970.
pub(crate) fn expiry(der: &CertificateDer<'_>) -> Result<u64, CertificateError> {
    let certificate = Certificate::from_der(der)?;
    Ok(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
}

/// The names that the certificate of a caller gives it. A CA has confirmed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The URIs of the subject's alternative names, such as spiffe://example.org/orders.
    pub uris: Vec<String>,
    /// The DNS names of the subject's alternative names.
    pub dns_names: Vec<String>,
}

impl PeerIdentity {
    /// Reads the names of a certificate that rustls has verified.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = Certificate::from_der(der)?;
        let mut identity = PeerIdentity::default();
        if let Some((_, names)) = certificate.tbs_certificate.get::<SubjectAltName>()? {
            for name in names.0 {
                match name {
                    GeneralName::UniformResourceIdentifier(uri) => identity.uris.push(uri.to_string()),
                    GeneralName::DnsName(name) => identity.dns_names.push(name.to_string()),
                    _ => {}
                }
            }
        }
        Ok(identity)
    }
}
