//! When the clients of a process have to be created again: the files that their settings are read from have changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{ClientPurpose, ClientSetup, KafkaOptions, Role};
use crate::config::FileError;
use crate::error::chain;
use crate::reload::{Contents, Reloaded, Reloader, Source};

/// The longest time between the change of the files and the new clients. It is random, so that the replicas of a service do
/// not replace their clients at the same moment.
const MAX_DELAY: Duration = Duration::from_secs(15);

/// The number of times that the files have changed. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Generation(Arc<AtomicU64>);

impl Generation {
    /// From now on, every client that exists has to be replaced.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// The settings of a client that are read again for each new client.
#[derive(Clone)]
pub struct ClientSettings {
    read: Arc<dyn Fn() -> ClientSetup + Send + Sync>,
    generation: Generation,
}

/// What the settings of a client were when it was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatedAt(u64);

impl ClientSettings {
    /// Returns the settings that `read` derives from these options.
    pub fn new(options: &KafkaOptions, read: impl Fn(&KafkaOptions) -> ClientSetup + Send + Sync + 'static) -> Self {
        let (generation, options) = (options.generation.clone(), options.clone());
        ClientSettings { read: Arc::new(move || read(&options)), generation }
    }

    /// Returns settings that never change.
    pub fn fixed(config: impl Into<ClientSetup>) -> Self {
        let config = config.into();
        ClientSettings { read: Arc::new(move || config.clone()), generation: Generation::default() }
    }

    /// Returns the settings as they are now.
    pub fn current(&self) -> (ClientSetup, CreatedAt) {
        // In this order: if the files change in between, the client is created once more.
        let created = CreatedAt(self.generation.0.load(Ordering::Acquire));
        ((self.read)(), created)
    }

    /// Returns whether a client that was created then has to be replaced.
    pub fn changed_since(&self, created: CreatedAt) -> bool {
        self.generation.0.load(Ordering::Acquire) != created.0
    }
}

impl std::fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientSettings").field(&self.generation).finish()
    }
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FilesError(String);

/// The files of the options, and the check that a client can be created with them.
struct Files {
    options: KafkaOptions,
    purpose: ClientPurpose,
    role: Role,
}

impl Source for Files {
    type Value = ();
    type Error = FilesError;

    fn read(&self) -> Result<Contents, FilesError> {
        let read = |(flag, path): (&str, &std::path::PathBuf)| {
            let failed = |source| FileError::Read { path: path.clone(), source };
            std::fs::read(path).map_err(failed).map_err(|error| FilesError(format!("{flag}: {}", chain(&error))))
        };
        self.options.files().into_iter().map(read).collect()
    }

    fn build(&self, _: &Contents) -> Result<(), FilesError> {
        let mut problems = self.options.client_problems();
        if problems.is_empty() {
            let config = self.options.client_config(self.purpose);
            problems.extend(self.options.creation_problem(&config, self.role));
        }
        if problems.is_empty() { Ok(()) } else { Err(FilesError(problems.join("; "))) }
    }
}

/// Completes when the clients of a process have to be replaced.
pub struct FileChanges {
    files: Reloaded<()>,
    generation: Generation,
}

impl FileChanges {
    /// Follows the files of these options until `stop`. A client for `purpose` shows whether new content can be used.
    pub fn follow(
        options: &KafkaOptions,
        purpose: ClientPurpose,
        role: Role,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), FilesError> {
        let files = Files { options: options.clone(), purpose, role };
        let reloader = Reloader::load("kafka", files)?;
        let changes = FileChanges { files: reloader.value(), generation: options.generation.clone() };
        Ok((changes, reloader.run(stop)))
    }

    /// Completes when the files have changed, after a random time. From then on, every older client has to be replaced.
    pub async fn changed(&mut self) {
        self.files.changed().await;
        tokio::time::sleep(rand::random_range(Duration::ZERO..MAX_DELAY)).await;
        self.generation.advance();
    }
}
