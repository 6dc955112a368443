//! Owns a server's side of a connection, with or without TLS. The TLS handshake runs when the stream is first read or written,
//! so the task that accepts connections never waits for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use metrics::counter;
use rustls::{CertificateError, Error, InvalidMessage, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::{HANDSHAKE_FAILURES, PeerIdentity};
use crate::repeat::Repeats;

/// Maximum bytes of a connection that are encrypted and that the kernel has not accepted. The writer counts them as written,
/// so they must be few: one record.
const UNSENT_BYTES: usize = 16 << 10;

static FAILURES: Repeats = Repeats::new();

/// A server's side of a connection.
pub struct ServerStream<S> {
    /// What the connection is used for: a label of metrics and a field of log lines.
    usage: &'static str,
    /// Whether the client must negotiate one of the server's protocols.
    needs_protocol: bool,
    peer: Option<PeerIdentity>,
    state: State<S>,
}

enum State<S> {
    Plain(S),
    Handshake(Box<Accept<S>>),
    Open(Box<TlsStream<S>>),
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerStream<S> {
    /// Returns the server's side of an accepted connection. Without settings it is plain text.
    pub fn new(usage: &'static str, stream: S, tls: Option<Arc<ServerConfig>>) -> Self {
        let needs_protocol = tls.as_ref().is_some_and(|tls| !tls.alpn_protocols.is_empty());
        let state = match tls {
            None => State::Plain(stream),
            Some(tls) => State::Handshake(Box::new(
                TlsAcceptor::from(tls).accept_with(stream, |session| session.set_buffer_limit(Some(UNSENT_BYTES))),
            )),
        };
        ServerStream { usage, needs_protocol, peer: None, state }
    }

    /// Completes when the stream can be used. A failure is counted and logged here.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let accept = match &mut self.state {
            State::Plain(_) | State::Open(_) => return Poll::Ready(Ok(())),
            State::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            State::Handshake(accept) => accept,
        };
        let accepted = ready!(Pin::new(accept).poll(cx));
        match accepted.and_then(|stream| Ok((check(&stream, self.needs_protocol)?, stream))) {
            Ok((peer, stream)) => {
                self.peer = peer;
                self.state = State::Open(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.state = State::Failed;
                self.count_failure(&error);
                Poll::Ready(Err(error))
            }
        }
    }

    /// Returns the names in the client's certificate, if it has presented one and the handshake is over.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.peer.as_ref()
    }

    /// Reads bytes that are not decrypted, after the end of this side was sent.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            State::Open(stream) => Pin::new(stream.get_mut().0).poll_read(cx, buf),
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }

    fn count_failure(&self, error: &io::Error) {
        let (usage, cause) = (self.usage, handshake_failure(error));
        counter!(HANDSHAKE_FAILURES, "use" => usage, "cause" => cause).increment(1);
        // A load balancer checks a port by connecting to it and closing the connection.
        if cause == CLOSED {
            return;
        }
        if let Some(repeated) = FAILURES.occurred(cause) {
            tracing::info!(usage, cause, %error, repeated, "tls handshake failed");
        }
    }
}

/// Returns the names of the client. Rejects one that has negotiated no protocol: rustls rejects only a client that offers
/// others.
fn check<S>(stream: &TlsStream<S>, needs_protocol: bool) -> io::Result<Option<PeerIdentity>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let (_, session) = stream.get_ref();
    if needs_protocol && session.alpn_protocol().is_none() {
        return Err(invalid(Error::NoApplicationProtocol));
    }
    let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
    let peer = PeerIdentity::of(certificate).map_err(|_| invalid(CertificateError::BadEncoding.into()))?;
    Ok(Some(peer))
}

/// The cause of a handshake whose client closed the connection.
const CLOSED: &str = "closed";

/// Returns the cause of a failed handshake, as the metric names it.
pub fn handshake_failure(error: &io::Error) -> &'static str {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else { return CLOSED };
    match error {
        Error::NoCertificatesPresented => "no_client_certificate",
        Error::InvalidCertificate(_) => "bad_client_certificate",
        Error::AlertReceived(_) => "rejected_by_client",
        Error::NoApplicationProtocol => "no_http2",
        Error::PeerIncompatible(_) => "incompatible",
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "plaintext",
        _ => "protocol",
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ServerStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            State::Open(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ServerStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            State::Open(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            State::Open(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.state {
            State::Plain(stream) => stream.is_write_vectored(),
            _ => true,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_flush(cx),
            State::Open(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            State::Handshake(_) | State::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Closes this side. With TLS, the bytes that were written are sent first, so this waits for a client that does not read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            State::Handshake(_) | State::Failed => Poll::Ready(Ok(())),
        }
    }
}
