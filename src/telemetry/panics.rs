//! Logs a panic as a line like any other, without paths of the machine that built the program, and then ends the process.

use std::panic::PanicHookInfo;

use super::json::Line;
use super::{LOG, LogFormat, flush};

/// Logs panics from now on, whatever the configured level is, and ends the process with SIGABRT: a process that lost a task
/// must not continue. `panic = "abort"` would do the same, but tests are always built with unwinding, so every package would be
/// built twice.
pub(super) fn install() {
    std::panic::set_hook(Box::new(|panic| {
        if let Some(log) = LOG.get() {
            log.writer.push(line(panic, log.format));
            flush();
        }
        std::process::abort();
    }));
}

fn line(panic: &PanicHookInfo<'_>, format: LogFormat) -> Vec<u8> {
    let reason = panic.payload_as_str().unwrap_or("unknown");
    let location =
        panic.location().map_or_else(String::new, |location| format!("{}:{}", short(location.file()), location.line()));
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    match format {
        LogFormat::Json => {
            let mut line = Line::new("ERROR", "panic");
            line.add("message", &"panicked".into());
            line.add("reason", &reason.into());
            line.add("location", &location.into());
            line.add("thread", &thread.into());
            line.end()
        }
        LogFormat::Text => format!("ERROR panic: {reason} location={location} thread={thread}\n").into_bytes(),
    }
}

/// Removes the folders of the build machine from the path of a source file. The path of a dependency's file starts below
/// cargo's registry.
fn short(file: &str) -> &str {
    let Some((_, registry)) = file.split_once("/registry/src/") else {
        // The paths of the workspace's own files are relative to the workspace.
        return if file.starts_with('/') { file.rsplit_once("/src/").map_or("", |(_, path)| path) } else { file };
    };
    registry.split_once('/').map_or(registry, |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::super::{LogFormat, LogOptions};
    use super::short;

    #[test]
    fn panic_in_a_task_is_logged_and_ends_the_process() {
        const IN_CHILD: &str = "MSG_TEST_PANICS";
        const SIGABRT: i32 = 6;
        if std::env::var_os(IN_CHILD).is_some() {
            LogOptions { log_level: "off".to_owned(), log_format: LogFormat::Json, audit_log_file: None }.start();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it starts");
            let _ = runtime.block_on(runtime.spawn(async { panic!("a bug") }));
            std::process::exit(0);
        }
        let test = "telemetry::panics::tests::panic_in_a_task_is_logged_and_ends_the_process";
        let program = std::env::current_exe().expect("this test has a path");
        let child = Command::new(program).args(["--exact", test, "--nocapture"]).env(IN_CHILD, "1").output();
        let child = child.expect("it runs");
        let log = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.signal(), Some(SIGABRT), "{log}");
        assert!(log.contains(r#""reason":"a bug""#), "{log}");
    }

    #[test]
    fn location_has_no_folder_of_the_build_machine() {
        for (file, expected) in [
            ("msg-transfer/src/app.rs", "msg-transfer/src/app.rs"),
            ("/root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/h2-0.4.1/src/lib.rs", "h2-0.4.1/src/lib.rs"),
            ("/rustc/0123/library/core/src/option.rs", "option.rs"),
            ("/home/user/x.rs", ""),
        ] {
            assert_eq!(short(file), expected);
        }
    }
}
