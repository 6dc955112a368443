//! Writes log lines in a thread of its own, so that a standard error that is closed, full or not read blocks no other thread.
//! Lines wait in a bounded queue. A line that does not fit, or cannot be written, is dropped and counted (ADR 30).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum bytes of lines that wait to be written. At the usual 300 bytes a line it holds more than 10,000 lines.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Maximum bytes in the queue up to which a line of the audit log is queued. Callers cause these lines, and must not be able
/// to displace the others.
const MAX_QUEUED_BY_CALLERS: usize = MAX_QUEUED_BYTES / 2;

/// The wait before the next attempt to write to a full descriptor that is in non-blocking mode.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The queue's producer side. Clones share the queue.
#[derive(Clone)]
pub(crate) struct LineWriter {
    shared: Arc<Shared>,
    /// Maximum bytes in the queue, including the line.
    max_bytes: usize,
    /// The lines of this handle and its clones that were dropped.
    dropped: Arc<AtomicU64>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Notified when a line was queued.
    queued: Condvar,
    /// Notified when all lines were written.
    idle: Condvar,
    /// The dropped lines of all handles.
    dropped: AtomicU64,
}

struct QueuedLine {
    text: Vec<u8>,
    dropped: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<QueuedLine>,
    bytes: usize,
    /// Whether the thread has removed a line and not written it yet.
    writing: bool,
}

impl LineWriter {
    /// Starts the thread that writes to `sink`. `notice` returns the line that is written after `n` lines were dropped.
    pub(crate) fn start(
        sink: impl Write + Send + 'static,
        notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            queued: Condvar::new(),
            idle: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let for_thread = shared.clone();
        std::thread::Builder::new().name("logs".into()).spawn(move || for_thread.run(sink, notice))?;
        Ok(LineWriter { shared, max_bytes: MAX_QUEUED_BYTES, dropped: Arc::default() })
    }

    /// Returns a handle for lines that callers cause. It uses half of the queue at most, and counts its drops separately.
    pub(crate) fn for_callers(&self) -> Self {
        LineWriter { shared: self.shared.clone(), max_bytes: MAX_QUEUED_BY_CALLERS, dropped: Arc::default() }
    }

    /// Queues a line, which ends with a line end, or drops it if the queue is full. Never blocks on the sink.
    pub(crate) fn push(&self, line: Vec<u8>) {
        let mut queue = self.shared.lock();
        if queue.bytes + line.len() > self.max_bytes {
            self.shared.count_drop(&self.dropped);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(QueuedLine { text: line, dropped: self.dropped.clone() });
        self.shared.queued.notify_one();
    }

    /// Waits until all queued lines are written, for up to `timeout`.
    pub(crate) fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut queue = self.shared.lock();
        while queue.writing || !queue.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (queue, _) = self.shared.idle.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns the number of lines of this handle that were dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_drop(&self, of_handle: &AtomicU64) {
        of_handle.fetch_add(1, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn run(&self, mut sink: impl Write, notice: impl Fn(u64) -> Vec<u8>) {
        let mut reported = 0;
        // Whether the last line was written in part: the next line must not continue it.
        let mut cut = false;
        loop {
            let line = self.next();
            let failed = self.write(&mut sink, &line.text, &mut cut).is_err();
            if failed {
                self.count_drop(&line.dropped);
                continue;
            }
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > reported && self.write(&mut sink, &notice(dropped - reported), &mut cut).is_ok() {
                reported = dropped;
            }
        }
    }

    /// Waits for the next line. The call also says that the previous line is written or dropped.
    fn next(&self) -> QueuedLine {
        let mut queue = self.lock();
        queue.writing = false;
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.text.len();
                queue.writing = true;
                return line;
            }
            self.idle.notify_all();
            queue = self.queued.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&self, sink: &mut impl Write, line: &[u8], cut: &mut bool) -> io::Result<()> {
        if *cut {
            write_all(sink, b"\n", &mut false)?;
            *cut = false;
        }
        write_all(sink, line, cut)
    }
}

/// Writes all bytes. After an error, `cut` says whether a part was written.
fn write_all(sink: &mut impl Write, mut bytes: &[u8], cut: &mut bool) -> io::Result<()> {
    let whole = bytes.len();
    while !bytes.is_empty() {
        let error = match sink.write(bytes) {
            Ok(0) => ErrorKind::WriteZero.into(),
            Ok(written) => {
                bytes = &bytes[written..];
                continue;
            }
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Interrupted => {}
            // Another process that shares the terminal or pipe may have set it to non-blocking mode.
            ErrorKind::WouldBlock => std::thread::sleep(RETRY_INTERVAL),
            _ => {
                *cut = bytes.len() < whole;
                return Err(error);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// Returns the next of these results, and keeps the written bytes.
    struct Sink {
        results: Receiver<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.results.recv().map_err(|_| ErrorKind::BrokenPipe)??.min(bytes.len());
            self.written.lock().expect("no holder of the lock panics").extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (LineWriter, Sender<io::Result<usize>>, impl Fn() -> String) {
        let (results, received) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink { results: received, written: written.clone() };
        let writer = LineWriter::start(sink, |n| format!("{n} dropped\n").into_bytes()).expect("the thread starts");
        let text = move || {
            let written = written.lock().expect("no holder of the lock panics");
            String::from_utf8_lossy(&written).into_owned()
        };
        (writer, results, text)
    }

    #[test]
    fn failed_line_is_counted_and_reported_at_recovery() {
        let (writer, results, written) = start();
        for line in ["one\n", "two\n", "three\n"] {
            writer.push(line.into());
        }
        let full = || io::Error::from(ErrorKind::StorageFull);
        for result in [Ok(2), Err(full()), Err(full()), Err(ErrorKind::Interrupted.into()), Ok(1), Ok(9), Ok(99)] {
            results.send(result).expect("the thread reads it");
        }
        writer.flush(TIMEOUT);
        assert_eq!((written().as_str(), writer.dropped()), ("on\nthree\n2 dropped\n", 2));
    }

    #[test]
    fn lines_of_callers_leave_half_of_the_queue_to_others() {
        let (writer, results, written) = start();
        let callers = writer.for_callers();
        for _ in 0..20 {
            callers.push([vec![b'c'; 1 << 19], b"\n".to_vec()].concat());
        }
        // The thread may have removed one line from the queue, and waits for the sink.
        let dropped = callers.dropped();
        assert!((16..=17).contains(&dropped), "{dropped}");
        writer.push(b"one\n".to_vec());
        assert_eq!((writer.dropped(), callers.dropped()), (0, dropped));
        for _ in 0..7 {
            results.send(Ok(usize::MAX)).expect("the thread reads it");
        }
        writer.flush(TIMEOUT);
        assert!(written().contains("one\n"), "the other line is written");
        assert!(written().contains(&format!("{dropped} dropped")), "the drops are reported");
    }

    #[test]
    fn full_queue_drops_and_flush_returns_in_time() {
        let (writer, results, written) = start();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            writer.push(line.clone());
        }
        // The thread may have removed one line from the queue, and waits for the sink.
        assert!((15..=16).contains(&writer.dropped()), "{}", writer.dropped());
        writer.flush(Duration::from_millis(10));
        assert_eq!(written(), "");
        for _ in 0..6 {
            results.send(Ok(usize::MAX)).expect("the thread reads it");
        }
        writer.flush(TIMEOUT);
        assert!(written().ends_with(" dropped\n") || written().contains(" dropped\nx"), "the drops are reported");
    }
}
