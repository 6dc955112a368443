//! An issuer that gives tokens to the Kafka clients of the services (OAuth 2.0 client credentials), and such tokens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use msg_stack::TokenIssuer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::certificates::{Pair, acceptor};
use super::issuer::{ISSUER, SigningKey, jwks};

const AUDIENCE: &str = "kafka";
/// The client that the issuer knows. Both parts have characters that a form encodes.
pub(crate) const CLIENT: &str = "app@example";
pub(crate) const SECRET: &str = "s3cret/+ 1";
pub(crate) const SCOPE: &str = "kafka write";

/// What the brokers accept: tokens that this key has signed.
pub(crate) fn accepted(key: &SigningKey) -> TokenIssuer {
    TokenIssuer { keys: jwks(&[key]), name: ISSUER.into(), audience: AUDIENCE.into() }
}

/// A token of a user that expires in so many seconds.
pub(crate) fn kafka_token(key: &SigningKey, user: &str, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let exp = now.checked_add_signed(seconds).unwrap();
    key.sign(&json!({ "sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": exp }))
}

/// A server that gives tokens to [`CLIENT`].
pub(crate) struct TokenServer {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    key: SigningKey,
    user: String,
    lifetime: i64,
    /// While it is away, it closes each connection.
    away: AtomicBool,
    given: AtomicU64,
    /// The last request.
    request: Mutex<String>,
}

impl TokenServer {
    /// Starts a server whose tokens live for so many seconds.
    pub(crate) async fn start(key: SigningKey, user: &str, lifetime: i64) -> TokenServer {
        TokenServer::listen(key, user, lifetime, "http", None).await
    }

    /// Starts a server that has this certificate.
    pub(crate) async fn start_over_tls(key: SigningKey, user: &str, lifetime: i64, pair: &Pair) -> TokenServer {
        TokenServer::listen(key, user, lifetime, "https", Some(acceptor(pair, &[]))).await
    }

    async fn listen(key: SigningKey, user: &str, lifetime: i64, scheme: &str, tls: Option<TlsAcceptor>) -> TokenServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}/token", listener.local_addr().unwrap());
        let (away, given, request) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { key, user: user.into(), lifetime, away, given, request });
        let serving = shared.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if serving.away.load(Ordering::SeqCst) {
                    continue;
                }
                match &tls {
                    None => serving.serve(stream).await,
                    Some(tls) => {
                        // A client that does not trust the certificate ends the handshake.
                        if let Ok(stream) = tls.accept(stream).await {
                            serving.serve(stream).await;
                        }
                    }
                }
            }
        });
        TokenServer { url, shared }
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    /// The number of tokens that it gave.
    pub(crate) fn given(&self) -> u64 {
        self.shared.given.load(Ordering::SeqCst)
    }

    pub(crate) fn last_request(&self) -> String {
        self.shared.request.lock().unwrap().clone()
    }
}

impl Shared {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = Vec::new();
        while !is_complete(&request) {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let request = String::from_utf8(request).unwrap();
        let (status, body) = self.response(&request);
        *self.request.lock().unwrap() = request;
        let (body, kind) = (body.to_string(), "content-type: application/json\r\nconnection: close");
        let head = format!("HTTP/1.1 {status}\r\n{kind}\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    fn response(&self, request: &str) -> (&'static str, serde_json::Value) {
        let user = STANDARD.encode("app%40example:s3cret%2F%2B%201");
        if !request.contains(&format!("authorization: Basic {user}\r\n")) {
            return ("401 Unauthorized", json!({ "error": "invalid_client", "error_description": "wrong secret" }));
        }
        if !request.ends_with("grant_type=client_credentials&scope=kafka%20write") {
            return ("400 Bad Request", json!({ "error": "invalid_request" }));
        }
        self.given.fetch_add(1, Ordering::SeqCst);
        let token = kafka_token(&self.key, &self.user, self.lifetime);
        ("200 OK", json!({ "access_token": token, "token_type": "Bearer", "expires_in": self.lifetime }))
    }
}

fn is_complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}
