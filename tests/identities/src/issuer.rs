//! An issuer of tokens: its keys, the tokens that it signs, and the URL where it publishes its keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::Request;

use super::certificates::{Pair, acceptor};

pub const ISSUER: &str = "https://issuer.example.org";
pub const AUDIENCE: &str = "msg-gateway";

/// A key pair of the issuer.
#[derive(Clone)]
pub struct SigningKey {
    kid: String,
    key: EncodingKey,
}

impl SigningKey {
    pub fn new(kid: &str) -> SigningKey {
        let private = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
        SigningKey { kid: kid.into(), key: EncodingKey::from_ed_der(private.as_ref()) }
    }

    /// A token of this subject, with these scopes, that is valid for an hour.
    pub fn token(&self, subject: &str, scope: &str) -> String {
        self.token_for(subject, scope, 3600)
    }

    /// A token that expires in so many seconds.
    pub fn token_for(&self, subject: &str, scope: &str, seconds: u64) -> String {
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
        self.sign(&json!({ "sub": subject, "iss": ISSUER, "aud": AUDIENCE, "exp": exp, "scope": scope }))
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.kid, claims)
    }

    /// Signs with the name of another key.
    pub fn sign_as(&self, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &self.key).unwrap()
    }
}

/// The key set as the issuer publishes it.
pub fn jwks(keys: &[&SigningKey]) -> String {
    let jwk = |key: &&SigningKey| {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key.key, Algorithm::EdDSA).unwrap()).unwrap();
        jwk["kid"] = json!(key.kid);
        jwk
    };
    json!({ "keys": keys.iter().map(jwk).collect::<Vec<_>>() }).to_string()
}

/// Adds a token to a call.
pub fn authorized<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A server that publishes a key set.
pub struct KeyServer {
    pub url: String,
    /// What it returns; `None` while it is away: it then closes each connection.
    keys: Arc<Mutex<Option<String>>>,
    requests: Arc<AtomicUsize>,
}

impl KeyServer {
    /// Starts a server that is away.
    pub async fn start() -> KeyServer {
        KeyServer::serve("http", None).await
    }

    /// Starts a server that is away and has this certificate.
    pub async fn start_over_tls(pair: &Pair) -> KeyServer {
        KeyServer::serve("https", Some(acceptor(pair, &[]))).await
    }

    async fn serve(scheme: &str, tls: Option<TlsAcceptor>) -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}/keys", listener.local_addr().unwrap());
        let (keys, requests) = (Arc::new(Mutex::new(None::<String>)), Arc::new(AtomicUsize::new(0)));
        let (published, counter) = (keys.clone(), requests.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let Some(body) = published.lock().unwrap().clone() else { continue };
                match &tls {
                    None => respond(stream, &body).await,
                    Some(tls) => {
                        // A client that does not trust the certificate ends the handshake.
                        if let Ok(stream) = tls.accept(stream).await {
                            respond(stream, &body).await;
                        }
                    }
                }
            }
        });
        KeyServer { url, keys, requests }
    }

    pub fn publish(&self, keys: &[&SigningKey]) {
        *self.keys.lock().unwrap() = Some(jwks(keys));
    }

    pub fn leave(&self) {
        *self.keys.lock().unwrap() = None;
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    // The request has no body and fits into one packet.
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all((head + body).as_bytes()).await;
    let _ = stream.shutdown().await;
}
