//! Owns the flags of every command that fetches Kafka and PostgreSQL.

use std::path::PathBuf;

use clap::Args;

use msg_fetch::default_cache;

/// The folder of fetched files.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Folder for fetched files [default: $MSG_DEV_CACHE; /var/cache/msg-dev as root, else ~/.cache/msg-dev]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

impl FetchArgs {
    /// Returns the given folder, or the default.
    pub fn folder(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(default_cache)
    }
}
