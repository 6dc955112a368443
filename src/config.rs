//! How settings are read: flags and environment, every problem named at once, exit 64 when there is one.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Id, Parser};

/// The exit code for a bad configuration (`EX_USAGE`).
pub const EXIT_BAD_CONFIG: i32 = 64;

/// Settings that can tell what is wrong with them beyond the form of each value.
pub trait Check {
    /// One line a problem; empty when all is well.
    fn problems(&self) -> Vec<String>;
}

/// Reads the settings from the command line and the environment. `--help` and `--version` are answered here.
/// When anything is wrong, all of it is written to standard error and the process ends with exit code 64.
pub fn load<T: Parser + Check>() -> T {
    match read(std::env::args_os()) {
        Ok(settings) => settings,
        Err(Refusal::Answer(answer)) => answer.exit(),
        Err(Refusal::Problems(problems)) => {
            for problem in problems {
                // Before logging is set up: its settings may be among the bad ones.
                let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {problem}\n"));
            }
            std::process::exit(EXIT_BAD_CONFIG);
        }
    }
}

/// Why there are no settings.
#[derive(Debug)]
pub enum Refusal {
    /// Help or version was asked for.
    Answer(clap::Error),
    /// These are wrong.
    Problems(Vec<String>),
}

/// Reads the settings from these arguments and the environment.
pub fn read<T: Parser + Check>(args: impl IntoIterator<Item = OsString>) -> Result<T, Refusal> {
    let args: Vec<OsString> = args.into_iter().collect();
    // A flag means the same before and after a subcommand.
    let mut command = T::command().mut_args(|arg| arg.global(true));
    let mut problems = Vec::new();
    // clap stops at the first bad value. So that all are told, a bad one's setting then takes any text, and
    // we ask again.
    let matches = loop {
        let error = match command.clone().try_get_matches_from(&args) {
            Ok(matches) => break matches,
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                return Err(Refusal::Answer(error));
            }
            Err(error) => error,
        };
        problems.push(one_line(&error));
        let bad = match (error.kind(), error.get(ContextKind::InvalidArg)) {
            (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(ContextValue::String(name))) => name.clone(),
            _ => return Err(Refusal::Problems(problems)),
        };
        if !relax(&mut command, &bad) {
            return Err(Refusal::Problems(problems));
        }
    };
    if problems.is_empty() {
        let settings = T::from_arg_matches(&matches).map_err(|error| Refusal::Problems(vec![one_line(&error)]))?;
        problems = settings.problems();
        if problems.is_empty() {
            return Ok(settings);
        }
    }
    Err(Refusal::Problems(problems))
}

/// Lets the setting that clap calls `name` take any text, wherever it is; false if there is none.
fn relax(command: &mut Command, name: &str) -> bool {
    // Only a built command can print its settings' names, and a built one cannot be changed any more.
    let mut built = command.clone();
    built.build();
    let Some(id) = find(&built, name) else {
        return false;
    };
    accept_anything(command, &id)
}

fn find(command: &Command, name: &str) -> Option<Id> {
    let own = command.get_arguments().find(|arg| arg.to_string() == name).map(|arg| arg.get_id().clone());
    own.or_else(|| command.get_subcommands().find_map(|sub| find(sub, name)))
}

fn accept_anything(command: &mut Command, id: &Id) -> bool {
    if command.get_arguments().any(|arg| arg.get_id() == id) {
        *command = command.clone().mut_arg(id, |arg| arg.value_parser(clap::value_parser!(OsString)));
        return true;
    }
    command.get_subcommands_mut().any(|sub| accept_anything(sub, id))
}

fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or(&text);
    first.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Parses a size such as `512`, `64KiB`, `1MiB` or `2GiB` into bytes.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("`{other}` is not one of B, KiB, MiB, GiB")),
    };
    let count: usize = digits.trim().parse().map_err(|_| "needs a whole number, then B, KiB, MiB or GiB".to_owned())?;
    count.checked_mul(unit).ok_or_else(|| "is too large".to_owned())
}

/// Parses a time span such as `250ms`, `30s` or `7days`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Reads a secret from a file, without the line end.
pub fn read_secret(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// A problem if `listen` can be reached from other machines without that being allowed. `flag` is what allows it.
pub fn beyond_loopback(setting: &str, listen: SocketAddr, allowed: bool, flag: &str) -> Option<String> {
    (!listen.ip().is_loopback() && !allowed).then(|| {
        format!("{setting} {listen} is beyond loopback and would be served in plain text; {flag} accepts that")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser, Debug)]
    struct Settings {
        #[arg(long, default_value_t = 1)]
        count: u16,
        #[arg(long, default_value = "1s", value_parser = parse_duration)]
        wait: Duration,
        #[arg(long, default_value = "1MiB", value_parser = parse_bytes)]
        size: usize,
    }

    impl Check for Settings {
        fn problems(&self) -> Vec<String> {
            (self.count == 0).then(|| "--count must be at least 1".to_owned()).into_iter().collect()
        }
    }

    fn read_words(words: &str) -> Result<Settings, Refusal> {
        read(words.split(' ').map(OsString::from))
    }

    #[test]
    fn good_settings_are_read() {
        let settings = read_words("x --count 3 --wait 250ms --size 2KiB").expect("they are good");
        assert_eq!((settings.count, settings.wait, settings.size), (3, Duration::from_millis(250), 2048));
    }

    #[test]
    fn every_bad_value_is_named_at_once() {
        let Err(Refusal::Problems(problems)) = read_words("x --count many --wait soon --size 1MB") else {
            panic!("they are bad")
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (problem, name) in problems.iter().zip(["--count", "--wait", "--size"]) {
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn what_is_wrong_beyond_the_form_is_named_too() {
        let Err(Refusal::Problems(problems)) = read_words("x --count 0") else { panic!("it is bad") };
        assert_eq!(problems, ["--count must be at least 1"]);
    }

    #[test]
    fn an_unknown_flag_is_refused() {
        assert!(matches!(read_words("x --cuont 1"), Err(Refusal::Problems(p)) if p.len() == 1));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("3GiB"), Ok(3 << 30));
        for bad in ["", "MiB", "1.5MiB", "1mb", "-1", "99999999999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
