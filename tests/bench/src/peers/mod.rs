//! The peers of the services: other programs that do a part of their work, and promise less. `--peers` builds and fetches
//! them, from `tests/bench/peers`.

pub(crate) mod debezium;
pub(crate) mod jetstream;

use std::env;
use std::process::Command;
use std::time::Duration;

use super::Error;

/// A peer that is slow does not have to do all of the work.
pub(crate) const TIME: Duration = Duration::from_secs(15);
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");

/// Builds the consumers and the publisher in Go, and returns the path of their one program.
pub(crate) fn in_go() -> Result<String, Error> {
    build(".", "msg-bench-peers")
}

/// Builds a package, in the version of the peers' module, and returns the program's path.
fn build(package: &str, name: &str) -> Result<String, Error> {
    let binary = env::current_exe()?.with_file_name(name).display().to_string();
    run(Command::new("go").args(["build", "-o", &binary, package]).current_dir(FOLDER))?;
    Ok(binary)
}

fn run(command: &mut Command) -> Result<(), Error> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}").into()),
        Err(error) => Err(format!("{command:?}: {error}; scripts/setup peers installs what is missing").into()),
    }
}
