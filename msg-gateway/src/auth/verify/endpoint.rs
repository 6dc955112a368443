//! Fetches a key set from the issuer's URL: one GET over HTTPS, or over plain HTTP from this machine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use msg_common::reload::Reloaded;
use msg_common::tls::{CaSource, PemFile, TlsFiles};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::auth::verify::refresh::Fetch;

/// The time for the whole request. Callers with an unknown key wait for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a key set. A key needs less than 4 KiB.
const MAX_BYTES: usize = 1 << 20;

/// Why a URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It is no URL.
    #[error("is no URL")]
    NotUrl(#[source] http::uri::InvalidUri),
    /// It has no host, or a password.
    #[error("must have the form https://HOST/PATH")]
    Form,
    /// It is plain HTTP to another machine.
    #[error("must start with https://; plain HTTP is accepted for loopback only, because keys decide who may call")]
    Plain,
}

/// Why a key set was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no complete response within {} s", TIMEOUT.as_secs())]
    TimedOut,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("http")]
    Http(#[from] hyper::Error),
    #[error("the response cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("HTTP status {0}")]
    Status(StatusCode),
    #[error("the response has more than {MAX_BYTES} bytes")]
    TooLarge,
}

/// A URL with a key set, checked.
#[derive(Clone, Debug)]
pub(crate) struct KeyUrl {
    host: String,
    port: u16,
    request: Request<Empty<Bytes>>,
    /// The name that the server's certificate must have; `None` for plain HTTP.
    server_name: Option<ServerName<'static>>,
}

/// A URL, and the TLS settings that it is fetched with.
pub(crate) struct Endpoint {
    url: KeyUrl,
    tls: Option<(Reloaded<ClientConfig>, ServerName<'static>)>,
}

/// Returns the files of the CAs to trust: those of the operating system, or `ca_file`.
pub(crate) fn tls_files(ca_file: Option<PathBuf>) -> TlsFiles {
    let file = |path| CaSource::File(PemFile::new("--auth-jwks-ca-file", path));
    TlsFiles { pair: None, ca: Some(ca_file.map_or(CaSource::System, file)) }
}

impl KeyUrl {
    /// Checks the URL.
    pub(crate) fn new(url: &str) -> Result<Self, UrlError> {
        let uri: Uri = url.parse().map_err(UrlError::NotUrl)?;
        let authority = uri.authority().filter(|part| !part.as_str().contains('@')).ok_or(UrlError::Form)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let scheme = uri.scheme().ok_or(UrlError::Form)?;
        let server_name = if *scheme == Scheme::HTTPS {
            Some(ServerName::try_from(host.clone()).map_err(|_| UrlError::Form)?)
        } else if *scheme == Scheme::HTTP && is_loopback(&host) {
            None
        } else {
            return Err(if *scheme == Scheme::HTTP { UrlError::Plain } else { UrlError::Form });
        };
        let port = authority.port_u16().unwrap_or(if server_name.is_some() { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("msg-gateway/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|_| UrlError::Form)?;
        Ok(KeyUrl { host, port, request, server_name })
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.server_name.is_some()
    }
}

impl Endpoint {
    /// Makes an endpoint of a URL. `tls` is needed if the URL is HTTPS.
    pub(crate) fn new(url: KeyUrl, tls: Option<Reloaded<ClientConfig>>) -> Self {
        let tls = tls.zip(url.server_name.clone());
        Endpoint { url, tls }
    }

    async fn get(&self) -> Result<Bytes, FetchError> {
        let KeyUrl { host, port, .. } = &self.url;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(FetchError::Connect)?;
        match &self.tls {
            Some((settings, name)) => {
                let connector = TlsConnector::from(settings.current());
                let stream = connector.connect(name.clone(), stream).await.map_err(FetchError::Connect)?;
                self.get_over(stream).await
            }
            None => self.get_over(stream).await,
        }
    }

    async fn get_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Bytes, FetchError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Aborted when this function returns.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let response = sender.send_request(self.url.request.clone()).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| {
            if error.is::<LengthLimitError>() { FetchError::TooLarge } else { FetchError::Body(error) }
        })
    }
}

impl Fetch for Endpoint {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, FetchError>> {
        Box::pin(async { tokio::time::timeout(TIMEOUT, self.get()).await.map_err(|_| FetchError::TimedOut)? })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_https_and_loopback_are_accepted() {
        for url in [
            "https://issuer.example.org/keys",
            "https://10.0.0.7:8443/",
            "http://127.0.0.1:1/keys",
            "http://[::1]/",
            "http://localhost:80",
        ] {
            assert!(KeyUrl::new(url).is_ok(), "{url}");
        }
        for url in ["http://issuer.example.org/keys", "http://10.0.0.7/", "http://127.0.0.1.example.org/"] {
            assert!(matches!(KeyUrl::new(url), Err(UrlError::Plain)), "{url}");
        }
        for url in ["", "issuer", "/keys", "ftp://127.0.0.1/", "https://user:secret@issuer/keys", "file:///etc/passwd"]
        {
            assert!(KeyUrl::new(url).is_err(), "{url}");
        }
    }

    /// Serves one connection with this response.
    async fn fetched(response: Vec<u8>) -> Result<Bytes, FetchError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut head = [0; 1024];
            let length = stream.read(&mut head).await.expect("the client sends a request");
            let _ = stream.write_all(&response).await;
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        let url = KeyUrl::new(&format!("http://127.0.0.1:{port}/keys?a=b")).expect("it is loopback");
        let fetched = Endpoint::new(url, None).fetch().await;
        let head = serving.await.expect("it does not panic");
        assert!(head.starts_with("GET /keys?a=b HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
        fetched
    }

    fn response(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn body_of_a_successful_response_is_returned() {
        assert_eq!(fetched(response("200 OK", "{}")).await.expect("it is good"), "{}");
        let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n".to_vec();
        assert!(matches!(fetched(redirect).await, Err(FetchError::Status(StatusCode::FOUND))));
        assert!(matches!(fetched(response("500 No", "{}")).await, Err(FetchError::Status(_))));
        assert!(matches!(fetched(response("200 OK", &"x".repeat(MAX_BYTES + 1))).await, Err(FetchError::TooLarge)));
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".to_vec();
        assert!(matches!(fetched(cut).await, Err(FetchError::Body(_) | FetchError::Http(_))));
        assert!(fetched(b"hello\r\n\r\n".to_vec()).await.is_err());
    }
}
