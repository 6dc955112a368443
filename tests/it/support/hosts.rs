//! Databases with several hosts: a primary with a standby, a host that accepts connections and never responds, and a
//! pooler in front of a server.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use msg_stack::{Postgres, Stack};
use tokio_postgres::Client;

use super::stack::own_postgres;
use super::world::World;
use super::{ensure, eventually};

/// A primary with a standby, and a world whose database both have.
pub(crate) struct PostgresPair {
    pub(crate) stack: Stack,
    pub(crate) standby: Postgres,
    pub(crate) world: World,
    name: String,
    _folders: [tempfile::TempDir; 2],
}

impl PostgresPair {
    pub(crate) async fn start(name: &str) -> PostgresPair {
        let (stack, folder) = own_postgres(name).await;
        let world = World::on(&stack, name, 4);
        world.create(&stack).await;
        stack.postgres().stop().await;
        let second = tempfile::Builder::new().prefix(&format!("msg-it-{name}-standby-")).tempdir().unwrap();
        // The server's user has to be able to enter the folder.
        std::fs::set_permissions(second.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let standby = stack.postgres().standby(&second.path().join("standby")).unwrap();
        stack.postgres().start().await.unwrap();
        standby.start().await.unwrap();
        PostgresPair { stack, standby, world, name: name.to_owned(), _folders: [folder, second] }
    }

    /// The URL with both servers in this order.
    pub(crate) fn url(&self, first: &Postgres, second: &Postgres, parameters: &str) -> String {
        let [first, second] = [first, second].map(|server| host_and_port(&server.url(&self.name)).to_owned());
        format!("postgres://postgres@{first},{second}/{}{parameters}", self.name)
    }

    pub(crate) async fn primary_client(&self) -> Client {
        let postgres = self.stack.postgres();
        postgres.connect(&postgres.url(&self.name)).await.unwrap()
    }

    pub(crate) async fn standby_client(&self) -> Client {
        self.standby.connect(&self.standby.url(&self.name)).await.unwrap()
    }

    /// Waits until the standby has replayed everything that the primary has written.
    pub(crate) async fn wait_for_standby(&self) {
        let (primary, standby) = (self.primary_client().await, self.standby_client().await);
        eventually("the standby has replayed everything", async || {
            let written: String = primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
            let has = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            ensure(standby.query_one(has, &[&written]).await?.get(0), written)
        })
        .await;
    }

    /// Promotes the standby to a primary.
    pub(crate) async fn promote(&self) {
        let promoted: bool = self.standby_client().await.query_one("SELECT pg_promote()", &[]).await.unwrap().get(0);
        assert!(promoted);
    }
}

/// Host and port of a URL.
pub(crate) fn host_and_port(url: &str) -> &str {
    let (_, rest) = url.split_once('@').unwrap();
    rest.split_once('/').unwrap().0
}

/// A host whose kernel accepts connections, and which never responds.
pub(crate) fn silent_host() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// PgBouncer in front of a world's database. It is killed when dropped.
pub(crate) struct Pooler {
    child: Child,
    pub(crate) url: String,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// Whether PgBouncer is installed. If it is not, prints that nothing is tested.
    #[allow(clippy::print_stderr, reason = "the log has to show that nothing was tested")]
    pub(crate) fn installed() -> bool {
        let ran = Command::new("pgbouncer").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if ran.is_err() {
            eprintln!("PgBouncer is not installed: nothing is tested here");
        }
        ran.is_ok()
    }

    /// Starts it with these further lines of configuration, such as the mode.
    pub(crate) async fn start(world: &World, settings: &str) -> Pooler {
        let (server, database) = (host_and_port(world.database_url()), world.topic());
        let (address, port) = server.split_once(':').unwrap();
        let listen = silent_host().1.port();
        let folder = tempfile::Builder::new().prefix("msg-it-pooler-").tempdir().unwrap();
        let text = format!(
            "[databases]\n{database} = host={address} port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {listen}\nauth_type = any\nunix_socket_dir =\n{settings}\n"
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, text).unwrap();
        let child = Pooler::spawn(&file, folder.path());
        let url = format!("postgres://postgres@127.0.0.1:{listen}/{database}");
        eventually("the pooler accepts connections", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", listen)).await?;
            Ok(())
        })
        .await;
        Pooler { child, url, _folder: folder }
    }

    /// Runs as another user if the test runs as root, because PgBouncer refuses to run as root.
    fn spawn(file: &Path, folder: &Path) -> Child {
        let mut command = Command::new("pgbouncer");
        if is_root() {
            for path in [folder, file] {
                chown(path, Some(65534), Some(65534)).unwrap();
            }
            command.arg("-u").arg("nobody");
        }
        let log = std::fs::File::create(folder.join("log")).unwrap();
        command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().expect("PgBouncer is installed")
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// A role that logs in with a password. A file has the URL with the password.
pub(crate) struct PasswordRole {
    operator: Client,
    host: String,
    database: String,
    parameters: String,
    file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl PasswordRole {
    /// Creates the role on a server of the test's own, whose rules for logins are changed.
    pub(crate) async fn create(stack: &Stack, world: &World) -> PasswordRole {
        let host = host_and_port(world.database_url());
        PasswordRole::create_with(stack, world, "host all app all scram-sha-256\n", host, "").await
    }

    /// As `create`, with these rules for logins, and with this host and these parameters in the URL.
    pub(crate) async fn create_with(
        stack: &Stack,
        world: &World,
        login_rules: &str,
        host: &str,
        parameters: &str,
    ) -> PasswordRole {
        let rules = stack.postgres().data().unwrap().join("pg_hba.conf");
        let old = std::fs::read_to_string(&rules).unwrap();
        std::fs::write(&rules, format!("{login_rules}{old}")).unwrap();
        let operator = world.database().await;
        operator.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let create = "CREATE ROLE app LOGIN PASSWORD 'first'; GRANT ALL ON SCHEMA public TO app";
        operator.batch_execute(create).await.unwrap();
        let folder = tempfile::Builder::new().prefix("msg-it-secret-").tempdir().unwrap();
        let (file, database) = (folder.path().join("url"), world.topic().to_owned());
        let (host, parameters) = (host.to_owned(), parameters.to_owned());
        let role = PasswordRole { operator, host, database, parameters, file, _folder: folder };
        role.write_file("first");
        role
    }

    /// Configures a service to log in as this role.
    pub(crate) fn configure(&self, mut spec: msg_stack::ServiceSpec) -> msg_stack::ServiceSpec {
        spec.env.retain(|(name, _)| name != "DATABASE_URL");
        spec.env("DATABASE_URL_FILE", self.file.display())
    }

    pub(crate) fn url_file(&self) -> &Path {
        &self.file
    }

    fn write_file(&self, password: &str) {
        let url = format!("postgres://app:{password}@{}/{}{}\n", self.host, self.database, self.parameters);
        std::fs::write(&self.file, url).unwrap();
    }

    /// Changes the parameters of the URL, for the next connection.
    pub(crate) fn set_parameters(&mut self, password: &str, parameters: &str) {
        self.parameters = parameters.to_owned();
        self.write_file(password);
    }

    pub(crate) fn remove_file(&self) {
        std::fs::remove_file(&self.file).unwrap();
    }

    /// Ends all sessions of the role.
    pub(crate) async fn end_sessions(&self) {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
        assert!(self.operator.query_one(end, &[]).await.unwrap().get::<_, i64>(0) > 0);
    }

    /// Changes the password in the server and in the file, and ends the role's sessions.
    pub(crate) async fn rotate(&self, password: &str) {
        self.operator.batch_execute(&format!("ALTER ROLE app PASSWORD '{password}'")).await.unwrap();
        self.write_file(password);
        self.end_sessions().await;
    }
}
