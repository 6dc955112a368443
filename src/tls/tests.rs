//! Tests files of certificates, and handshakes between the settings of servers and clients.

use std::fs;
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::{HandshakeKind, ProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::error::chain;
use crate::reload::Source;

/// A CA that can sign.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        Ca(CertifiedIssuer::self_signed(params, key).expect("it can be signed"))
    }

    /// Returns the PEM texts of a certificate for these names, which expires at the start of 2035, and of its key.
    fn sign(&self, names: &[&str]) -> [String; 2] {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(2035, 1, 1);
        for name in names {
            let text = (*name).try_into().expect("it is ASCII");
            let name = if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) };
            params.subject_alt_names.push(name);
        }
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("it can be signed");
        [certificate.pem(), key.serialize_pem()]
    }
}

const START_OF_2035: u64 = 2_051_222_400;

fn write(folder: &TempDir, name: &str, text: &str) -> PemFile {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("it can be written");
    let setting = if name.contains("key") { "--key-file" } else { "--cert-file" };
    PemFile::new(setting, path)
}

fn pair(folder: &TempDir, pem: &[String; 2]) -> PairFiles {
    let [certificate, key] = [("cert.pem", &pem[0]), ("key.pem", &pem[1])].map(|(name, pem)| write(folder, name, pem));
    PairFiles { certificate, key }
}

fn ca_file(folder: &TempDir, ca: &Ca) -> CaSource {
    CaSource::File(write(folder, "ca.pem", &ca.0.pem()))
}

fn files(folder: &TempDir, own: Option<&[String; 2]>, ca: Option<&Ca>) -> TlsFiles {
    TlsFiles { pair: own.map(|pem| pair(folder, pem)), ca: ca.map(|ca| ca_file(folder, ca)) }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

#[test]
fn valid_files_are_loaded() {
    let (folder, ca) = (folder(), Ca::new());
    let material = files(&folder, Some(&ca.sign(&["gateway"])), Some(&ca)).load().expect("they are valid");
    assert_eq!(material.expiry, Some(START_OF_2035));
    assert_eq!(material.certified.expect("it is given").cert.len(), 1);
    assert_eq!(material.roots.expect("they are given").len(), 1);
}

#[test]
fn chain_expires_with_its_first_certificate() {
    let (folder, ca) = (folder(), Ca::new());
    let [certificate, key] = ca.sign(&["gateway"]);
    let chain = [certificate + &ca.0.pem(), key];
    let material = files(&folder, Some(&chain), None).load().expect("they are valid");
    assert_eq!(material.certified.expect("it is given").cert.len(), 2);
    assert_eq!(material.expiry, Some(START_OF_2035), "the CA is valid for longer");
}

#[test]
fn error_names_setting_file_and_what_was_expected() {
    let ca = Ca::new();
    let [certificate, key] = ca.sign(&["gateway"]);
    let other = ca.sign(&["gateway"]);
    let broken = certificate.replace("\nMI", "\n-MI");
    let cut = &certificate[..certificate.len() / 2];
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let two_keys = key.clone() + &other[1];
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned();
    for (certificate, key, setting, problem) in [
        ("", key.as_str(), "--cert-file", "it is empty"),
        ("x", &key, "--cert-file", "it has no certificate; expected PEM sections that start with BEGIN CERTIFICATE"),
        (&key, &key, "--cert-file", "it has a private key, and no certificate; expected PEM"),
        (&broken, &key, "--cert-file", "a PEM section is not valid Base64"),
        (cut, &key, "--cert-file", "a PEM section has no END line: the file is truncated"),
        ("0\u{2}", &key, "--cert-file", "it is DER, not PEM"),
        (&no_key.replace("PRIVATE KEY", "CERTIFICATE"), &key, "--cert-file", "the certificate cannot be decoded"),
        (&certificate, &certificate, "--key-file", "it has certificates, and no private key; expected one PEM section"),
        (&certificate, &encrypted, "--key-file", "its key is encrypted with a passphrase"),
        (&certificate, &two_keys, "--key-file", "it has more than one private key"),
        (&certificate, &no_key, "--key-file", "expected a key of RSA"),
        (&certificate, &other[1], "--key-file", "does not belong to the first certificate in"),
    ] {
        let folder = folder();
        let problems = files(&folder, Some(&[certificate.to_owned(), key.to_owned()]), None).problems();
        let file = folder.path().join(if setting == "--key-file" { "key.pem" } else { "cert.pem" });
        let file = file.to_string_lossy();
        assert_eq!(problems.len(), 1, "{problem}");
        let found = &problems[0];
        assert!(found.starts_with(&format!("{setting}: ")) && found.contains(&*file), "{found}");
        assert!(found.contains(problem), "{found}\nexpected: {problem}");
        let secret = other[1].lines().nth(1).expect("it has a line");
        assert!(!found.contains(secret) && !found.contains("AAAA"), "{found}");
    }
}

#[test]
fn missing_files_are_named() {
    let folder = folder();
    let missing = |name: &str| PemFile::new("--ca-file", folder.path().join(name));
    let files = TlsFiles { pair: None, ca: Some(CaSource::File(missing("none.pem"))) };
    let problem = files.problems().remove(0);
    assert!(problem.starts_with("--ca-file: cannot read ") && problem.contains("none.pem: No such file"), "{problem}");
}

#[test]
fn certificate_of_a_peer_names_it() {
    let ca = Ca::new();
    let folder = folder();
    let own = ca.sign(&["orders.internal", "spiffe://example.org/orders", "orders"]);
    let material = files(&folder, Some(&own), None).load().expect("they are valid");
    let identity = PeerIdentity::of(&material.certified.expect("it is given").cert[0]).expect("it can be decoded");
    assert_eq!(identity.uris, ["spiffe://example.org/orders"]);
    assert_eq!(identity.dns_names, ["orders.internal", "orders"]);
    let unnamed = files(&folder, Some(&ca.sign(&[])), None).load().expect("they are valid");
    let identity = PeerIdentity::of(&unnamed.certified.expect("it is given").cert[0]).expect("it can be decoded");
    assert_eq!(identity, PeerIdentity::default());
}

/// What both sides know of a connection after one byte was sent in each direction.
struct Connected {
    version: ProtocolVersion,
    kind: HandshakeKind,
    alpn: Option<Vec<u8>>,
    peer: Option<PeerIdentity>,
}

/// Connects to a server named gateway, over memory.
async fn connect(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<Connected, String> {
    let (ours, theirs) = tokio::io::duplex(4096);
    let serve = async {
        let mut stream = TlsAcceptor::from(server.clone()).accept(ours).await?;
        let byte = stream.read_u8().await?;
        stream.write_all(&[byte]).await?;
        stream.flush().await?;
        let (_, session) = stream.get_ref();
        std::io::Result::Ok(Connected {
            version: session.protocol_version().expect("the handshake is over"),
            kind: session.handshake_kind().expect("the handshake is over"),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            peer: session.peer_certificates().map(|chain| PeerIdentity::of(&chain[0]).expect("it can be decoded")),
        })
    };
    let call = async {
        let name = ServerName::try_from("gateway").expect("it is a name");
        let mut stream = TlsConnector::from(client.clone()).connect(name, theirs).await?;
        stream.write_all(&[1]).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    match tokio::join!(serve, call) {
        (Ok(connected), Ok(_)) => Ok(connected),
        (served, called) => Err(format!("server: {:?}, client: {:?}", served.err(), called.err())),
    }
}

fn server(own: &[String; 2], client_ca: Option<&Ca>) -> Arc<ServerConfig> {
    let material = files(&folder(), Some(own), client_ca).load().expect("they are valid");
    Arc::new(server_config(&material, &[b"h2"]).expect("it is valid"))
}

fn client(own: Option<&[String; 2]>, ca: &Ca, alpn: &[u8]) -> ClientConfig {
    let material = files(&folder(), own, Some(ca)).load().expect("they are valid");
    let mut config = client_config(&material).expect("it is valid");
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[tokio::test]
async fn server_is_verified_by_ca_and_name() {
    let (ca, other) = (Ca::new(), Ca::new());
    let trusting = Arc::new(client(None, &ca, b"h2"));
    let connected = connect(&server(&ca.sign(&["gateway"]), None), &trusting).await.expect("it is accepted");
    assert_eq!((connected.alpn.as_deref(), connected.peer), (Some(&b"h2"[..]), None));
    for bad in [other.sign(&["gateway"]), ca.sign(&["elsewhere"])] {
        assert!(connect(&server(&bad, None), &trusting).await.is_err());
    }
    let http1 = Arc::new(client(None, &ca, b"http/1.1"));
    assert!(connect(&server(&ca.sign(&["gateway"]), None), &http1).await.is_err());
}

#[tokio::test]
async fn client_needs_a_certificate_of_the_client_ca() {
    let (ca, clients, other) = (Ca::new(), Ca::new(), Ca::new());
    let server = server(&ca.sign(&["gateway"]), Some(&clients));
    let good = clients.sign(&["spiffe://example.org/orders"]);
    let connected = connect(&server, &Arc::new(client(Some(&good), &ca, b"h2"))).await.expect("it is accepted");
    assert_eq!(connected.peer.expect("it has one").uris, ["spiffe://example.org/orders"]);
    for own in [None, Some(other.sign(&["x"])), Some(ca.sign(&["x"]))] {
        let refused = connect(&server, &Arc::new(client(own.as_ref(), &ca, b"h2"))).await;
        assert!(refused.is_err());
    }
}

#[tokio::test]
async fn no_session_is_resumed_in_either_version() {
    let ca = Ca::new();
    let server = server(&ca.sign(&["gateway"]), Some(&ca));
    for (version, found) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let material = files(&folder(), Some(&ca.sign(&["x"])), Some(&ca)).load().expect("they are valid");
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("it is supported")
            .with_root_certificates(material.roots.expect("they are given"))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(material.certified.expect("it is given"))));
        let mut client = client;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let client = Arc::new(client);
        for _ in 0..3 {
            let connected = connect(&server, &client).await.expect("it is accepted");
            assert_eq!(connected.version, found);
            assert!(!matches!(connected.kind, HandshakeKind::Resumed), "{:?}", connected.kind);
        }
    }
}

/// A writer counts bytes as written that TLS has accepted, so these must be few.
#[tokio::test]
async fn unread_bytes_are_accepted_up_to_one_record() {
    const UNREAD_BY_PEER: usize = 4096;
    let ca = Ca::new();
    let (ours, theirs) = tokio::io::duplex(UNREAD_BY_PEER);
    let mut stream = ServerStream::new("test", ours, Some(server(&ca.sign(&["gateway"]), None)));
    let name = ServerName::try_from("gateway").expect("it is a name");
    let client = TlsConnector::from(Arc::new(client(None, &ca, b"h2"))).connect(name, theirs);
    let (opened, client) = tokio::join!(poll_fn(|cx| stream.poll_handshake(cx)), client);
    opened.expect("it is accepted");
    let mut accepted = 0;
    while let Poll::Ready(written) =
        poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &[0; 100_000]))).await
    {
        accepted += written.expect("the client is connected");
    }
    assert!((1 << 14..(1 << 14) + UNREAD_BY_PEER).contains(&accepted), "{accepted}");
    drop(client);
}

/// A volume of Kubernetes: its files are links through `..data`, which a rename replaces.
fn swap(volume: &Path, version: &str, pem: &[String; 2]) {
    let data = volume.join(version);
    fs::create_dir(&data).expect("a folder can be made");
    fs::write(data.join("cert.pem"), &pem[0]).expect("it can be written");
    fs::write(data.join("key.pem"), &pem[1]).expect("it can be written");
    std::os::unix::fs::symlink(version, volume.join("..new")).expect("a link can be made");
    fs::rename(volume.join("..new"), volume.join("..data")).expect("it can be renamed");
}

#[test]
fn replaced_pair_is_read_through_the_links_of_a_volume() {
    let (volume, ca) = (folder(), Ca::new());
    let [first, second] = [ca.sign(&["gateway"]), ca.sign(&["gateway"])];
    swap(volume.path(), "1", &first);
    for name in ["cert.pem", "key.pem"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), volume.path().join(name))
            .expect("a link can be made");
    }
    let pair = PairFiles {
        certificate: PemFile::new("--cert-file", volume.path().join("cert.pem")),
        key: PemFile::new("--key-file", volume.path().join("key.pem")),
    };
    let files = TlsFiles { pair: Some(pair), ca: None };
    let source = TlsSource::new("test", files, |material| Ok(material.certified.clone()));
    let read = |contents| source.build(&contents).expect("they are valid").expect("it is given").cert[0].to_vec();
    let old = source.read().expect("they can be read");
    swap(volume.path(), "2", &second);
    let new = source.read().expect("they can be read");
    assert_ne!(old, new);
    assert_ne!(read(old.clone()), read(new.clone()));
    let mixed = vec![old[0].clone(), new[1].clone()];
    let problem = source.build(&mixed).expect_err("it is no pair");
    assert!(chain(&problem).contains("does not belong"), "{problem}");
}
