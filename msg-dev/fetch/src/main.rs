//! `msg-fetch [FOLDER]` fetches and checks Kafka and PostgreSQL, and starts nothing. `make demo` runs it during the build.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cache = std::env::args_os().nth(1).map_or_else(msg_fetch::default_cache, PathBuf::from);
    match msg_fetch::kafka(&cache).and(msg_fetch::postgres(&cache)) {
        Ok(_) => {
            let (kafka, postgres) = (msg_fetch::KAFKA_VERSION, msg_fetch::POSTGRES_VERSION);
            println!(
                "Kafka {kafka} and PostgreSQL {postgres} are in {}, and match the pinned checksums",
                cache.display()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("msg-fetch: {error}");
            ExitCode::FAILURE
        }
    }
}
