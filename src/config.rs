//! Owns how settings are read from flags and the environment. If there are problems, all of them are reported together and
//! the process exits with 64.

mod error;
mod secret;

use std::ffi::OsString;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Id, Parser};
use tokio::net::TcpListener;

pub use self::error::{FileError, SettingError, read_password, read_secret, read_text};
pub use self::secret::Secret;

/// The exit code for a bad configuration (`EX_USAGE`).
pub const EXIT_BAD_CONFIG: i32 = 64;

/// Settings that check more than the form of each value.
pub trait Check {
    /// Returns one line for each problem.
    fn problems(&self) -> Vec<String>;
}

/// Reads the settings from the command line and the environment. For `--help` and `--version` it prints the text and exits.
/// If there are problems, it writes all of them to standard error and exits with 64.
pub fn load<T: Parser + Check>() -> T {
    match read(std::env::args_os()) {
        Ok(settings) => settings,
        Err(LoadError::HelpRequested(help)) => help.exit(),
        Err(LoadError::Problems(problems)) => {
            for problem in problems {
                // Logging has not started, because its settings may be among the invalid ones.
                let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {problem}\n"));
            }
            std::process::exit(EXIT_BAD_CONFIG);
        }
    }
}

/// Why there are no settings.
#[derive(Debug)]
pub enum LoadError {
    /// The caller requested `--help` or `--version`.
    HelpRequested(clap::Error),
    /// One line for each problem.
    Problems(Vec<String>),
}

/// Reads the settings from these arguments and the environment. An empty variable counts as unset.
pub fn read<T: Parser + Check>(args: impl IntoIterator<Item = OsString>) -> Result<T, LoadError> {
    let args: Vec<OsString> = args.into_iter().collect();
    // A flag means the same before and after a subcommand.
    let command = read_variables_as_ours(T::command()).mut_args(|arg| arg.global(true));
    parse(&command, &args).map_err(|error| match error {
        LoadError::Problems(problems) => {
            let with_variables = |problem: String| name_variables(&command, &args, problem);
            LoadError::Problems(problems.into_iter().map(with_variables).collect())
        }
        help @ LoadError::HelpRequested(_) => help,
    })
}

fn parse<T: Parser + Check>(command: &Command, args: &[OsString]) -> Result<T, LoadError> {
    let mut command = command.clone();
    let mut problems = Vec::new();
    // clap stops at the first invalid value. To report all of them, let the setting of an invalid value accept any text, and
    // parse again.
    let matches = loop {
        let error = match command.clone().try_get_matches_from(args) {
            Ok(matches) => break matches,
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                return Err(LoadError::HelpRequested(error));
            }
            Err(error) => error,
        };
        problems.push(hide_secrets(&one_line(&error)));
        let invalid = match (error.kind(), error.get(ContextKind::InvalidArg)) {
            (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(ContextValue::String(name))) => name.clone(),
            _ => return Err(LoadError::Problems(problems)),
        };
        if !relax(&mut command, &invalid) {
            return Err(LoadError::Problems(problems));
        }
    };
    if problems.is_empty() {
        let settings = T::from_arg_matches(&matches).map_err(|error| LoadError::Problems(vec![one_line(&error)]))?;
        problems = settings.problems();
        if problems.is_empty() {
            return Ok(settings);
        }
    }
    Err(LoadError::Problems(problems))
}

/// Removes each variable that is empty from its setting: a compose file or a shell sets an unset variable to "". `--help`
/// shows no value of a variable: every setting could have a password in it by mistake.
fn read_variables_as_ours(command: Command) -> Command {
    let is_empty =
        |arg: &Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
    let ours = |arg: Arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg };
    let mut command = command.mut_args(|arg| ours(arg).hide_env_values(true));
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in subcommands {
        command = command.mut_subcommand(name, read_variables_as_ours);
    }
    command
}

/// Adds the names of the variables that set the flags which the problem names.
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

/// Hides every part of a text that may be a password. The text repeats a value, and the operator may have given a password
/// to the wrong setting.
pub(crate) fn hide_secrets(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split(' ') {
        let lower = word.to_ascii_lowercase();
        let secret = ["password=", "secret=", "passwd=", "pwd="];
        let shown = match (word.find("://"), word.find(':'), word.rfind('@')) {
            (Some(scheme), _, Some(at)) if scheme + 3 < at => format!("{}…{}", &word[..scheme + 3], &word[at..]),
            (None, Some(colon), Some(at)) if colon < at => format!("…{}", &word[at..]),
            _ => match secret.iter().find_map(|name| lower.find(name).map(|at| at + name.len())) {
                Some(from) => format!("{}…", &word[..from]),
                None => word.to_owned(),
            },
        };
        words.push(shown);
    }
    words.join(" ")
}

/// Lets the setting that clap calls `name` accept any text, in the command or in a subcommand. Returns false if no setting
/// has this name.
fn relax(command: &mut Command, name: &str) -> bool {
    // Only a built command can print the names of its settings, and a built command cannot be changed.
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

/// Maximum of a duration. With a longer one, the deadline could be beyond the range of the system's clock.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Parses a duration such as `250ms`, `30s` or `7days`, of at most 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let form = |error| format!("{error}; give a number and a unit, such as 250ms, 30s, 5min or 7days");
    let time = humantime::parse_duration(text).map_err(form)?;
    if time > MAX_DURATION { Err("is more than 100 years".to_owned()) } else { Ok(time) }
}

/// Returns a problem if a duration is not in this range.
pub fn time_problem(flag: &str, value: Duration, range: &RangeInclusive<Duration>) -> Option<String> {
    let show = |time: &Duration| humantime::format_duration(*time).to_string().replace(' ', "");
    (!range.contains(&value)).then(|| format!("{flag} must be {} to {}", show(range.start()), show(range.end())))
}

/// Returns a problem if a number is not in this range.
pub fn number_problem<N: Copy + PartialOrd + Display>(
    flag: &str,
    value: N,
    range: &RangeInclusive<N>,
) -> Option<String> {
    let (min, max) = (range.start(), range.end());
    if value < *min {
        return Some(format!("{flag} must be at least {min}"));
    }
    (value > *max).then(|| format!("{flag} must be at most {max}"))
}

/// Returns a problem if a name is empty, has a space or line end around it, or contains a quote or a control character.
pub fn name_problem(flag: &str, name: &str) -> Option<String> {
    if name.is_empty() {
        return Some(format!("{flag} is empty"));
    }
    let odd = |c: char| c.is_control() || matches!(c, '"' | '\'');
    (name.trim() != name || name.contains(odd))
        .then(|| format!("{flag} starts or ends with a space, or contains a quote or a control character: remove it"))
}

/// Returns a problem if a secret and the file with it are both given. One of them would have no effect.
pub fn twice_problem(secret: (&str, bool), file: (&str, bool)) -> Option<String> {
    let ((secret, given), (file, file_given)) = (secret, file);
    (given && file_given).then(|| format!("{secret} and {file} are both given: remove one"))
}

/// Listens on a setting's address.
pub async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, SettingError> {
    let failed = |source| SettingError::Listen { setting, address: address.to_string(), source };
    TcpListener::bind(address).await.map_err(failed)
}

/// Returns a problem if other machines can reach `listen` and the operator did not allow it. `flag` allows it.
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

    fn read_words(words: &str) -> Result<Settings, LoadError> {
        read(words.split(' ').map(OsString::from))
    }

    #[test]
    fn valid_settings_are_read() {
        let settings = read_words("x --count 3 --wait 250ms --size 2KiB").expect("the settings are valid");
        assert_eq!((settings.count, settings.wait, settings.size), (3, Duration::from_millis(250), 2048));
    }

    #[test]
    fn all_invalid_values_are_reported_together() {
        let Err(LoadError::Problems(problems)) = read_words("x --count many --wait soon --size 1MB") else {
            panic!("the values are invalid")
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (problem, name) in problems.iter().zip(["--count", "--wait", "--size"]) {
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn problems_of_the_settings_own_check_are_reported() {
        let Err(LoadError::Problems(problems)) = read_words("x --count 0") else { panic!("the value is invalid") };
        assert_eq!(problems, ["--count must be at least 1"]);
    }

    #[test]
    fn unknown_flag_is_rejected() {
        assert!(matches!(read_words("x --cuont 1"), Err(LoadError::Problems(p)) if p.len() == 1));
    }

    #[test]
    fn secrets_in_the_wrong_setting_are_hidden() {
        for (text, shown) in [
            ("invalid value 'postgres://u:p@ss@host/x' for", "invalid value 'postgres://…@host/x' for"),
            ("unexpected argument 'sasl.Password=hunter,x=1' found", "unexpected argument 'sasl.Password=… found"),
            ("PLAINTEXT://kafka:9092 is", "PLAINTEXT://kafka:9092 is"),
            ("app:hunter2@kafka:9092 is", "…@kafka:9092 is"),
            ("me@kafka:9092 is", "me@kafka:9092 is"),
        ] {
            assert_eq!(hide_secrets(text), shown);
        }
    }

    #[test]
    fn flag_does_not_match_a_longer_one() {
        assert!(names("--listen 1", "--listen") && names("x --listen", "--listen") && names("(--listen)", "--listen"));
        assert!(!names("--listen-on 1", "--listen") && !names("--listening", "--listen"));
    }

    #[test]
    fn durations_have_units_and_a_maximum() {
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
