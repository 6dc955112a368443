//! Accepts connections, up to a maximum, and notifies their streams when they have to end.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use metrics::counter;
use msg_common::accept;
use msg_common::reload::Reloaded;
use msg_common::tls::{PeerIdentity, ServerConfig, ServerStream};
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::auth::record_handshake;
use crate::budget::{Budget, Permit};
use crate::gather::Gathering;
use crate::metrics::HANDSHAKE_TIMEOUTS;
use crate::response_permit::disconnect_slow_reader;
use crate::unread::{ReadTimer, Unread};

/// The bytes that HTTP/2 starts with: the preface, and the head of a SETTINGS frame.
const HANDSHAKE_BYTES: usize = 24 + 9;

/// When the streams of a connection have to end, and who has opened it. It is in the extensions of every call, so a clone
/// must be cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lifetime {
    connection: Arc<Shared>,
    until: Option<Instant>,
    /// Cancelled when the key of the caller's token is withdrawn.
    withdrawn: Option<CancellationToken>,
}

/// The part of a lifetime that all calls of a connection share. A clone of a [`CancellationToken`], and its drop, would lock
/// what all connections share.
#[derive(Debug, Default)]
struct Shared {
    drain: CancellationToken,
    cut: CancellationToken,
    unread: Option<Arc<Unread>>,
    /// Set at the end of the TLS handshake, before the first call.
    peer: OnceLock<PeerIdentity>,
    address: Option<IpAddr>,
    /// A number that no other connection of this process has.
    number: u64,
}

impl Lifetime {
    /// Ends the streams at the drain, or some time after the connection has reached its age: callers open new
    /// connections only after that. The time is random, so that callers that connected together do not reconnect
    /// together.
    pub(crate) fn new(
        drain: CancellationToken,
        age: Option<Age>,
        timer: &Arc<ReadTimer>,
        address: Option<IpAddr>,
    ) -> Self {
        let part = rand::rng().random_range(0.1..0.5);
        let until = age.map(|age| Instant::now() + age.max + age.grace.mul_f64(part));
        let cut = CancellationToken::new();
        let unread = Some(timer.connection(cut.clone()));
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let connection = Shared { drain, cut, unread, peer: OnceLock::new(), address, number };
        Lifetime { connection: Arc::new(connection), until, withdrawn: None }
    }

    /// Returns the number of the connection, which is never reused.
    pub(crate) fn number(&self) -> u64 {
        self.connection.number
    }

    /// Returns the names in the caller's certificate, if it had to present one.
    pub(crate) fn peer(&self) -> Option<&PeerIdentity> {
        self.connection.peer.get()
    }

    /// Returns the address that the connection comes from.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.connection.address
    }

    /// Ends the streams of one call at this time, if that is earlier.
    pub(crate) fn not_after(self, end: Option<Instant>) -> Self {
        Lifetime { until: self.until.into_iter().chain(end).min(), ..self }
    }

    /// Ends the streams of one call when this is cancelled.
    pub(crate) fn unless_withdrawn(self, withdrawn: Option<&CancellationToken>) -> Self {
        Lifetime { withdrawn: withdrawn.cloned(), ..self }
    }

    /// Makes a lifetime without an end, of a connection whose caller has presented a certificate with these names.
    #[cfg(test)]
    pub(crate) fn of_peer(peer: PeerIdentity) -> Self {
        let connection = Shared { peer: OnceLock::from(peer), ..Shared::default() };
        Lifetime { connection: Arc::new(connection), ..Lifetime::default() }
    }

    /// Returns the counter of unread responses, which only a real connection has.
    pub(crate) fn unread(&self) -> Option<Arc<Unread>> {
        self.connection.unread.clone()
    }

    /// Closes the connection of a caller that does not read its responses.
    pub(crate) fn disconnect_slow_reader(&self) {
        disconnect_slow_reader(&self.connection.cut);
    }

    /// Closes the connection immediately, with all its streams. A response that its caller does not read cannot end in
    /// another way: its body is not polled while there is no window for it.
    pub(crate) fn cut(&self) {
        self.connection.cut.cancel();
    }

    /// Completes when the connection has to be closed: at the end of its grace at the latest. tonic's own grace would
    /// close it without notifying the caller first.
    async fn until_cut(self, age: Option<Age>) {
        if let Some(age) = age {
            let _ = tokio::time::timeout(age.max + age.grace, self.connection.cut.cancelled()).await;
            self.cut();
        }
        self.connection.cut.cancelled().await;
    }

    /// Completes when streams have to end.
    pub(crate) async fn ending(&self) {
        let withdrawn = async {
            match &self.withdrawn {
                Some(withdrawn) => withdrawn.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            tokio::select! {
                () = self.connection.drain.cancelled() => {}
                () = withdrawn => {}
            }
        };
        match self.until {
            None => ended.await,
            Some(until) => {
                let _ = tokio::time::timeout_at(until.into(), ended).await;
            }
        }
    }
}

/// How long the caller has to close its side of a connection after the gateway has closed its own.
const LINGER: Duration = Duration::from_secs(1);

/// The maximum age of a connection. At `max` the server notifies its caller to start no further call on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    pub(crate) max: Duration,
    /// How long open calls may continue after that.
    pub(crate) grace: Duration,
}

/// What every accepted connection gets.
pub(crate) struct Incoming {
    pub(crate) budget: Arc<Budget>,
    /// The settings of TLS. Without them, connections are plain text.
    pub(crate) tls: Option<Reloaded<ServerConfig>>,
    pub(crate) age: Option<Age>,
    /// The time from the accept until the caller has sent the start of HTTP/2. It includes the TLS handshake.
    pub(crate) handshake_timeout: Duration,
    pub(crate) drain: CancellationToken,
    pub(crate) timer: Arc<ReadTimer>,
}

/// Accepts the connections of `listener` within the budget. One above it is closed immediately, so that its caller can
/// connect elsewhere. Otherwise it would wait in the kernel's queue.
pub(crate) fn connections(listener: TcpListener, incoming: Incoming) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, incoming), async |(listener, incoming)| {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    accept::failed(&error, "grpc").await;
                    continue;
                }
            };
            let Ok(permit) = incoming.budget.try_acquire(1) else { continue };
            // Responses are small, and callers wait for each of them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            return Some((Ok(Connection::new(stream, &incoming, permit)), (listener, incoming)));
        }
    })
}

/// What a new connection has to do within the timeout: the TLS handshake, and the start of HTTP/2. After that, keepalive
/// detects a dead peer.
struct Handshake {
    bytes_left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Handshake {
    fn new(within: Duration) -> Self {
        Handshake { bytes_left: HANDSHAKE_BYTES, deadline: Box::pin(tokio::time::sleep(within)) }
    }
}

/// An accepted connection, which owns its permit.
pub(crate) struct Connection {
    stream: ServerStream<TcpStream>,
    lifetime: Lifetime,
    handshake: Option<Handshake>,
    gathering: Gathering,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Set when the gateway closes its side.
    end: Option<End>,
    _permit: Permit,
}

/// The end of a connection.
struct End {
    /// Whether the gateway's side is closed.
    closed: bool,
    linger: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, incoming: &Incoming, permit: Permit) -> Self {
        let address = stream.peer_addr().ok().map(|address| address.ip());
        let lifetime = Lifetime::new(incoming.drain.clone(), incoming.age, &incoming.timer, address);
        let tls = incoming.tls.as_ref().map(Reloaded::current);
        let cut = Box::pin(lifetime.clone().until_cut(incoming.age));
        let handshake = Some(Handshake::new(incoming.handshake_timeout));
        Connection {
            stream: ServerStream::new("grpc", stream, tls),
            lifetime,
            handshake,
            gathering: Gathering::default(),
            cut,
            end: None,
            _permit: permit,
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.lifetime.connection.cut.is_cancelled() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Completes when the TLS handshake is over. Fails if the connection is closed or its handshake timed out.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        // A connection is always waiting to read, so this also wakes one that waits to write.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let Some(handshake) = &mut self.handshake else { return Poll::Ready(Ok(())) };
        if handshake.deadline.as_mut().poll(cx).is_ready() {
            counter!(HANDSHAKE_TIMEOUTS).increment(1);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(self.stream.poll_handshake(cx)).inspect_err(|error| record_handshake(self.lifetime.address(), error))?;
        if let Some(peer) = self.stream.peer() {
            self.lifetime.connection.peer.get_or_init(|| peer.clone());
        }
        Poll::Ready(Ok(()))
    }

    /// HTTP/2 writes its settings before it reads, so this drives the TLS handshake too.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.handshake.is_some() { self.poll_open(cx) } else { Poll::Ready(self.check()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Lifetime;

    fn connect_info(&self) -> Lifetime {
        self.lifetime.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(handshake) = &mut self.handshake {
            handshake.bytes_left = handshake.bytes_left.saturating_sub(buf.filled().len() - before);
            if handshake.bytes_left == 0 {
                self.handshake = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_writable(cx))?;
        ready!(self.gathering.poll_write(&[io::IoSlice::new(buf)], cx));
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_writable(cx))?;
        ready!(self.gathering.poll_write(bufs, cx));
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.handshake.is_some() {
            ready!(self.poll_open(cx))?;
        }
        self.gathering.flushed();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes the gateway's side, and then waits until the caller has closed its own. A socket that is closed with unread
    /// bytes is reset, and a reset discards what the caller has not read yet: the last results of a stream, and why it ended.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Connection { stream, end, .. } = &mut *self;
        let end = end.get_or_insert_with(|| End { closed: false, linger: Box::pin(tokio::time::sleep(LINGER)) });
        let mut unread = [0; 4096];
        while end.linger.as_mut().poll(cx).is_pending() {
            if !end.closed {
                // Over TLS, this waits until the caller has read what is encrypted already.
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                end.closed = true;
            }
            let mut unread = ReadBuf::new(&mut unread);
            let read = ready!(stream.poll_discard(cx, &mut unread));
            if read.is_err() || unread.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
