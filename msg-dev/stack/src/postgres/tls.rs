//! Owns how a server gets its certificate, in the data folder from which standbys copy it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use super::Postgres;
use crate::error::StackError;
use crate::process::POLL;

/// A server reads its settings again within milliseconds.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(20);

impl Postgres {
    /// Gives the running server a certificate with its key, and the CAs of its clients, all in PEM. When this returns, the
    /// server accepts TLS; after a second call, new connections use the new certificate soon.
    pub async fn accept_tls(&self, certificate: &str, key: &str, client_ca: &str) -> Result<(), StackError> {
        let data = &self.ours()?.data;
        for (name, text) in [("server.key", key), ("server.crt", certificate), ("clients.crt", client_ca)] {
            replace_file(data, name, text)?;
        }
        let database = |source| StackError::Database { doing: "turn on TLS", source };
        let client = self.connect(self.base_url()).await?;
        // One statement each: ALTER SYSTEM cannot run in a transaction.
        for statement in
            ["ALTER SYSTEM SET ssl_ca_file = 'clients.crt'", "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"]
        {
            client.batch_execute(statement).await.map_err(database)?;
        }
        let accepted = async {
            loop {
                // A new session starts with the settings that the server has read.
                let row = self.connect(self.base_url()).await?.query_one("SHOW ssl", &[]).await;
                if row.map_err(database)?.get::<_, String>(0) == "on" {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let late = |_| StackError::Setting("the server does not turn TLS on: its log says why".to_owned());
        tokio::time::timeout(ACCEPTED_WITHIN, accepted).await.map_err(late)?
    }
}

/// Replaces a file at one moment. It belongs to the owner of the folder and only to it, as PostgreSQL demands.
fn replace_file(folder: &Path, name: &str, text: &str) -> Result<(), StackError> {
    let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
    let replace = || {
        fs::write(&new, text)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        let owner = fs::metadata(folder)?;
        chown(&new, Some(owner.uid()), Some(owner.gid()))?;
        fs::rename(&new, &path)
    };
    replace().map_err(StackError::io("write", &path))
}
