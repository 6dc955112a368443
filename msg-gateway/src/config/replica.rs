//! Settings of the replica.

use std::path::PathBuf;

use clap::Args;
use msg_common::postgres::DatabaseOptions;

/// A replica of the database.
#[derive(Args, Clone, Debug)]
pub struct ReplicaOptions {
    /// A replica of the database, from which PullMsgs and GetMaxSeqs are answered. It may be behind: what was just stored
    /// may be missing there for a moment. All else is read from the database itself
    #[arg(long, env = "DATABASE_REPLICA_URL", value_name = "URL", hide_env_values = true)]
    pub replica_url: Option<String>,
    /// A file that holds the replica's URL, instead of --replica-url
    #[arg(long, env = "DATABASE_REPLICA_URL_FILE", value_name = "FILE", conflicts_with = "replica_url")]
    pub replica_url_file: Option<PathBuf>,
}

impl ReplicaOptions {
    /// How to reach it, if there is one: as the database, at another address.
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
        problems.extend(replica.config().err().map(|problem| problem.replace("--database-url", "--replica-url")));
        problems
    }
}
