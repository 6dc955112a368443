//! Lets responses that are ready together leave in one write. Delivery reports arrive together and wake many calls. The
//! first of them wakes the connection, which would write its response before the others have theirs: a system call, and
//! mostly a packet, for each. So a connection that wants to write first lets the tasks run that are ready.

use std::io::IoSlice;
use std::task::{Context, Poll};

/// With this many bytes there is no reason to wait for more: HTTP/2's own buffer is not much larger.
const ENOUGH: usize = 8 << 10;

/// Whether the tasks that were ready have run since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    is_over: bool,
}

impl Gathering {
    /// Completes when these bytes may be written: immediately, or when the tasks that were ready have run. HTTP/2 gives a
    /// second slice if it cannot add anything to its buffer.
    pub(crate) fn poll_write(&mut self, bufs: &[IoSlice<'_>], cx: &mut Context<'_>) -> Poll<()> {
        let is_full = bufs.len() > 1 || bufs.iter().map(|buf| buf.len()).sum::<usize>() >= ENOUGH;
        if is_full || std::mem::replace(&mut self.is_over, true) {
            return Poll::Ready(());
        }
        // A task that wakes itself is queued behind those that are ready.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Starts to gather for the next write. HTTP/2 flushes when its buffer is written.
    pub(crate) fn flushed(&mut self) {
        self.is_over = false;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    async fn ready(gathering: &mut Gathering, bufs: &[&[u8]]) {
        let bufs: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        std::future::poll_fn(|cx| gathering.poll_write(&bufs, cx)).await;
    }

    #[tokio::test]
    async fn ready_tasks_run_once_before_each_flush() {
        let mut gathering = Gathering::default();
        for _ in 0..3 {
            let other = tokio::spawn(async {});
            assert!(!other.is_finished());
            let turn = tokio::time::timeout(Duration::from_secs(30), ready(&mut gathering, &[b"small"])).await;
            turn.expect("the task wakes itself");
            assert!(other.is_finished(), "it was ready before the write");
            assert_eq!(ready(&mut gathering, &[b"rest"]).now_or_never(), Some(()), "the same flush continues");
            gathering.flushed();
        }
    }

    #[test]
    fn full_buffer_is_written_immediately() {
        for full in [&[&[7; ENOUGH][..]][..], &[b"head", b"data"]] {
            assert_eq!(ready(&mut Gathering::default(), full).now_or_never(), Some(()));
        }
    }
}
