//! Sends single requests to the issuers of keys and tokens: over HTTPS, or over plain HTTP to this machine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::request::Builder;
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::tls::{CaSource, ClientConfig, PemFile, TlsFiles};

/// The time for a whole request.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response. A key or a token needs less than 16 KiB.
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
    #[error(
        "must start with https://; plain HTTP is accepted for loopback only, because the network could read and replace \
         what is sent"
    )]
    Plain,
}

/// Why there is no usable response.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error's text says it")]
pub enum HttpError {
    #[error("no complete response within {} s", TIMEOUT.as_secs())]
    TimedOut,
    #[error("no certificate authorities are configured")]
    NoTls,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("http")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be built")]
    Request(#[from] http::Error),
    #[error("the response cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("HTTP status {0}")]
    Status(StatusCode),
    #[error("the response has more than {MAX_BYTES} bytes")]
    TooLarge,
}

/// A URL, checked.
#[derive(Clone, Debug)]
pub struct HttpUrl {
    host: String,
    port: u16,
    authority: String,
    path: String,
    /// The name that the server's certificate must have; `None` for plain HTTP.
    server_name: Option<ServerName<'static>>,
}

/// Returns the files of the CAs to trust: `ca_file` of the setting `flag`, or those of the operating system.
pub fn tls_files(flag: &'static str, ca_file: Option<PathBuf>) -> TlsFiles {
    let file = |path| CaSource::File(PemFile::new(flag, path));
    TlsFiles { pair: None, ca: Some(ca_file.map_or(CaSource::System, file)) }
}

impl HttpUrl {
    /// Checks the URL.
    pub fn new(url: &str) -> Result<Self, UrlError> {
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
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(HttpUrl { host, port, authority: authority.as_str().to_owned(), path, server_name })
    }

    /// Returns whether the URL is HTTPS.
    pub fn is_tls(&self) -> bool {
        self.server_name.is_some()
    }

    /// Requests a document. Every status except 200 is an error. `tls` is needed if the URL is HTTPS.
    pub async fn get(&self, tls: Option<Arc<ClientConfig>>, accept: &'static str) -> Result<Bytes, HttpError> {
        let request = self.request(Request::get(self.path.as_str())).header(ACCEPT, accept).body(Full::default())?;
        match self.send(tls, request).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => Err(HttpError::Status(status)),
        }
    }

    /// Sends a form, and returns the status and the body of the response. `tls` is needed if the URL is HTTPS.
    pub async fn post_form(
        &self,
        tls: Option<Arc<ClientConfig>>,
        authorization: &str,
        form: String,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let request = self
            .request(Request::post(self.path.as_str()))
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form))?;
        self.send(tls, request).await
    }

    fn request(&self, builder: Builder) -> Builder {
        builder.header(HOST, self.authority.as_str()).header(USER_AGENT, concat!("msg/", env!("CARGO_PKG_VERSION")))
    }

    async fn send(
        &self,
        tls: Option<Arc<ClientConfig>>,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        tokio::time::timeout(TIMEOUT, self.exchange(tls, request)).await.map_err(|_| HttpError::TimedOut)?
    }

    async fn exchange(
        &self,
        tls: Option<Arc<ClientConfig>>,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(HttpError::Connect)?;
        match &self.server_name {
            Some(name) => {
                let connector = TlsConnector::from(tls.ok_or(HttpError::NoTls)?);
                let stream = connector.connect(name.clone(), stream).await.map_err(HttpError::Connect)?;
                exchange_over(stream, request).await
            }
            None => exchange_over(stream, request).await,
        }
    }
}

async fn exchange_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), HttpError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Aborted when this function returns.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let body = body
        .map(|body| body.to_bytes())
        .map_err(|error| if error.is::<LengthLimitError>() { HttpError::TooLarge } else { HttpError::Body(error) })?;
    Ok((status, body))
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
            assert!(HttpUrl::new(url).is_ok(), "{url}");
        }
        for url in ["http://issuer.example.org/keys", "http://10.0.0.7/", "http://127.0.0.1.example.org/"] {
            assert!(matches!(HttpUrl::new(url), Err(UrlError::Plain)), "{url}");
        }
        for url in ["", "issuer", "/keys", "ftp://127.0.0.1/", "https://user:secret@issuer/keys", "file:///etc/passwd"]
        {
            assert!(HttpUrl::new(url).is_err(), "{url}");
        }
    }

    /// Listens, and returns the URL and what serves one connection: it responds, and returns the request.
    async fn server(response: Vec<u8>) -> (HttpUrl, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut request = Vec::new();
            while !is_complete(&request) {
                let length = stream.read_buf(&mut request).await.expect("the client sends a request");
                assert!(length > 0, "the request is not complete: {request:?}");
            }
            let _ = stream.write_all(&response).await;
            String::from_utf8(request).expect("it is text")
        });
        (HttpUrl::new(&format!("http://127.0.0.1:{port}/keys?a=b")).expect("it is loopback"), serving)
    }

    fn is_complete(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        body.len() >= length.map_or(0, |length| length.parse().expect("it is a number"))
    }

    async fn fetched(response: Vec<u8>) -> Result<Bytes, HttpError> {
        let (url, serving) = server(response).await;
        let fetched = url.get(None, "application/json").await;
        let head = serving.await.expect("it does not panic");
        assert!(head.starts_with("GET /keys?a=b HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {}\r\n", url.authority)), "{head}");
        fetched
    }

    fn response(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn body_of_a_successful_response_is_returned() {
        assert_eq!(fetched(response("200 OK", "{}")).await.expect("it is good"), "{}");
        let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n".to_vec();
        assert!(matches!(fetched(redirect).await, Err(HttpError::Status(StatusCode::FOUND))));
        assert!(matches!(fetched(response("500 No", "{}")).await, Err(HttpError::Status(_))));
        assert!(matches!(fetched(response("200 OK", &"x".repeat(MAX_BYTES + 1))).await, Err(HttpError::TooLarge)));
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".to_vec();
        assert!(matches!(fetched(cut).await, Err(HttpError::Body(_) | HttpError::Http(_))));
        assert!(fetched(b"hello\r\n\r\n".to_vec()).await.is_err());
    }

    #[tokio::test]
    async fn form_is_posted_and_its_rejection_is_returned() {
        let (url, serving) = server(response("401 No", "{\"error\":\"invalid_client\"}")).await;
        let (status, body) = url.post_form(None, "Basic YQ==", "a=b&c=d".to_owned()).await.expect("it responds");
        assert_eq!((status, &*body), (StatusCode::UNAUTHORIZED, &b"{\"error\":\"invalid_client\"}"[..]));
        let request = serving.await.expect("it does not panic");
        assert!(
            request.starts_with("POST /keys?a=b HTTP/1.1\r\n") && request.ends_with("\r\n\r\na=b&c=d"),
            "{request}"
        );
        for header in ["authorization: Basic YQ==", "content-type: application/x-www-form-urlencoded"] {
            assert!(request.contains(&format!("{header}\r\n")), "{request}");
        }
    }

    #[tokio::test]
    async fn https_without_certificate_authorities_sends_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("https://{}/token", listener.local_addr().expect("it is bound"));
        let url = HttpUrl::new(&url).expect("it is valid");
        let sent = url.post_form(None, "Basic c2VjcmV0", String::new()).await;
        assert!(matches!(sent, Err(HttpError::NoTls)), "{sent:?}");
    }
}
