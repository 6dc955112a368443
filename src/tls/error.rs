//! Owns the errors of TLS files, which name the setting and the file, what was found and what was expected.

use std::path::PathBuf;

use super::PemFile;
use crate::config::FileError;

/// TLS files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The system returns no content.
    #[error("{setting}")]
    Unreadable {
        /// The flag.
        setting: &'static str,
        /// The error of the file.
        #[source]
        source: FileError,
    },
    /// The content is not what the setting needs.
    #[error("{}: {}: {problem}; expected {expected}", .file.setting, .file.path.display())]
    Content {
        /// The setting and the file.
        file: PemFile,
        /// What was found.
        problem: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The key belongs to another certificate.
    #[error("{}: the key in {} does not belong to the first certificate in {}; give both files of one pair",
            .setting, .key.display(), .certificate.display())]
    Mismatch {
        /// The flag of the key.
        setting: &'static str,
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The system has no usable CA certificates.
    #[error("system CA certificates: {0}; install the system's package of CA certificates, or give a CA file")]
    SystemRoots(String),
    /// rustls rejects the settings.
    #[error("tls settings")]
    Settings(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl TlsError {
    pub(super) fn content(file: &PemFile, problem: impl Into<String>, expected: &'static str) -> Self {
        TlsError::Content { file: file.clone(), problem: problem.into(), expected }
    }
}
