//! A name with several addresses, whose servers are imitated: only the responses that the checks read.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::postgres::UrlFlags;

/// The state of an imitated server.
#[derive(Debug)]
struct FakeServer {
    address: SocketAddr,
    started: &'static str,
    read_only: AtomicBool,
}

impl FakeServer {
    /// Starts a primary, which runs as long as the test's runtime.
    async fn start(started: &'static str, read_only: bool) -> Arc<FakeServer> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        let server = Arc::new(FakeServer { address, started, read_only: AtomicBool::new(read_only) });
        let served = server.clone();
        tokio::spawn(async move {
            for pid in 1.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let served = served.clone();
                tokio::spawn(async move { served.serve(stream, pid).await });
            }
        });
        server
    }

    fn tcp(&self) -> Address {
        Address::Tcp { address: self.address, host: "db".to_owned() }
    }

    async fn serve(&self, mut stream: TcpStream, pid: usize) -> io::Result<()> {
        let length = stream.read_u32().await?;
        stream.read_exact(&mut vec![0; length as usize - 4]).await?;
        stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat()).await?;
        loop {
            let kind = stream.read_u8().await?;
            let length = stream.read_u32().await?;
            let mut text = vec![0; length as usize - 4];
            stream.read_exact(&mut text).await?;
            if kind != b'Q' {
                return Ok(());
            }
            let query = String::from_utf8_lossy(&text).into_owned();
            let response = match self.row(&query, &pid.to_string()) {
                Some(values) => [row(&values), message(b'C', b"SELECT 1\0")].concat(),
                None => message(b'C', b"SET\0"),
            };
            stream.write_all(&[response, message(b'Z', b"I")].concat()).await?;
        }
    }

    fn row(&self, query: &str, pid: &str) -> Option<Vec<String>> {
        let read_only = self.read_only.load(Ordering::Relaxed);
        let values: &[&str] = if query.contains("server_encoding") {
            &["0", if read_only { "on" } else { "off" }, "UTF8", pid, self.started, "7", "00000001"]
        } else if query.contains("pg_db_role_setting") {
            &["0", if read_only { "1" } else { "0" }]
        } else if query.contains("pg_backend_pid") {
            &[pid]
        } else {
            return None;
        };
        Some(values.iter().map(|value| (*value).to_owned()).collect())
    }
}

/// Returns a message of the protocol.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("it is short");
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// Returns the description of a row of texts, and the row.
fn row(values: &[String]) -> Vec<u8> {
    const TEXT: u32 = 25;
    let count = u16::try_from(values.len()).expect("it is short").to_be_bytes();
    let (mut description, mut data) = (count.to_vec(), count.to_vec());
    for value in values {
        description.extend(b"x\0");
        description.extend([0; 6]);
        description.extend(TEXT.to_be_bytes());
        description.extend([0xff; 6]);
        description.extend([0; 2]);
        data.extend(u32::try_from(value.len()).expect("it is short").to_be_bytes());
        data.extend(value.as_bytes());
    }
    [message(b'T', &description), message(b'D', &data)].concat()
}

fn connector(purpose: Purpose) -> (Connector, Settings) {
    let options = DatabaseOptions {
        database_url: Some("postgres://app@db/x?sslmode=disable".into()),
        database_url_file: None,
        database_password_file: None,
        database_connect_timeout: Duration::from_secs(10),
        database_statement_timeout: Duration::from_secs(10),
        flags: UrlFlags::default(),
    };
    let settings = Settings::load(&options).expect("the URL is valid");
    (Connector::new(options, "test", "", purpose).expect("the URL is valid"), settings)
}

/// Connects as if the name of the URL had the addresses of these servers.
async fn connect(
    connector: &Connector,
    settings: &Settings,
    servers: &[&FakeServer],
) -> Result<Client, Vec<(String, HostError)>> {
    let addresses = servers.iter().map(|server| server.tcp()).collect();
    connector.connect_any(settings, "db:5432", addresses, 1).await
}

fn is_read_only<T>(result: &Result<T, HostError>) -> bool {
    matches!(result, Err(HostError::Refused(Refusal::ReadOnly)))
}

#[tokio::test]
async fn reads_leave_a_read_only_address_of_a_name_for_another() {
    for purpose in [Purpose::ReadPrimary, Purpose::Write] {
        let (connector, settings) = connector(purpose);
        let (old, new) = (FakeServer::start("1", false).await, FakeServer::start("2", false).await);
        let client = connect(&connector, &settings, &[&old, &new]).await.expect("the first one is a primary");
        assert_eq!(*client.address(), old.tcp());
        connector.verify(&client).await.expect("it is still one");
        old.read_only.store(true, Ordering::Relaxed);
        let verified = connector.verify(&client).await;
        assert!(is_read_only(&verified), "{purpose:?}: {verified:?}");
        let client = connect(&connector, &settings, &[&old, &new]).await.expect("the second one is a primary");
        assert_eq!(*client.address(), new.tcp());
    }
}

#[tokio::test]
async fn read_only_server_is_read_if_all_addresses_lead_to_it() {
    let (connector, settings) = connector(Purpose::ReadPrimary);
    let (one, again) = (FakeServer::start("1", true).await, FakeServer::start("1", true).await);
    connect(&connector, &settings, &[&one]).await.expect("there is no other server");
    connect(&connector, &settings, &[&one, &again]).await.expect("both are one server");
    let other = FakeServer::start("2", true).await;
    let failed = connect(&connector, &settings, &[&one, &other]).await.expect_err("either may be a previous primary");
    assert_eq!(failed.len(), 2, "{failed:?}");
}
