//! A way between two processes that a test can cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on until it is cut: then they end, and new ones end at once. Lives as long as the test's runtime.
pub(crate) struct Forwarder(watch::Sender<bool>);

impl Forwarder {
    /// From `front` to `behind`.
    pub(crate) fn new(front: SocketAddr, behind: SocketAddr) -> Forwarder {
        let (is_cut, cut) = watch::channel(false);
        tokio::spawn(async move {
            let listener = TcpListener::bind(front).await.unwrap();
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let mut cut = cut.clone();
                tokio::spawn(async move {
                    let pass = async {
                        let mut to = TcpStream::connect(behind).await?;
                        copy_bidirectional(&mut from, &mut to).await
                    };
                    tokio::select! {
                        biased;
                        _ = cut.wait_for(|cut| *cut) => {}
                        _ = pass => {}
                    }
                });
            }
        });
        Forwarder(is_cut)
    }

    /// Ends all connections, and new ones at once.
    pub(crate) fn cut(&self) {
        self.0.send_replace(true);
    }

    /// Passes new connections on again.
    pub(crate) fn mend(&self) {
        self.0.send_replace(false);
    }
}
