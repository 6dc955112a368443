//! Opens the socket of a connection, and detects when its server stalls.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::error::HostError;
use super::tls::Tls;

/// A server that has an open request and has sent nothing for this long is pinged.
const SILENCE: Duration = Duration::from_secs(3);

/// The request for TLS. Every server responds to it with one byte, before the login, so it serves as a ping too.
pub(super) const REQUEST_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp {
        address: SocketAddr,
        /// The name that the server's certificate must have.
        host: String,
    },
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { address, .. } => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A connection to an address, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Returns what binds a login to this connection.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl Address {
    /// Opens a connection without TLS. The caller sets the deadline.
    pub(super) async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let address = match self {
            Address::Tcp { address, .. } => address,
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // After a failover, the address of the old server may just stop responding. Keepalives detect that.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
        Ok(Box::new(stream))
    }

    /// Encrypts a connection to this address, unless the URL says otherwise. The caller sets the deadline.
    pub(super) async fn encrypt(
        &self,
        stream: Box<dyn Stream>,
        tls: Option<&Tls>,
    ) -> Result<Box<dyn Stream>, HostError> {
        match (self, tls) {
            (Address::Tcp { host, .. }, Some(tls)) => tls.encrypt(host, stream).await,
            // As with libpq: the kernel connects the two processes, so nothing can be in between.
            (Address::Unix(_), _) | (_, None) => Ok(stream),
        }
    }

    /// Returns whether the server responds on a new connection. A frozen server does not, although its kernel accepts the
    /// connection.
    async fn responds(&self, limit: Duration) -> bool {
        let ping = async {
            let mut stream = self.open().await?;
            stream.write_all(&REQUEST_TLS).await?;
            stream.read_u8().await
        };
        matches!(tokio::time::timeout(limit, ping).await, Ok(Ok(_)))
    }
}

/// The socket of a connection. It counts the requests and the responses, above TLS, where they can be read.
pub(super) struct Socket {
    stream: Box<dyn Stream>,
    activity: Activity,
}

/// The open requests of a connection. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Counting starts after the login, whose first message has another form.
    logged_in: bool,
    sent: Frames,
    received: Frames,
    /// The number of requests without a complete response.
    open: usize,
    /// Whether the connection's task has read all bytes that arrived. If it has not, the server is not silent.
    starved: bool,
    /// When the server last sent bytes, or when the oldest open request was sent.
    since: Instant,
}

impl Socket {
    pub(super) fn new(stream: Box<dyn Stream>) -> (Socket, Activity) {
        let (sent, received) = (Frames::default(), Frames::default());
        let state = State { logged_in: false, sent, received, open: 0, starved: false, since: Instant::now() };
        let activity = Activity(Arc::new(Mutex::new(state)));
        (Socket { stream, activity: activity.clone() }, activity)
    }
}

impl Activity {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to count requests and responses.
    pub(super) fn logged_in(&self) {
        self.lock().logged_in = true;
    }

    /// Returns for how long the server has sent nothing although a request is open.
    fn silence(&self) -> Option<Duration> {
        let state = self.lock();
        (state.open > 0 && state.starved).then(|| state.since.elapsed())
    }

    /// Waits until the server stalls, and returns the reason: it responds neither to a request nor on a new connection, or a
    /// request has no response within `stall_timeout`. Each ping has the timeout `limit`.
    pub(super) async fn until_stalled(
        &self,
        address: &Address,
        limit: Duration,
        stall_timeout: Option<Duration>,
    ) -> String {
        loop {
            let silence = self.silence().unwrap_or_default();
            if silence < SILENCE {
                tokio::time::sleep(SILENCE - silence).await;
                continue;
            }
            if stall_timeout.is_some_and(|timeout| silence > timeout) {
                return format!("{address} has not responded to a statement for {silence:.1?}");
            }
            if !address.responds(limit).await && self.silence().is_some_and(|silence| silence >= SILENCE) {
                return format!("{address} responds neither to a statement nor on a new connection");
            }
            tokio::time::sleep(SILENCE).await;
        }
    }
}

impl State {
    fn written(&mut self, bytes: &[u8]) {
        if !self.logged_in {
            return;
        }
        // Query and Sync: the server ends the response to each with ReadyForQuery.
        let requests = self.sent.count(bytes, |kind| matches!(kind, b'Q' | b'S'));
        if self.open == 0 && requests > 0 {
            self.since = Instant::now();
        }
        self.open += requests;
    }

    fn read(&mut self, bytes: &[u8]) {
        if !self.logged_in || bytes.is_empty() {
            return;
        }
        self.since = Instant::now();
        let responses = self.received.count(bytes, |kind| kind == b'Z');
        self.open = self.open.saturating_sub(responses);
    }
}

/// Finds the messages in one direction of the protocol. A message is one byte for the kind, four bytes for the length, which
/// includes these four, and the body.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 5],
    /// The number of bytes of the header so far.
    filled: usize,
    /// The number of bytes of the body that are missing.
    body: usize,
}

impl Frames {
    /// Counts the messages of a kind whose header ends in these bytes.
    fn count(&mut self, mut bytes: &[u8], of_kind: impl Fn(u8) -> bool) -> usize {
        let mut count = 0;
        while !bytes.is_empty() {
            if self.body > 0 {
                let skipped = self.body.min(bytes.len());
                self.body -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let part = (self.header.len() - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + part].copy_from_slice(&bytes[..part]);
            self.filled += part;
            bytes = &bytes[part..];
            if self.filled == self.header.len() {
                let [kind, length @ ..] = self.header;
                self.filled = 0;
                self.body = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                count += usize::from(of_kind(kind));
            }
        }
        count
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let mut state = self.activity.lock();
        state.starved = polled.is_pending();
        state.read(&buf.filled()[before..]);
        drop(state);
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            self.activity.lock().written(&buf[..written]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_reads_split_them() {
        // Two ReadyForQuery messages after other messages, with a body that looks like a third one.
        let mut bytes = vec![b'D', 0, 0, 0, 10, b'Z', 0, 0, 0, 5, b'I'];
        bytes.extend([b'Z', 0, 0, 0, 5, b'I', b'C', 0, 0, 0, 4, b'Z', 0, 0, 0, 5, b'T']);
        for cut in 0..bytes.len() {
            let mut frames = Frames::default();
            let (first, second) = bytes.split_at(cut);
            let of_kind = |kind| kind == b'Z';
            assert_eq!(frames.count(first, of_kind) + frames.count(second, of_kind), 2, "cut at {cut}");
        }
    }

    #[test]
    fn each_request_waits_for_its_own_response() {
        let state = State {
            logged_in: true,
            sent: Frames::default(),
            received: Frames::default(),
            open: 0,
            starved: true,
            since: Instant::now(),
        };
        let activity = Activity(Arc::new(Mutex::new(state)));
        let sync = [b'S', 0, 0, 0, 4];
        activity.lock().written(&[sync, sync].concat());
        activity.lock().read(&[b'Z', 0, 0, 0, 5, b'I']);
        assert!(activity.silence().is_some(), "the second request has no response");
        activity.lock().read(&[b'Z', 0, 0, 0, 5, b'I']);
        assert!(activity.silence().is_none());
    }
}
