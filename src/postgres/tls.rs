//! Encrypts the connections to the database: logins and cancel requests of every purpose.

mod failure;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use self::failure::TlsFailure;
pub(super) use self::failure::login_error;
use super::error::HostError;
use super::socket::{REQUEST_TLS, Socket, Stream};
use crate::database_url::{Encryption, Verify};
use crate::tls::{self, CaSource, TlsError};

/// The label of this certificate in metrics.
const USAGE: &str = "database";

/// The stream of a connection after the handshake. The type has no public name.
type EncryptedStream = <MakeRustlsConnect as MakeTlsConnect<Box<dyn Stream>>>::Stream;

impl Stream for EncryptedStream {
    fn channel_binding(&self) -> ChannelBinding {
        TlsStream::channel_binding(self)
    }
}

/// The settings of TLS for the connections of one URL, with the content of its files.
#[derive(Clone)]
pub(super) struct Tls {
    connect: MakeRustlsConnect,
    ca: Option<CaSource>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks the files. Returns `None` if connections are not encrypted. It may block.
    pub(super) fn load(encryption: &Encryption) -> Result<Option<Tls>, TlsError> {
        let Encryption::Tls { verify, files } = encryption else { return Ok(None) };
        let material = files.load()?;
        let mut config = tls::client_config(&material)?;
        if let (Verify::Ca, Some(roots)) = (verify, &material.roots) {
            ignore_name(&mut config, roots)?;
        }
        tls::show_expiry(USAGE, &material);
        Ok(Some(Tls { connect: MakeRustlsConnect::new(config), ca: files.ca.clone() }))
    }

    /// Requests TLS and performs the handshake. `host` is the name that the server's certificate must have.
    pub(super) async fn encrypt(&self, host: &str, mut stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, HostError> {
        stream.write_all(&REQUEST_TLS).await.map_err(HostError::Socket)?;
        // Read one byte and not more: bytes that follow it were not sent by the server with which the handshake is made.
        match stream.read_u8().await.map_err(HostError::Socket)? {
            b'S' => {}
            b'N' => return Err(HostError::Tls(TlsFailure::NotSupported)),
            _ => return Err(HostError::Tls(TlsFailure::NoDecision)),
        }
        let mut connect = self.connect.clone();
        let Ok(connect) = MakeTlsConnect::<Box<dyn Stream>>::make_tls_connect(&mut connect, host);
        match connect.connect(stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(TlsFailure::of_handshake(error, host, self.ca.as_ref())),
        }
    }
}

/// Lets a client accept every name in a certificate that one of its CAs issued.
fn ignore_name(config: &mut ClientConfig, roots: &Arc<RootCertStore>) -> Result<(), TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), tls::provider()).build();
    let verifier = verifier.map_err(|error| TlsError::Settings(error.into()))?;
    config.dangerous().set_certificate_verifier(Arc::new(IssuerVerifier(verifier)));
    Ok(())
}

/// Verifies everything except the name.
#[derive(Debug)]
struct IssuerVerifier(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for IssuerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is verified last, so everything else is valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Gives the driver a socket that is encrypted already, or plain because the URL says so.
pub(super) struct Established;

impl TlsConnect<Socket> for Established {
    type Stream = Socket;
    type Error = Infallible;
    type Future = Ready<Result<Socket, Infallible>>;

    fn connect(self, socket: Socket) -> Self::Future {
        ready(Ok(socket))
    }
}
