//! Owns the flags of every command that fetches Kafka and PostgreSQL.

use std::path::PathBuf;

use clap::Args;

use super::fetch::default_cache;

/// Where what is fetched is kept.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Folder for what is fetched [default: $MSG_DEV_CACHE; /var/cache/msg-dev as root, else ~/.cache/msg-dev]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

impl FetchArgs {
    /// The folder that was given, or the default one.
    pub fn folder(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(default_cache)
    }
}
