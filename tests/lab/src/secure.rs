//! Owns the certificates, the keys and the token of a run with `--secure`. They are made at its start and are valid until
//! its end. A fault can replace the certificates of some servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use msg_stack::{BrokerTls, Postgres, ServiceSpec};

use super::accounts::replace;
use super::error::LabError;

/// The servers, each with two pairs of a certificate and a key, of which one is in use.
const BROKERS: &str = "brokers";
const DATABASE: &str = "database";
const GATEWAYS: &str = "gateways";
const PAIRS: usize = 2;
/// The pair that the gateways use.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The CA that signs all certificates.
const CA: &str = "ca.crt";
/// The keys with which the gateways verify tokens, and the token of the load.
const KEYS: &str = "keys.json";
const TOKEN: &str = "token";

/// The issuer of the token, and the service that it is for.
struct Claims {
    issuer: &'static str,
    audience: &'static str,
}

/// The files of a run.
pub(crate) struct Identities {
    folder: PathBuf,
    /// The names and the contents of the files.
    files: Vec<(String, String)>,
    claims: Claims,
    /// How many times the pairs of the gateways and the database were replaced.
    rotations: AtomicUsize,
}

impl Identities {
    /// Makes everything, and writes no file yet.
    pub(crate) fn new(folder: PathBuf) -> Result<Identities, LabError> {
        let (files, claims) = made()?;
        Ok(Identities { folder, files, claims, rotations: AtomicUsize::new(0) })
    }

    /// Writes the files.
    pub(crate) fn write(&self) -> Result<(), LabError> {
        fs::create_dir_all(&self.folder).map_err(LabError::io("create", &self.folder))?;
        self.files.iter().try_for_each(|(name, text)| replace(&self.path(name), text))?;
        self.write_gateways_pair()
    }

    /// Replaces the certificates of the gateways and of the database. New connections use them soon.
    pub(crate) async fn rotate(&self, server: &Postgres) -> Result<(), LabError> {
        self.rotations.fetch_add(1, Ordering::Relaxed);
        self.write_gateways_pair()?;
        self.install(server).await
    }

    /// Writes the files that the gateways read. Between the two, the key is of another certificate: a gateway that reads
    /// them then keeps its pair until the next time.
    fn write_gateways_pair(&self) -> Result<(), LabError> {
        let (certificate, key) = self.pair(GATEWAYS);
        replace(&self.path(CERTIFICATE), certificate)?;
        replace(&self.path(KEY), key)
    }

    /// Returns the certificates of the brokers.
    pub(crate) fn brokers(&self) -> BrokerTls {
        let (certificate, key) = self.pair(BROKERS);
        BrokerTls { certificate: certificate.to_owned(), key: key.to_owned(), client_ca: self.text(CA).to_owned() }
    }

    /// Lets the database accept TLS.
    pub(crate) async fn install(&self, server: &Postgres) -> Result<(), LabError> {
        let (certificate, key) = self.pair(DATABASE);
        Ok(server.accept_tls(certificate, key, self.text(CA)).await?)
    }

    /// Returns the file with the CA of all servers.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.path(CA)
    }

    /// Returns the parameters of a database URL with which a service verifies the server, and binds its login to the
    /// connection.
    pub(crate) fn url_parameters(&self) -> String {
        format!("sslmode=verify-full&channel_binding=require&sslrootcert={}", self.ca_file().display())
    }

    /// Adds the settings with which a gateway serves gRPC over TLS to callers with a token.
    pub(crate) fn configure_gateway(&self, spec: ServiceSpec) -> ServiceSpec {
        spec.env("TLS_CERT_FILE", self.path(CERTIFICATE).display())
            .env("TLS_KEY_FILE", self.path(KEY).display())
            .env("AUTH_MODE", "jwt")
            .env("AUTH_JWKS_FILE", self.path(KEYS).display())
            .env("AUTH_JWT_ISSUER", self.claims.issuer)
            .env("AUTH_JWT_AUDIENCE", self.claims.audience)
    }

    /// Returns the flags of the load's processes.
    pub(crate) fn load_flags(&self) -> [String; 4] {
        let file = |name| self.path(name).display().to_string();
        ["--ca-file".to_owned(), file(CA), "--token-file".to_owned(), file(TOKEN)]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(Path::new(name))
    }

    /// Returns the certificate and the key that a server uses.
    fn pair(&self, server: &str) -> (&str, &str) {
        let number = self.rotations.load(Ordering::Relaxed) % PAIRS;
        (self.text(&certificate_of(server, number)), self.text(&key_of(server, number)))
    }

    fn text(&self, name: &str) -> &str {
        self.files.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str()).unwrap_or_default()
    }
}

fn certificate_of(server: &str, number: usize) -> String {
    format!("{server}-{number}.crt")
}

fn key_of(server: &str, number: usize) -> String {
    format!("{server}-{number}.key")
}

/// Makes the files. The token is valid for longer than any run, and lets the load send as any sender and read any inbox.
#[cfg(feature = "secure")]
fn made() -> Result<(Vec<(String, String)>, Claims), LabError> {
    use msg_identities::certificates::{Ca, LOCAL};
    use msg_identities::issuer::{AUDIENCE, ISSUER, SigningKey, jwks};
    const YEAR: u64 = 365 * 24 * 3600;

    let (ca, issuer) = (Ca::new("lab"), SigningKey::new("lab"));
    let token = issuer.token_for("lab-load", "msg.send.any msg.read.any", YEAR);
    let mut files = vec![(CA.to_owned(), ca.pem()), (KEYS.to_owned(), jwks(&[&issuer])), (TOKEN.to_owned(), token)];
    for server in [BROKERS, DATABASE, GATEWAYS] {
        for number in 0..PAIRS {
            let pair = ca.sign(&LOCAL);
            files.extend([(certificate_of(server, number), pair.certificate), (key_of(server, number), pair.key)]);
        }
    }
    Ok((files, Claims { issuer: ISSUER, audience: AUDIENCE }))
}

#[cfg(not(feature = "secure"))]
fn made() -> Result<(Vec<(String, String)>, Claims), LabError> {
    Err(LabError::not_built())
}

#[cfg(all(test, feature = "secure"))]
mod tests {
    use super::*;
    use crate::load::connect::Access;

    #[test]
    fn files_serve_brokers_gateways_and_load() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identities = Identities::new(folder.path().to_owned()).expect("it is built in");
        identities.write().expect("own folder");
        let brokers = identities.brokers();
        assert!([&brokers.certificate, &brokers.key, &brokers.client_ca].iter().all(|text| text.contains("BEGIN")));
        let gateway = identities.configure_gateway(ServiceSpec::new("a", "b"));
        let files = gateway.env.iter().filter(|(name, _)| name.ends_with("_FILE"));
        assert_eq!(files.filter(|(_, path)| Path::new(path).exists()).count(), 3);
        let [_, ca, _, token] = identities.load_flags();
        let access = Access::read(Path::new(&ca), Path::new(&token)).expect("written just before");
        assert!(matches!(access, Access::Secure { .. }));
    }
}
