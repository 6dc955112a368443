//! Owns the address of the admin port, which is a TCP address or a Unix socket, its TLS, and the probe of health checks.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;

use crate::accept;
use crate::config::SettingError;
use crate::reload::Reloaded;
use crate::tls::{self, ServerStream, TlsFiles, TlsPair};

/// The time for a probe.
const PROBE: Duration = Duration::from_secs(5);

/// Where the admin port is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("invalid path of a socket: give unix:/path".to_owned()),
            Some(path) => Ok(AdminAddress::Unix(path.into())),
            None => text.parse().map(AdminAddress::Tcp).map_err(|error: std::net::AddrParseError| error.to_string()),
        }
    }
}

impl Display for AdminAddress {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Tcp(address) => address.fmt(out),
            AdminAddress::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// The certificate of the admin port.
#[derive(Args, Clone, Debug, Default)]
pub struct AdminTlsOptions {
    /// File with the certificate of the admin port in PEM, followed by the certificates of intermediate CAs. With it,
    /// the admin port is served over TLS only. It may be the file of another certificate of this process. A changed file
    /// is in force within 60 s, or at SIGHUP
    #[arg(long, env = "ADMIN_TLS_CERT_FILE", value_name = "FILE")]
    pub admin_tls_cert_file: Option<PathBuf>,
    /// File with the private key of --admin-tls-cert-file in PEM, without a passphrase
    #[arg(long, env = "ADMIN_TLS_KEY_FILE", value_name = "FILE")]
    pub admin_tls_key_file: Option<PathBuf>,
}

impl AdminTlsOptions {
    fn pair(&self) -> TlsPair<'_> {
        TlsPair {
            certificate: ("--admin-tls-cert-file", self.admin_tls_cert_file.as_deref()),
            key: ("--admin-tls-key-file", self.admin_tls_key_file.as_deref()),
        }
    }

    /// Returns the files, if the admin port is served over TLS.
    pub fn files(&self) -> Option<TlsFiles> {
        Some(TlsFiles { pair: Some(self.pair().files()?), ca: None })
    }

    /// Returns one line for each problem of these settings.
    pub fn problems(&self) -> Vec<String> {
        match self.files() {
            Some(files) => files.problems(),
            None => self.pair().problem().into_iter().collect(),
        }
    }
}

/// A listener of the admin port.
pub struct AdminListener(Socket);

/// A listener of the admin port with the settings of its TLS, if it has any.
pub(super) struct TlsListener {
    pub(super) listener: AdminListener,
    pub(super) tls: Option<Reloaded<ServerConfig>>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl AdminListener {
    /// Listens on a setting's address. A Unix socket of a process that has ended is replaced.
    pub async fn bind(setting: &'static str, address: &AdminAddress) -> Result<Self, SettingError> {
        let bound = match address {
            AdminAddress::Tcp(address) => TcpListener::bind(address).await.map(Socket::Tcp),
            AdminAddress::Unix(path) => bind_unix(path).await.map(Socket::Unix),
        };
        let failed = |source| SettingError::Listen { setting, address: address.to_string(), source };
        bound.map(AdminListener).map_err(failed)
    }
}

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    // Any other error, such as a full queue of connections or a missing right, is that of a process that runs.
    let is_refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).await.is_err_and(is_refused) {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

impl Listener for TlsListener {
    type Io = ServerStream<Box<dyn Stream>>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        loop {
            let accepted: io::Result<Box<dyn Stream>> = match &self.listener.0 {
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as _),
                Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as _),
            };
            match accepted {
                Ok(stream) => {
                    let tls = self.tls.as_ref().map(Reloaded::current);
                    return (ServerStream::new(super::USAGE, stream, tls), ());
                }
                Err(error) => accept::failed(&error, super::USAGE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Requests `path` from the admin port of a running process, in plain text. Returns the status code and the body.
pub async fn probe(admin: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    probe_service(&AdminAddress::Tcp(admin), &AdminTlsOptions::default(), path).await
}

/// Requests `path` from the admin port of a process with these settings, for health checks. Returns the status code and the
/// body.
pub async fn probe_service(address: &AdminAddress, tls: &AdminTlsOptions, path: &str) -> io::Result<(u16, String)> {
    let request = async {
        let (stream, host): (Box<dyn Stream>, _) = match address {
            AdminAddress::Tcp(address) => {
                let address = reachable(*address);
                (Box::new(TcpStream::connect(address).await?), address.to_string())
            }
            AdminAddress::Unix(path) => (Box::new(UnixStream::connect(path).await?), "localhost".to_owned()),
        };
        let mut stream: Box<dyn Stream> = match tls.files() {
            None => stream,
            Some(_) => {
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Box::new(TlsConnector::from(any_server()?).connect(name, stream).await?)
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let status = response.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        status.map(|status| (status, body)).ok_or(io::ErrorKind::InvalidData.into())
    };
    tokio::time::timeout(PROBE, request).await?
}

/// A process that listens on all addresses is probed on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Returns the settings of a client that accepts any certificate. The probe connects to its own machine, where the
/// certificate has another name, and sends no secret. Kubernetes' probes do the same.
fn any_server() -> io::Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(tls::provider())))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_shown() {
        for text in ["127.0.0.1:9464", "[::1]:0", "unix:/run/msg/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for bad in ["unix:", "localhost:9464", "/run/msg/admin.sock", ""] {
            assert!(bad.parse::<AdminAddress>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn socket_of_an_ended_process_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let address = AdminAddress::Unix(folder.path().join("admin.sock"));
        let first = AdminListener::bind("--admin-listen", &address).await.expect("it is free");
        assert!(AdminListener::bind("--admin-listen", &address).await.is_err(), "a process listens there");
        // A process that does not accept for a while: its queue of connections is full.
        let AdminAddress::Unix(path) = &address else { unreachable!("it is a socket") };
        let mut queued = Vec::new();
        let full = loop {
            let connected = UnixStream::connect(path);
            match tokio::time::timeout(Duration::from_millis(100), connected).await {
                Ok(Ok(stream)) if queued.len() < 10_000 => queued.push(stream),
                Ok(Err(error)) => break error.kind() != io::ErrorKind::ConnectionRefused,
                Ok(Ok(_)) | Err(_) => break false,
            }
        };
        assert!(
            full && AdminListener::bind("--admin-listen", &address).await.is_err(),
            "that process still listens there"
        );
        drop((first, queued));
        AdminListener::bind("--admin-listen", &address).await.expect("no process listens there");
        let file = AdminAddress::Unix(folder.path().join("file"));
        fs::write(folder.path().join("file"), "x").expect("it can be written");
        assert!(AdminListener::bind("--admin-listen", &file).await.is_err(), "a file is not removed");
    }
}
