//! A PostgreSQL of a test's own that accepts TLS, with a role that may log in over TLS only.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use msg_stack::Stack;
use rcgen::DnType;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::certificates::{Ca, Pair};
use super::hosts::{PasswordRole, host_and_port};
use super::stack::own_postgres;
use super::world::World;

/// The name in the server's certificate. It is resolved by `hostaddr` in the URL.
pub(crate) const HOST: &str = "db.internal";

/// A world whose PostgreSQL accepts TLS. Its own URL is for the test, without TLS; services use the URL of `role`.
pub(crate) struct TlsPostgres {
    pub(crate) stack: Stack,
    pub(crate) world: World,
    pub(crate) role: PasswordRole,
    pub(crate) ca: Ca,
    /// The files of the clients: `ca.crt`, and `client.crt` with `client.key`.
    files: tempfile::TempDir,
    _folder: tempfile::TempDir,
}

impl TlsPostgres {
    /// Starts the server. `login` is how the role logs in, as in `pg_hba.conf`.
    pub(crate) async fn start(name: &str, login: &str) -> TlsPostgres {
        let (stack, folder) = own_postgres(name).await;
        let world = World::on(&stack, name, 4);
        world.create(&stack).await;
        let (files, ca) = (tempfile::tempdir().unwrap(), Ca::new("servers"));
        let rules = format!("hostssl all app all {login}\nhostnossl all app all reject\n");
        let parameters = verify_full(files.path());
        let host = host_and_port(world.database_url()).replace("127.0.0.1", HOST);
        let role = PasswordRole::create_with(&stack, &world, &rules, &host, &parameters).await;
        let server = TlsPostgres { stack, world, role, ca, files, _folder: folder };
        server.write("ca.crt", &server.ca.pem());
        server.write_client(&server.ca);
        server.install(&server.ca.sign(&[HOST]), &server.ca).await;
        server
    }

    /// Gives the server this certificate and the CA of its clients. New connections use them soon.
    pub(crate) async fn install(&self, pair: &Pair, client_ca: &Ca) {
        let postgres = self.stack.postgres();
        postgres.accept_tls(&pair.certificate, &pair.key, &client_ca.pem()).await.unwrap();
    }

    /// Writes a file of the clients.
    pub(crate) fn write(&self, name: &str, text: &str) {
        place(self.files.path(), name, text);
    }

    /// Writes a certificate of the role `app`, and its key.
    pub(crate) fn write_client(&self, ca: &Ca) {
        let pair = ca.sign_with(&[], |params| params.distinguished_name.push(DnType::CommonName, "app"));
        self.write("client.key", &pair.key);
        self.write("client.crt", &pair.certificate);
    }

    /// The parameter with the clients' certificate and key.
    pub(crate) fn client_pair(&self) -> String {
        let [certificate, key] = ["client.crt", "client.key"].map(|name| self.path(name));
        format!("&sslcert={}&sslkey={}", certificate.display(), key.display())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A URL of the role with another host and other parameters.
    pub(crate) fn url(&self, host: &str, parameters: &str) -> String {
        let address = host_and_port(self.world.database_url()).replace("127.0.0.1", host);
        let name = self.world.topic();
        format!("postgres://app:first@{address}/{name}?hostaddr=127.0.0.1&{parameters}")
    }
}

/// The parameters with which clients verify the server.
fn verify_full(files: &Path) -> String {
    format!("?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}", files.join("ca.crt").display())
}

/// Replaces a file at one moment.
fn place(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    fs::write(&new, text).unwrap();
    fs::rename(&new, folder.join(name)).unwrap();
}

/// Forwards connections, and records the first eight bytes of each.
pub(crate) struct FirstMessages {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<[u8; 8]>>>,
}

impl FirstMessages {
    /// Forwards to `behind` as long as the test's runtime runs.
    pub(crate) async fn forward(behind: SocketAddr) -> FirstMessages {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let record = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let record = Arc::clone(&record);
                tokio::spawn(async move {
                    let mut first = [0; 8];
                    from.read_exact(&mut first).await?;
                    record.lock().unwrap().push(first);
                    let mut to = TcpStream::connect(behind).await?;
                    to.write_all(&first).await?;
                    copy_bidirectional(&mut from, &mut to).await
                });
            }
        });
        FirstMessages { address, seen }
    }

    pub(crate) fn seen(&self) -> Vec<[u8; 8]> {
        self.seen.lock().unwrap().clone()
    }
}
