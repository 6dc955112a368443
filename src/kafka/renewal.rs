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

/// The settings of a client, which may be others for each new client.
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

    /// Creates a client with the files' content before it replaces the accepted one.
    fn build(&self, _: &Contents) -> Result<(), FilesError> {
        // Read once: the content that the client is created with is the one that is accepted.
        let properties = self.options.properties();
        let mut problems = self.options.client_problems(&properties);
        if problems.is_empty() {
            let config = self.options.config_with(self.purpose, properties.entries.clone());
            problems.extend(self.options.creation_problem(&config, self.role));
        }
        if !problems.is_empty() {
            return Err(FilesError(problems.join("; ")));
        }
        if let Some(chain) = properties.get("ssl.certificate.pem") {
            crate::tls::show_expiry_of_pem("kafka", chain);
        }
        self.options.accept(properties.entries);
        Ok(())
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

#[cfg(test)]
#[cfg(feature = "kafka-tls")]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::kafka::{Protocol, SecurityOptions};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        kafka: KafkaOptions,
    }

    #[test]
    fn broken_files_do_not_replace_the_accepted_ones() {
        // The passphrase is hunter2.
        const PAIR: &str = include_str!("testdata/encrypted-pair.pem");
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (pair, passphrase) = (folder.path().join("pair.pem"), folder.path().join("passphrase"));
        let write = |path, text: &str| std::fs::write(path, text).expect("it is written");
        write(&pair, PAIR);
        write(&passphrase, "hunter2");
        let mut options = Command::parse_from(["x"]).kafka;
        options.security = SecurityOptions {
            kafka_security_protocol: Some(Protocol::Ssl),
            kafka_ssl_cert_file: Some(pair.clone()),
            kafka_ssl_key_file: Some(pair.clone()),
            kafka_ssl_key_password_file: Some(passphrase.clone()),
            ..SecurityOptions::default()
        };
        let purpose = ClientPurpose::Consumer;
        let files = Files { options: options.clone(), purpose, role: Role::Consumer };
        let works = || options.creation_problem(&options.client_config(purpose), Role::Consumer);
        files.build(&Vec::new()).expect("they are good");
        assert_eq!(works(), None);
        let half = &PAIR[..PAIR.len() / 2];
        for (path, bad, good) in [(&pair, half, PAIR), (&pair, "", PAIR), (&passphrase, "hunter3", "hunter2")] {
            write(path, bad);
            let error = files.build(&Vec::new()).expect_err("they are broken").to_string();
            assert!(error.starts_with("--kafka-ssl-") && !error.contains("hunter"), "{error}");
            assert_eq!(works(), None, "a new client has the last good files");
            write(path, good);
        }
        std::fs::remove_file(&pair).expect("it is removed");
        assert_eq!(works(), None, "a new client has the last good files");
        write(&pair, PAIR);
        files.build(&Vec::new()).expect("they are good");
    }
}
