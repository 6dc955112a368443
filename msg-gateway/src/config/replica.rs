//! Settings of the replica.

use std::path::PathBuf;

use clap::Args;
use msg_common::postgres::DatabaseOptions;

/// A replica of the database.
#[derive(Args, Clone, Debug)]
pub struct ReplicaOptions {
    /// URL of a replica of the database, for PullMsgs and GetMaxSeqs. It may be behind, so messages that were just
    /// stored may be missing for a moment. All other reads use the primary
    #[arg(long, env = "DATABASE_REPLICA_URL", value_name = "URL", hide_env_values = true)]
    pub replica_url: Option<String>,
    /// File that contains the URL of the replica, instead of --replica-url
    #[arg(long, env = "DATABASE_REPLICA_URL_FILE", value_name = "FILE", conflicts_with = "replica_url")]
    pub replica_url_file: Option<PathBuf>,
}

impl ReplicaOptions {
    /// The options of the replica, if one is configured: those of the primary, with another URL.
    pub fn database(&self, primary: &DatabaseOptions) -> Option<DatabaseOptions> {
        let (url, file) = (self.replica_url.clone(), self.replica_url_file.clone());
        let replica = DatabaseOptions { database_url: url, database_url_file: file, ..primary.clone() };
        replica.is_given().then_some(replica)
    }

    pub(super) fn problems(&self, primary: &DatabaseOptions) -> Vec<String> {
        let Some(replica) = self.database(primary) else { return Vec::new() };
        let mut problems = Vec::new();
        if !primary.is_given() {
            problems.push("--replica-url is given without --database-url".to_owned());
        }
        // Its flags are named like the database's.
        problems.extend(replica.url_problem().map(|problem| problem.replace("--database-url", "--replica-url")));
        problems
    }
}
