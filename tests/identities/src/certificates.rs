//! Certificates of a test's own, and TLS connections that use them.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msg_common::tls::{self, CaSource, ClientConfig, PairFiles, PemFile, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// The names of a gateway on this machine.
pub const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];

/// A CA that can sign.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// The PEM texts of a certificate and its key.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The certificate of the CA itself, and its key.
    pub fn own_pair(&self) -> Pair {
        Pair { certificate: self.pem(), key: self.0.key().serialize_pem() }
    }

    /// Signs a certificate for IP addresses, URIs and DNS names.
    pub fn sign(&self, names: &[&str]) -> Pair {
        self.sign_with(names, |_| {})
    }

    /// Signs a certificate with this common name.
    pub fn sign_for(&self, common_name: &str, names: &[&str]) -> Pair {
        self.sign_with(names, |params| params.distinguished_name.push(DnType::CommonName, common_name))
    }

    /// Signs a certificate for these names, with changed parameters.
    pub fn sign_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A folder with PEM files. `replace` swaps it as Kubernetes swaps a volume: the files are links through `..data`.
pub struct Files {
    folder: TempDir,
    versions: std::cell::Cell<u32>,
}

impl Files {
    pub fn new(files: &[(&str, &str)]) -> Files {
        let new = Files { folder: tempfile::tempdir().unwrap(), versions: std::cell::Cell::new(0) };
        new.replace(files);
        for (name, _) in files {
            std::os::unix::fs::symlink(Path::new("..data").join(name), new.path(name)).unwrap();
        }
        new
    }

    /// Replaces all files at the same moment.
    pub fn replace(&self, files: &[(&str, &str)]) {
        self.versions.set(self.versions.get() + 1);
        let version = format!("..{}", self.versions.get());
        std::fs::create_dir(self.path(&version)).unwrap();
        for (name, text) in files {
            std::fs::write(self.path(&version).join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(&version, self.path("..new")).unwrap();
        std::fs::rename(self.path("..new"), self.path("..data")).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path of a file as text, for arguments and settings.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// The settings of a caller that trusts `ca` and presents `own`.
pub fn caller(ca: &str, own: Option<&Pair>) -> Arc<ClientConfig> {
    let files = Files::new(&[
        ("ca", ca),
        ("cert", own.map_or("", |pair| &pair.certificate)),
        ("key", own.map_or("", |pair| &pair.key)),
    ]);
    let file = |name| PemFile::new("--test", files.path(name));
    let pair = own.map(|_| PairFiles { certificate: file("cert"), key: file("key") });
    let material = TlsFiles { pair, ca: Some(CaSource::File(file("ca"))) }.load().unwrap();
    let mut config = tls::client_config(&material).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// What accepts TLS connections with this certificate.
pub fn acceptor(pair: &Pair, protocols: &[&[u8]]) -> TlsAcceptor {
    let files = Files::new(&[("cert", &pair.certificate), ("key", &pair.key)]);
    let file = |name| PemFile::new("--test", files.path(name));
    let pair = PairFiles { certificate: file("cert"), key: file("key") };
    let material = TlsFiles { pair: Some(pair), ca: None }.load().unwrap();
    TlsAcceptor::from(Arc::new(tls::server_config(&material, protocols).unwrap()))
}

/// Opens a TLS connection to an address of this machine.
pub async fn connect(address: &str, caller: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    // As the connections of tonic without TLS.
    tcp.set_nodelay(true)?;
    TlsConnector::from(caller.clone()).connect("localhost".try_into().unwrap(), tcp).await
}

/// A channel that connects with these settings, and again when its connection ends.
pub fn channel(address: &str, caller: &Arc<ClientConfig>) -> Channel {
    channel_to(&Endpoint::from_shared(format!("http://{address}")).unwrap(), caller)
}

/// As `channel`, with the other settings of this endpoint.
pub fn channel_to(endpoint: &Endpoint, caller: &Arc<ClientConfig>) -> Channel {
    let caller = caller.clone();
    let connector = tower::service_fn(move |target: Uri| {
        let caller = caller.clone();
        async move {
            let address = target.authority().unwrap().as_str();
            connect(address, &caller).await.map(hyper_util::rt::TokioIo::new)
        }
    });
    endpoint.connect_with_connector_lazy(connector)
}
