//! Settings of TLS for gRPC.

use std::path::PathBuf;

use clap::Args;
use msg_common::tls::{CaSource, PemFile, TlsFiles, TlsPair};

/// The certificate of the gateway, and the CAs of its callers.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsOptions {
    /// File with the gateway's certificate in PEM, followed by the certificates of intermediate CAs. With it, gRPC is
    /// served over TLS 1.2 and 1.3 only. A changed file is in force for new connections within 60 s, or at SIGHUP
    #[arg(long, env = "TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// File with the private key of --tls-cert-file in PEM, without a passphrase
    #[arg(long, env = "TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// File with the CA certificates of callers in PEM. With it, each caller needs a certificate of one of these CAs,
    /// and connections have a maximum age, so that a CA that is removed from the file stops working
    #[arg(long, env = "TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
}

impl TlsOptions {
    fn pair(&self) -> TlsPair<'_> {
        TlsPair {
            certificate: ("--tls-cert-file", self.tls_cert_file.as_deref()),
            key: ("--tls-key-file", self.tls_key_file.as_deref()),
        }
    }

    /// Returns the files, if gRPC is served over TLS.
    pub fn files(&self) -> Option<TlsFiles> {
        let ca = self.tls_client_ca_file.as_ref();
        let ca = ca.map(|path| CaSource::File(PemFile::new("--tls-client-ca-file", path)));
        Some(TlsFiles { pair: Some(self.pair().files()?), ca })
    }

    pub(super) fn problems(&self) -> Vec<String> {
        match (self.files(), self.pair().problem(), &self.tls_client_ca_file) {
            (Some(files), ..) => files.problems(),
            (None, Some(problem), _) => vec![problem],
            (None, None, Some(_)) => vec!["--tls-client-ca-file is given without --tls-cert-file".to_owned()],
            (None, None, None) => Vec::new(),
        }
    }
}
