//! Opens a connection's socket, and notices when the server at its other end has stopped answering.

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

/// A server that has sent nothing for this long, although it was asked something, is pinged.
const SILENCE: Duration = Duration::from_secs(3);

/// The request that every server answers with one byte before anything else: whether it can do TLS.
const PING: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Address {
    /// Opens a socket. The caller sets the deadline.
    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let address = match self {
            Address::Tcp(address) => address,
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // A peer that vanished: its address may simply stop answering after a failover.
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

    /// Whether the server answers a new connection. A frozen one does not, although its kernel accepts the connection.
    async fn answers(&self, limit: Duration) -> bool {
        let ask = async {
            let mut stream = self.open().await?;
            stream.write_all(&PING).await?;
            stream.read_u8().await
        };
        matches!(tokio::time::timeout(limit, ask).await, Ok(Ok(_)))
    }
}

/// A connection's socket. It counts what the server was asked and what it has answered.
pub(super) struct Socket {
    stream: Box<dyn Stream>,
    activity: Activity,
}

/// What a connection waits for. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Counting starts after the login, whose first message has another form.
    logged_in: bool,
    sent: Frames,
    received: Frames,
    /// Requests that the server has not answered completely.
    open: usize,
    /// Whether everything that came was taken. An answer that nobody takes is not the server's silence.
    starved: bool,
    /// The last sign of life, or when the oldest open request was sent.
    since: Instant,
}

impl Socket {
    /// Opens it. The caller sets the deadline.
    pub(super) async fn open(address: &Address) -> io::Result<(Socket, Activity)> {
        let stream = address.open().await?;
        let (sent, received) = (Frames::default(), Frames::default());
        let state = State { logged_in: false, sent, received, open: 0, starved: false, since: Instant::now() };
        let activity = Activity(Arc::new(Mutex::new(state)));
        Ok((Socket { stream, activity: activity.clone() }, activity))
    }
}

impl Activity {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts counting.
    pub(super) fn logged_in(&self) {
        self.lock().logged_in = true;
    }

    /// How long the server has owed an answer and sent nothing.
    fn silence(&self) -> Option<Duration> {
        let state = self.lock();
        (state.open > 0 && state.starved).then(|| state.since.elapsed())
    }

    /// Returns, with the reason, once the server does not answer: neither this connection nor a new one; or not within
    /// `patience`, where there is one. Each ping takes at most `limit`.
    pub(super) async fn until_gone(&self, address: &Address, limit: Duration, patience: Option<Duration>) -> String {
        loop {
            let silence = self.silence().unwrap_or_default();
            if silence < SILENCE {
                tokio::time::sleep(SILENCE - silence).await;
                continue;
            }
            if patience.is_some_and(|patience| silence > patience) {
                return format!("{address} has not answered a statement for {silence:.1?}");
            }
            if !address.answers(limit).await && self.silence().is_some_and(|silence| silence >= SILENCE) {
                return format!("{address} answers neither a statement nor a new connection");
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
        // Query and Sync: the server ends the answer to each with ReadyForQuery.
        let asked = self.sent.count(bytes, |kind| matches!(kind, b'Q' | b'S'));
        if self.open == 0 && asked > 0 {
            self.since = Instant::now();
        }
        self.open += asked;
    }

    fn read(&mut self, bytes: &[u8]) {
        if !self.logged_in || bytes.is_empty() {
            return;
        }
        self.since = Instant::now();
        let answered = self.received.count(bytes, |kind| kind == b'Z');
        self.open = self.open.saturating_sub(answered);
    }
}

/// Finds the messages in one direction of the protocol: a byte for the kind, four for the length with themselves, the body.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 5],
    /// Bytes of the header that are there.
    filled: usize,
    /// Bytes of the body that are still to come.
    body: usize,
}

impl Frames {
    /// How many messages of a kind begin in these bytes.
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
    fn messages_are_counted_wherever_they_are_cut() {
        // Two rows and two ends, with a body that looks like another end.
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
    fn each_request_waits_for_its_own_answer() {
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
        assert!(activity.silence().is_some(), "the second has no answer");
        activity.lock().read(&[b'Z', 0, 0, 0, 5, b'I']);
        assert!(activity.silence().is_none());
    }
}
