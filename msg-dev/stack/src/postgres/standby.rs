//! Owns how a server becomes the standby of another: the data is copied from a stopped or from a running primary.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Postgres, Server};
use crate::error::StackError;
use crate::user::{self, Owner};

/// Files of the running server that a copy must not contain.
const NOT_COPIED: [&str; 2] = ["postmaster.pid", "postmaster.opts"];

impl Postgres {
    /// Creates a standby of this server in a folder of its own. This server must be stopped, since its data is copied.
    /// The standby follows this server once both are started.
    pub fn standby(&self, folder: &Path) -> Result<Postgres, StackError> {
        let (server, standby) = (self.ours()?, self.second_server(folder)?);
        let data = folder.join("data");
        // Copy owners and rights too: the server refuses to start without them.
        let copied = Command::new("cp").arg("-a").args([&server.data, &data]).status();
        if !copied.map_err(StackError::io("copy", &server.data))?.success() {
            return Err(StackError::Setting(format!("cannot copy {}", server.data.display())));
        }
        standby.ours()?.follow(server)?;
        Ok(standby)
    }

    /// Returns another server of the same programs, without data. Call [`Postgres::become_standby`] before its start.
    pub fn second_server(&self, folder: &Path) -> Result<Postgres, StackError> {
        let home = self.ours()?.home.clone();
        fs::create_dir_all(folder).map_err(StackError::io("create", folder))?;
        Postgres::reserve(home, folder, folder)
    }

    /// Makes this server, which is stopped, a standby of `primary`, which runs and continues to accept writes. Removes
    /// the data of this server.
    pub async fn become_standby(&self, primary: &Postgres) -> Result<(), StackError> {
        let (from, to) = (primary.ours()?, self.ours()?);
        if to.data.exists() {
            fs::remove_dir_all(&to.data).map_err(StackError::io("remove", &to.data))?;
        }
        let database = |doing| move |source| StackError::Database { doing, source };
        // The server ends the backup when this connection ends.
        let client = primary.connect(primary.base_url()).await?;
        let started = client.batch_execute("SELECT pg_backup_start('standby', true)").await;
        started.map_err(database("start a backup"))?;
        let (source, copy) = (from.data.clone(), to.data.clone());
        let copying = move || copy_folder(&source, &copy, user::unprivileged());
        tokio::task::spawn_blocking(copying)
            .await
            .expect("copying does not panic")
            .map_err(StackError::io("copy", &from.data))?;
        let label = client.query_one("SELECT labelfile FROM pg_backup_stop(false)", &[]).await;
        let label: String = label.map_err(database("end a backup"))?.get(0);
        let file = to.data.join("backup_label");
        fs::write(&file, label).map_err(StackError::io("write", &file))?;
        // The server opens the file for writing.
        own(&file, user::unprivileged()).map_err(StackError::io("change the owner of", &file))?;
        to.follow(from)
    }

    pub(super) fn ours(&self) -> Result<&Server, StackError> {
        self.server.as_ref().ok_or_else(|| StackError::Setting("the server is not a child of this process".to_owned()))
    }
}

impl Server {
    /// Writes the files that make this server a standby of `primary` from its next start on.
    fn follow(&self, primary: &Server) -> Result<(), StackError> {
        let signal = self.data.join("standby.signal");
        fs::write(&signal, "").map_err(StackError::io("write", signal))?;
        let settings = self.data.join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&settings).map_err(StackError::io("read", &settings))?;
        // Of two values the later one counts.
        let port = primary.port.number();
        text.push_str(&format!("primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'\n"));
        fs::write(&settings, text).map_err(StackError::io("write", &settings))?;
        let done = self.data.with_file_name("initdb.done");
        fs::write(&done, "").map_err(StackError::io("write", done))
    }
}

/// Copies the data of a running server. Files that change during the copy are repaired by the write-ahead log; a file
/// that the server removes during the copy is left out.
fn copy_folder(from: &Path, to: &Path, owner: Option<Owner>) -> Result<(), Error> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    own(to, owner)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, copy): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        if NOT_COPIED.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let copied = match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy_folder(&source, &copy, owner),
            Ok(_) => fs::copy(&source, &copy).and_then(|_| own(&copy, owner)),
            Err(error) => Err(error),
        };
        match copied {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn own(path: &Path, owner: Option<Owner>) -> Result<(), Error> {
    owner.map_or(Ok(()), |owner| chown(path, Some(owner.uid), Some(owner.gid)))
}
