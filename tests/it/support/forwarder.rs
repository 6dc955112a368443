//! A connection between two processes that a test can close.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards connections until it is closed. Then they end, and new ones end immediately. Runs as long as the test's
/// runtime.
pub(crate) struct Forwarder(watch::Sender<bool>);

impl Forwarder {
    pub(crate) fn new(front: SocketAddr, behind: SocketAddr) -> Forwarder {
        let (is_closed, closed) = watch::channel(false);
        tokio::spawn(async move {
            let listener = TcpListener::bind(front).await.unwrap();
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let mut closed = closed.clone();
                tokio::spawn(async move {
                    let forward = async {
                        let mut to = TcpStream::connect(behind).await?;
                        copy_bidirectional(&mut from, &mut to).await
                    };
                    tokio::select! {
                        biased;
                        _ = closed.wait_for(|closed| *closed) => {}
                        _ = forward => {}
                    }
                });
            }
        });
        Forwarder(is_closed)
    }

    /// Closes all connections, and new ones immediately.
    pub(crate) fn close(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn reopen(&self) {
        self.0.send_replace(false);
    }
}
