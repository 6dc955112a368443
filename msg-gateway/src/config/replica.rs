//! Settings of the replica.

use std::path::PathBuf;

use clap::Args;
use msg_common::config::Secret;
use msg_common::postgres::{DatabaseOptions, UrlFlags};

/// A replica of the database.
#[derive(Args, Clone, Debug)]
pub struct ReplicaOptions {
    /// URL of a replica of the database, for PullMsgs and GetMaxSeqs. It may be behind, so messages that were just
    /// stored may be missing for a moment. All other reads use the primary
    #[arg(long, env = "DATABASE_REPLICA_URL", value_name = "URL")]
    pub replica_url: Option<Secret>,
    /// File that contains the URL of the replica, instead of --replica-url. It is read again for each new connection
    #[arg(long, env = "DATABASE_REPLICA_URL_FILE", value_name = "FILE")]
    pub replica_url_file: Option<PathBuf>,
    /// File that contains the password for the replica, if its URL has none, like --database-password-file
    #[arg(long, env = "DATABASE_REPLICA_PASSWORD_FILE", value_name = "FILE")]
    pub replica_password_file: Option<PathBuf>,
}

/// The flags of the replica's URL.
const FLAGS: UrlFlags =
    UrlFlags { url: "--replica-url", url_file: "--replica-url-file", password_file: "--replica-password-file" };

impl ReplicaOptions {
    /// The options of the replica, if one is configured: those of the primary, with another URL.
    pub fn database(&self, primary: &DatabaseOptions) -> Option<DatabaseOptions> {
        Some(self.options(primary)).filter(DatabaseOptions::is_given)
    }

    fn options(&self, primary: &DatabaseOptions) -> DatabaseOptions {
        DatabaseOptions {
            database_url: self.replica_url.clone(),
            database_url_file: self.replica_url_file.clone(),
            database_password_file: self.replica_password_file.clone(),
            flags: FLAGS,
            ..primary.clone()
        }
    }

    pub(super) fn problems(&self, primary: &DatabaseOptions) -> Vec<String> {
        let replica = self.options(primary);
        let mut problems = replica.url_problems();
        if replica.is_given() && !primary.is_given() {
            problems.insert(0, "--replica-url is given without --database-url".to_owned());
        }
        problems
    }
}
