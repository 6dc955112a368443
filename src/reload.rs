//! Owns values that are built from files, such as certificates. Reads the files regularly and at SIGHUP, and replaces a value
//! when the content of its files has changed (ADR 40).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, describe_counter};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::error::chain;

/// The interval between two reads. With the confirmation, new content is in force after 25 s at most, and the limit that the
/// docs give is 60 s.
const POLL: Duration = Duration::from_secs(20);
/// The time until changed content is read for the second time.
const CONFIRM: Duration = Duration::from_secs(5);
const _: () = assert!(POLL.as_secs() + 2 * CONFIRM.as_secs() < 60);

/// Changes of files, by `use` and `outcome`.
const FILE_RELOADS: &str = "msg_file_reloads_total";

/// The files of a value, and how the value is built from them.
pub trait Source: Send + Sync + 'static {
    /// The value.
    type Value: Send + Sync + 'static;
    /// Why there is no value.
    type Error: Error + Send + Sync + 'static;

    /// Reads everything that the value is built from. It may block.
    fn read(&self) -> Result<Contents, Self::Error>;

    /// Checks the contents and builds the value, which is in force when this returns.
    fn build(&self, contents: &Contents) -> Result<Self::Value, Self::Error>;
}

/// The contents of all files of a value, in the order of the source.
pub type Contents = Vec<Vec<u8>>;

/// A value that a [`Reloader`] replaces. Clones share it.
#[derive(Clone, Debug)]
pub struct Reloaded<T>(watch::Receiver<Arc<T>>);

impl<T> Reloaded<T> {
    /// Returns the value that is in force now.
    pub fn current(&self) -> Arc<T> {
        self.0.borrow().clone()
    }

    /// Completes when the value was replaced since this handle was created or this method last completed. It never completes
    /// after the reloader has ended.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Replaces one value when its files change.
pub struct Reloader<S: Source> {
    /// What the value is used for: a label of metrics and a field of log lines.
    usage: &'static str,
    source: S,
    current: watch::Sender<Arc<S::Value>>,
    content: ContentState,
}

impl<S: Source> Reloader<S> {
    /// Reads the files and builds the first value.
    pub fn load(usage: &'static str, source: S) -> Result<Self, S::Error> {
        let contents = source.read()?;
        let value = source.build(&contents)?;
        let content = ContentState::new(Fingerprint::of(&Ok::<_, S::Error>(contents)));
        for outcome in ["applied", "rejected"] {
            counter!(FILE_RELOADS, "use" => usage, "outcome" => outcome).increment(0);
        }
        Ok(Reloader { usage, source, current: watch::Sender::new(Arc::new(value)), content })
    }

    /// Returns a handle to the value.
    pub fn value(&self) -> Reloaded<S::Value> {
        Reloaded(self.current.subscribe())
    }

    /// Follows the files until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut hangups = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, usage = self.usage, "cannot receive SIGHUP"))
            .ok();
        let requested = Notify::new();
        let requests = async {
            loop {
                next(&mut hangups).await;
                requested.notify_one();
            }
        };
        tokio::select! {
            () = self.follow(&requested, stop) => {}
            () = requests => {}
        }
    }

    /// Follows the files until `stop`, and reads them immediately when that is `requested`.
    async fn follow(mut self, requested: &Notify, stop: CancellationToken) {
        let mut wait = POLL;
        loop {
            let requested = tokio::select! {
                () = stop.cancelled() => return,
                () = requested.notified() => true,
                () = tokio::time::sleep(wait) => false,
            };
            // The file system may not respond, and its thread must not be a worker of the runtime.
            let polled = tokio::task::spawn_blocking(move || {
                let step = self.poll();
                // The operator says that the files are complete: read them for the second time immediately.
                let step = if requested && step == Step::Confirm { self.poll() } else { step };
                (self, step)
            });
            let step;
            (self, step) = tokio::select! {
                () = stop.cancelled() => return,
                Ok(polled) = polled => polled,
                else => return,
            };
            wait = if step == Step::Confirm { CONFIRM } else { POLL };
        }
    }

    /// Reads the files once, and replaces the value if their new content is confirmed.
    fn poll(&mut self) -> Step {
        let read = self.source.read();
        let found = Fingerprint::of(&read);
        let step = self.content.found(found);
        if step != Step::Apply {
            return step;
        }
        let usage = self.usage;
        match read.and_then(|contents| self.source.build(&contents)) {
            Ok(value) => {
                self.content.applied(found);
                counter!(FILE_RELOADS, "use" => usage, "outcome" => "applied").increment(1);
                self.current.send_replace(Arc::new(value));
                tracing::info!(usage, "applied changed files");
            }
            Err(error) => {
                self.content.rejected(found);
                counter!(FILE_RELOADS, "use" => usage, "outcome" => "rejected").increment(1);
                tracing::warn!(usage, error = chain(&error), "rejected changed files, using the previous ones");
            }
        }
        step
    }
}

async fn next(signals: &mut Option<Signal>) {
    match signals {
        Some(signals) => {
            signals.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The SHA-256 of what was read: of all files, or of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of<E: Error + 'static>(read: &Result<Contents, E>) -> Self {
        let mut hash = Sha256::new();
        match read {
            Ok(contents) => {
                for content in contents {
                    hash.update((content.len() as u64).to_be_bytes());
                    hash.update(content);
                }
            }
            Err(error) => hash.update(chain(error)),
        }
        Fingerprint(hash.finalize().into())
    }
}

/// What to do after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The content is known.
    Keep,
    /// The content is new: read it again.
    Confirm,
    /// The same new content was read twice in a row.
    Apply,
}

/// The contents that were read so far. New content must be read twice in a row: Kubernetes replaces the files of a volume by
/// swapping a link, and other tools write one file after the other, so a single read may mix old and new files.
#[derive(Debug)]
struct ContentState {
    applied: Fingerprint,
    /// The content that could not be used. It is not used until it changes.
    rejected: Option<Fingerprint>,
    /// The content that was read once.
    candidate: Option<Fingerprint>,
}

impl ContentState {
    fn new(applied: Fingerprint) -> Self {
        ContentState { applied, rejected: None, candidate: None }
    }

    fn found(&mut self, found: Fingerprint) -> Step {
        if found == self.applied {
            // What was rejected is over: if it returns, it is a change that counts again.
            *self = ContentState::new(found);
            return Step::Keep;
        }
        let candidate = self.candidate.take();
        if self.rejected == Some(found) {
            return Step::Keep;
        }
        if candidate == Some(found) {
            return Step::Apply;
        }
        self.candidate = Some(found);
        Step::Confirm
    }

    fn applied(&mut self, found: Fingerprint) {
        *self = ContentState::new(found);
    }

    fn rejected(&mut self, found: Fingerprint) {
        self.rejected = Some(found);
    }
}

/// Describes the metrics of this module.
pub(crate) fn describe() {
    describe_counter!(
        FILE_RELOADS,
        "Changes of the files that a value is built from, by use and outcome; the previous content stays in use if the \
         changed one is rejected"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A number in a text, instead of files.
    struct Text(Arc<Mutex<Result<String, String>>>);

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct TextError(String);

    impl Source for Text {
        type Value = u32;
        type Error = TextError;

        fn read(&self) -> Result<Contents, TextError> {
            let text = self.0.lock().expect("no thread panicked").clone();
            text.map(|text| vec![text.into_bytes()]).map_err(TextError)
        }

        fn build(&self, contents: &Contents) -> Result<u32, TextError> {
            let text = String::from_utf8_lossy(&contents[0]).into_owned();
            text.parse().map_err(|_| TextError(format!("`{text}` is no number")))
        }
    }

    /// Returns a reloader of the value 1, and a function that changes its text.
    fn reloader() -> (Reloader<Text>, impl Fn(Result<&str, &str>)) {
        let text = Arc::new(Mutex::new(Ok("1".to_owned())));
        let reloader = Reloader::load("test", Text(text.clone())).expect("it is a number");
        let write = move |new: Result<&str, &str>| {
            *text.lock().expect("no thread panicked") = new.map(str::to_owned).map_err(str::to_owned);
        };
        (reloader, write)
    }

    #[test]
    fn new_content_is_applied_when_it_is_read_twice_in_a_row() {
        let (mut reloader, write) = reloader();
        let value = reloader.value();
        assert_eq!(reloader.poll(), Step::Keep);
        write(Ok("2"));
        assert_eq!((reloader.poll(), *value.current()), (Step::Confirm, 1));
        write(Ok("3"));
        assert_eq!((reloader.poll(), *value.current()), (Step::Confirm, 1), "it is other content");
        write(Ok("1"));
        assert_eq!(reloader.poll(), Step::Keep, "it is the old content");
        write(Ok("3"));
        assert_eq!((reloader.poll(), *value.current()), (Step::Confirm, 1), "the old content was read in between");
        assert_eq!((reloader.poll(), *value.current()), (Step::Apply, 3));
        assert_eq!(reloader.poll(), Step::Keep);
    }

    #[test]
    fn bad_content_keeps_the_value_and_is_tried_once() {
        let (mut reloader, write) = reloader();
        let value = reloader.value();
        for bad in [Ok("x"), Err("no such file")] {
            write(bad);
            assert_eq!([reloader.poll(), reloader.poll()], [Step::Confirm, Step::Apply]);
            assert_eq!([reloader.poll(), reloader.poll()], [Step::Keep, Step::Keep], "{bad:?} counts once");
            assert_eq!(*value.current(), 1);
        }
        write(Ok("1"));
        assert_eq!(reloader.poll(), Step::Keep);
        write(Err("no such file"));
        assert_eq!([reloader.poll(), reloader.poll()], [Step::Confirm, Step::Apply], "it is a new change");
        write(Ok("2"));
        assert_eq!([reloader.poll(), reloader.poll()], [Step::Confirm, Step::Apply]);
        assert_eq!(*value.current(), 2);
    }

    #[test]
    fn contents_of_several_files_do_not_run_together() {
        let of = |parts: &[&str]| {
            Fingerprint::of(&Ok::<_, TextError>(parts.iter().map(|part| part.as_bytes().to_vec()).collect()))
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
    }

    #[tokio::test]
    async fn new_content_is_in_force_immediately_when_requested() {
        let (reloader, write) = reloader();
        let mut value = reloader.value();
        let (stop, requested) = (CancellationToken::new(), Arc::new(Notify::new()));
        let following = tokio::spawn({
            let (stop, requested) = (stop.clone(), requested.clone());
            async move { reloader.follow(&requested, stop).await }
        });
        write(Ok("2"));
        requested.notify_one();
        tokio::time::timeout(CONFIRM, value.changed()).await.expect("it is applied before the next read");
        assert_eq!(*value.current(), 2);
        stop.cancel();
        following.await.expect("it ends");
    }

    #[test]
    fn first_value_must_be_good() {
        let bad = Reloader::load("test", Text(Arc::new(Mutex::new(Ok("x".to_owned())))));
        assert_eq!(bad.err().map(|error| error.to_string()).as_deref(), Some("`x` is no number"));
    }
}
