//! How settings are read: flags and environment, every problem named at once, exit 64 when there is one.

mod error;

use std::ffi::OsString;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Id, Parser};
use tokio::net::TcpListener;

pub use self::error::{FileError, SettingError, read_secret, read_text};

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

/// Reads the settings from these arguments and the environment, in which an empty variable is an unset one.
pub fn read<T: Parser + Check>(args: impl IntoIterator<Item = OsString>) -> Result<T, Refusal> {
    let args: Vec<OsString> = args.into_iter().collect();
    // A flag means the same before and after a subcommand.
    let command = ignore_empty_variables(T::command()).mut_args(|arg| arg.global(true));
    parse(&command, &args).map_err(|refusal| match refusal {
        Refusal::Problems(problems) => {
            let for_people = |problem: String| name_variables(&command, &args, problem);
            Refusal::Problems(problems.into_iter().map(for_people).collect())
        }
        answer @ Refusal::Answer(_) => answer,
    })
}

fn parse<T: Parser + Check>(command: &Command, args: &[OsString]) -> Result<T, Refusal> {
    let mut command = command.clone();
    let mut problems = Vec::new();
    // clap stops at the first bad value. So that all are told, a bad one's setting then takes any text, and
    // we ask again.
    let matches = loop {
        let error = match command.clone().try_get_matches_from(args) {
            Ok(matches) => break matches,
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                return Err(Refusal::Answer(error));
            }
            Err(error) => error,
        };
        problems.push(hide_secrets(&one_line(&error)));
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

/// A compose file or a shell leaves an empty variable where none was meant.
fn ignore_empty_variables(command: Command) -> Command {
    let is_empty =
        |arg: &Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
    let mut command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in subcommands {
        command = command.mut_subcommand(name, ignore_empty_variables);
    }
    command
}

/// The problem, and the variables that the flags it names were set by.
fn name_variables(command: &Command, args: &[OsString], problem: String) -> String {
    let mut variables = Vec::new();
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands());
        for arg in command.get_arguments() {
            let (Some(flag), Some(variable)) = (arg.get_long(), arg.get_env().and_then(|name| name.to_str())) else {
                continue;
            };
            let flag = format!("--{flag}");
            let on_the_line = |arg: &OsString| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(&flag));
            let set = std::env::var_os(variable).is_some_and(|value| !value.is_empty());
            if set && names(&problem, &flag) && !args.iter().any(on_the_line) && !variables.contains(&variable) {
                variables.push(variable);
            }
        }
    }
    if variables.is_empty() { problem } else { format!("{problem} (set by {})", variables.join(", ")) }
}

fn names(problem: &str, flag: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    problem.match_indices(flag).any(|(at, _)| ends(&problem[at + flag.len()..]))
}

/// Hides what may be a password in a text that repeats a value: one may have been given to the wrong setting.
pub(crate) fn hide_secrets(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split(' ') {
        let lower = word.to_ascii_lowercase();
        let secret = ["password=", "secret=", "passwd=", "pwd="];
        let shown = match (word.find("://"), word.rfind('@')) {
            (Some(scheme), Some(at)) if scheme + 3 < at => format!("{}…{}", &word[..scheme + 3], &word[at..]),
            _ => match secret.iter().find_map(|name| lower.find(name).map(|at| at + name.len())) {
                Some(from) => format!("{}…", &word[..from]),
                None => word.to_owned(),
            },
        };
        words.push(shown);
    }
    words.join(" ")
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

/// The longest time span that a setting takes. Above it, the system's clock could not hold the moment at its end.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Parses a time span such as `250ms`, `30s` or `7days`; 100 years at most.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let form = |error| format!("{error}; give a number and a unit, such as 250ms, 30s, 5min or 7days");
    let time = humantime::parse_duration(text).map_err(form)?;
    if time > MAX_DURATION { Err("is more than 100 years".to_owned()) } else { Ok(time) }
}

/// A problem if a time span is not in this range.
pub fn time_problem(flag: &str, value: Duration, range: &RangeInclusive<Duration>) -> Option<String> {
    let show = |time: &Duration| humantime::format_duration(*time).to_string().replace(' ', "");
    (!range.contains(&value)).then(|| format!("{flag} must be {} to {}", show(range.start()), show(range.end())))
}

/// A problem if a number is not in this range.
pub fn number_problem<N: Copy + PartialOrd + Display>(
    flag: &str,
    value: N,
    range: &RangeInclusive<N>,
) -> Option<String> {
    let (least, most) = (range.start(), range.end());
    if value < *least {
        return Some(format!("{flag} must be at least {least}"));
    }
    (value > *most).then(|| format!("{flag} must be at most {most}"))
}

/// A problem if a name is empty, or holds what was left of quotes, spaces or line ends around it.
pub fn name_problem(flag: &str, name: &str) -> Option<String> {
    if name.is_empty() {
        return Some(format!("{flag} is empty"));
    }
    let odd = |c: char| c.is_control() || matches!(c, '"' | '\'');
    (name.trim() != name || name.contains(odd))
        .then(|| format!("{flag} begins or ends with a space, or holds a quote or a control character: leave it out"))
}

/// Listens on a setting's address.
pub async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, SettingError> {
    TcpListener::bind(address).await.map_err(|source| SettingError::Listen { setting, address, source })
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
    fn secrets_in_the_wrong_setting_are_hidden() {
        for (text, shown) in [
            ("invalid value 'postgres://u:p@ss@host/x' for", "invalid value 'postgres://…@host/x' for"),
            ("unexpected argument 'sasl.Password=hunter,x=1' found", "unexpected argument 'sasl.Password=… found"),
            ("PLAINTEXT://kafka:9092 is", "PLAINTEXT://kafka:9092 is"),
        ] {
            assert_eq!(hide_secrets(text), shown);
        }
    }

    #[test]
    fn flag_is_not_found_in_a_longer_one() {
        assert!(names("--listen 1", "--listen") && names("x --listen", "--listen") && names("(--listen)", "--listen"));
        assert!(!names("--listen-on 1", "--listen") && !names("--listening", "--listen"));
    }

    #[test]
    fn times_have_units_and_an_end() {
        assert_eq!(parse_duration("5 s"), Ok(Duration::from_secs(5)));
        for bad in ["", "5", "-1s", "5sek", "s", "1e3s", "101years", "99999999999999999999s", "9999999999999years"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
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
