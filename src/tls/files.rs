//! Owns the files of one use of TLS: a certificate with its key, the CAs that the peer is verified with, or both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;

use super::{TlsError, certificate, pem, provider};
use crate::config::FileError;
use crate::reload::{Contents, Source};

/// A file with PEM text, and the setting that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// The flag, for errors.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl PemFile {
    /// Returns the file of a setting.
    pub fn new(setting: &'static str, path: impl Into<PathBuf>) -> Self {
        PemFile { setting, path: path.into() }
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        let unreadable = |source| TlsError::Unreadable { setting: self.setting, source };
        let content = std::fs::read(&self.path)
            .map_err(|source| unreadable(FileError::Read { path: self.path.clone(), source }))?;
        if content.is_empty() { Err(unreadable(FileError::Empty(self.path.clone()))) } else { Ok(content) }
    }
}

/// A certificate, with its intermediate CAs, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// The file of the certificate, which is the first of its chain.
    pub certificate: PemFile,
    /// The file of the key.
    pub key: PemFile,
}

/// Two settings that are given together: the files of a certificate and its key, each with its flag.
#[derive(Clone, Copy, Debug)]
pub struct TlsPair<'a> {
    /// The file of the certificate.
    pub certificate: (&'static str, Option<&'a Path>),
    /// The file of the key.
    pub key: (&'static str, Option<&'a Path>),
}

impl TlsPair<'_> {
    /// Returns the files if both are given.
    pub fn files(&self) -> Option<PairFiles> {
        let file = |(setting, path): (&'static str, Option<&Path>)| Some(PemFile::new(setting, path?));
        Some(PairFiles { certificate: file(self.certificate)?, key: file(self.key)? })
    }

    /// Returns a problem if only one is given.
    pub fn problem(&self) -> Option<String> {
        match (self.certificate, self.key) {
            ((given, Some(_)), (missing, None)) | ((missing, None), (given, Some(_))) => {
                Some(format!("{given} is given without {missing}"))
            }
            _ => None,
        }
    }
}

/// The CAs that a peer's certificate is verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaSource {
    /// All certificates of a file.
    File(PemFile),
    /// The CA certificates of the operating system.
    System,
}

/// The files of one use of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The own certificate and its key.
    pub pair: Option<PairFiles>,
    /// The CAs of the peer.
    pub ca: Option<CaSource>,
}

/// What the files contain, checked.
#[derive(Clone, Debug)]
pub struct Material {
    /// The own certificate chain and its key.
    pub certified: Option<Arc<CertifiedKey>>,
    /// When the chain expires, which is when the first of its certificates does, in seconds since 1970.
    pub expiry: Option<u64>,
    /// The CAs of the peer.
    pub roots: Option<Arc<RootCertStore>>,
}

impl TlsFiles {
    /// Returns one line for each problem of the files.
    pub fn problems(&self) -> Vec<String> {
        self.load().err().iter().map(|error| crate::error::chain(error)).collect()
    }

    /// Reads and checks the files.
    pub fn load(&self) -> Result<Material, TlsError> {
        self.parse(&self.read()?)
    }

    /// Reads the files: certificate and key, and then the CAs.
    fn read(&self) -> Result<Contents, TlsError> {
        let mut contents = Contents::new();
        if let Some(pair) = &self.pair {
            contents.extend([pair.certificate.read()?, pair.key.read()?]);
        }
        match &self.ca {
            None => {}
            Some(CaSource::File(file)) => contents.push(file.read()?),
            Some(CaSource::System) => contents.extend(system_roots()?),
        }
        Ok(contents)
    }

    /// Checks what [`TlsFiles::read`] returned.
    fn parse(&self, contents: &[Vec<u8>]) -> Result<Material, TlsError> {
        let (own, ca) = contents.split_at(if self.pair.is_some() { 2 } else { 0 });
        let mut material = Material { certified: None, expiry: None, roots: None };
        if let (Some(pair), [certificate, key]) = (&self.pair, own) {
            let (certified, expiry) = certified(pair, certificate, key)?;
            material.certified = Some(Arc::new(certified));
            material.expiry = Some(expiry);
        }
        material.roots = match &self.ca {
            None => None,
            Some(CaSource::File(file)) => Some(Arc::new(roots(file, &ca.concat())?)),
            Some(CaSource::System) => {
                let mut roots = RootCertStore::empty();
                // The system may have certificates that rustls does not accept as a CA; the others are used.
                roots.add_parsable_certificates(ca.iter().map(|der| der.clone().into()));
                Some(Arc::new(roots))
            }
        };
        Ok(material)
    }
}

fn certified(pair: &PairFiles, certificate: &[u8], key: &[u8]) -> Result<(CertifiedKey, u64), TlsError> {
    let chain = pem::certificates(&pair.certificate, certificate)?;
    let mut expiry = u64::MAX;
    for der in &chain {
        let found = certificate::expiry(der).map_err(|error| {
            TlsError::content(&pair.certificate, error.to_string(), "certificates of X.509 version 3")
        })?;
        expiry = expiry.min(found);
    }
    let private = pem::private_key(&pair.key, key)?;
    let signing = provider().key_provider.load_private_key(private).map_err(|error| {
        TlsError::content(&pair.key, error.to_string(), "a key of RSA with 2048 bits or more, ECDSA or Ed25519")
    })?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) => Ok((certified, expiry)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch {
            setting: pair.key.setting,
            certificate: pair.certificate.path.clone(),
            key: pair.key.path.clone(),
        }),
        Err(error) => {
            Err(TlsError::content(&pair.certificate, error.to_string(), "a certificate of a server or client"))
        }
    }
}

fn roots(file: &PemFile, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, der) in pem::certificates(file, pem)?.into_iter().enumerate() {
        roots.add(der).map_err(|error| {
            let problem = format!("certificate {} is not usable as a CA: {error}", index + 1);
            TlsError::content(file, problem, "certificates of CAs")
        })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<Vec<Vec<u8>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::SystemRoots(if errors.is_empty() { "none found".into() } else { errors.join("; ") }));
    }
    let mut roots: Vec<Vec<u8>> = found.certs.iter().map(|der| der.to_vec()).collect();
    // The order of a folder's files may differ between two reads.
    roots.sort();
    Ok(roots)
}

type Build<T> = dyn Fn(&Material) -> Result<T, TlsError> + Send + Sync;

/// Builds a value from TLS files, for a [`Reloader`](crate::reload::Reloader). Shows when the own certificate expires.
pub struct TlsSource<T> {
    usage: &'static str,
    files: TlsFiles,
    build: Box<Build<T>>,
}

impl<T> TlsSource<T> {
    /// Returns a source whose values `build` makes of the checked files.
    pub fn new(
        usage: &'static str,
        files: TlsFiles,
        build: impl Fn(&Material) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Self {
        TlsSource { usage, files, build: Box::new(build) }
    }
}

impl<T: Send + Sync + 'static> Source for TlsSource<T> {
    type Value = T;
    type Error = TlsError;

    fn read(&self) -> Result<Contents, TlsError> {
        self.files.read()
    }

    fn build(&self, contents: &Contents) -> Result<T, TlsError> {
        let material = self.files.parse(contents)?;
        let value = (self.build)(&material)?;
        super::show_expiry(self.usage, &material);
        Ok(value)
    }
}
