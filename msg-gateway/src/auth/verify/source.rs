//! The file with the issuer's keys, and what replaces the keys when the file changes.

use std::path::PathBuf;
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use msg_common::config::FileError;
use msg_common::reload::{Contents, Source};

use crate::auth::verify::Verifier;
use crate::auth::verify::keys::{KeyError, Keys};

/// A file with keys.
#[derive(Clone, Debug)]
pub(crate) struct KeyFile {
    pub(crate) kind: KeyFileKind,
    pub(crate) path: PathBuf,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyFileKind {
    Pem,
    Jwks,
    Secret,
}

/// Why a file has no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// Its content cannot be used.
    #[error("{}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
}

impl KeyFile {
    /// Reads the keys that can be used with these algorithms.
    pub(crate) fn load(&self, allowed: &[Algorithm]) -> Result<Keys, KeyFileError> {
        self.parse(&self.read()?, allowed)
    }

    fn read(&self) -> Result<Vec<u8>, KeyFileError> {
        let unreadable = |source| FileError::Read { path: self.path.clone(), source };
        Ok(std::fs::read(&self.path).map_err(unreadable)?)
    }

    fn parse(&self, content: &[u8], allowed: &[Algorithm]) -> Result<Keys, KeyFileError> {
        let text = std::str::from_utf8(content).map_err(|_| FileError::NotText(self.path.clone()))?;
        let text = text.trim_start_matches('\u{feff}');
        if text.trim().is_empty() {
            return Err(FileError::Empty(self.path.clone()).into());
        }
        let keys = match self.kind {
            KeyFileKind::Pem => Keys::from_pem(text, allowed),
            KeyFileKind::Jwks => Keys::from_jwks(text.as_bytes(), allowed),
            // Everything except the line end after it is a part of the secret, as it is for the issuer.
            KeyFileKind::Secret => Keys::from_secret(text.trim_end_matches(['\r', '\n']), allowed),
        };
        keys.map_err(|source| KeyFileError::Content { path: self.path.clone(), source })
    }
}

/// The keys of a verifier, in a file.
pub(crate) struct VerifierKeys {
    pub(crate) file: KeyFile,
    pub(crate) verifier: Arc<Verifier>,
}

impl Source for VerifierKeys {
    /// The verifier has the keys.
    type Value = ();
    type Error = KeyFileError;

    fn read(&self) -> Result<Contents, KeyFileError> {
        Ok(vec![self.file.read()?])
    }

    fn build(&self, contents: &Contents) -> Result<(), KeyFileError> {
        let keys = self.file.parse(&contents.concat(), &self.verifier.rules().algorithms)?;
        self.verifier.replace_keys(Some(keys));
        Ok(())
    }
}
