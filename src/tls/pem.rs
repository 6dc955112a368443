//! Reads certificates and keys from PEM text. Errors never contain text of the file, because it may be a key.

use rustls::pki_types::pem::{Error, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{PemFile, TlsError};

const CERTIFICATES: &str = "PEM sections that start with BEGIN CERTIFICATE";
const KEY: &str = "one PEM section that starts with BEGIN PRIVATE KEY, BEGIN RSA PRIVATE KEY or BEGIN EC PRIVATE KEY, \
                   without a passphrase";

/// Returns all certificates of a file, at least one.
pub(super) fn certificates(file: &PemFile, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let sections = sections(file, pem, CERTIFICATES)?;
    let mut found = Vec::new();
    for (kind, der) in sections {
        found.extend(CertificateDer::from_pem(kind, der));
    }
    if found.is_empty() {
        return Err(TlsError::content(file, nothing("certificate", pem), CERTIFICATES));
    }
    Ok(found)
}

/// Returns the only private key of a file.
pub(super) fn private_key(file: &PemFile, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let mut keys = sections(file, pem, KEY)?.into_iter().filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => Err(TlsError::content(file, "it has more than one private key", KEY)),
        (None, _) => Err(TlsError::content(file, nothing("private key", pem), KEY)),
    }
}

fn sections(file: &PemFile, pem: &[u8], expected: &'static str) -> Result<Vec<(SectionKind, Vec<u8>)>, TlsError> {
    let sections: Result<_, Error> = PemObject::pem_slice_iter(pem).collect();
    sections.map_err(|error| {
        let problem = match error {
            Error::MissingSectionEnd { .. } => "a PEM section has no END line: the file is truncated",
            Error::IllegalSectionStart { .. } => "a BEGIN line is malformed",
            Error::Base64Decode(_) => "a PEM section is not valid Base64",
            _ => "it is not valid PEM",
        };
        TlsError::content(file, problem, expected)
    })
}

/// Says why a file has no item of this kind.
fn nothing(item: &str, pem: &[u8]) -> String {
    let has = |text: &str| pem.windows(text.len()).any(|found| found == text.as_bytes());
    if pem.first() == Some(&0x30) {
        return "it is DER, not PEM: convert it with openssl".to_owned();
    }
    if item == "private key" && (has("ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED")) {
        return "its key is encrypted with a passphrase".to_owned();
    }
    let others = [("BEGIN CERTIFICATE-", "certificates"), ("PRIVATE KEY-", "a private key")];
    match others.iter().find(|(mark, _)| has(mark)) {
        Some((_, other)) => format!("it has {other}, and no {item}"),
        None => format!("it has no {item}"),
    }
}
