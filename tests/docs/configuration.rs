//! Renders docs/configuration.md from the definitions that both services read their settings with.

use std::collections::BTreeSet;
use std::fmt::Write;

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::cell;

const INTRODUCTION: &str = "\
<!-- `make docs` writes this page from the code. -->
# Configuration

Every setting of `msg-gateway` and `msg-transfer`, and the options of their commands, as `--help` shows them.

- A setting is a flag or an environment variable. The flag wins; an empty variable is an unset one.
- A setting whose default is *off* is a flag without a value; its variable is `true`.
- A size is a number of bytes, or a number with `KiB`, `MiB` or `GiB`. A time has a unit: `250ms`, `30s`, `7days`.
- If settings are bad, the process reports all problems together and exits with code 64.
- The commands of `msg-transfer` have the settings of the service too, by the same flags and variables.
";

/// A setting as the page shows it.
#[derive(PartialEq, Eq)]
struct Setting {
    flag: String,
    variable: Option<String>,
    default: String,
    meaning: String,
}

pub(super) fn page() -> String {
    let (gateway, transfer) = (gateway(), transfer());
    let (of_gateway, of_transfer) = (settings(&gateway), settings(&transfer));
    let (shared, only_gateway): (Vec<_>, Vec<_>) = of_gateway.into_iter().partition(|it| of_transfer.contains(it));
    let only_transfer: Vec<_> = of_transfer.into_iter().filter(|it| !shared.contains(it)).collect();
    let mut page = INTRODUCTION.to_owned();
    section(&mut page, "## Both services", "", &shared);
    section(&mut page, "## msg-gateway", "", &only_gateway);
    section(&mut page, "## msg-transfer", "", &only_transfer);
    page.push_str("\n## Commands\n");
    for root in [&gateway, &transfer] {
        commands(&mut page, root, root.get_name());
    }
    page
}

/// The environment variables of both services.
pub(super) fn variables() -> BTreeSet<String> {
    [gateway(), transfer()].iter().flat_map(settings).filter_map(|setting| setting.variable).collect()
}

fn gateway() -> Command {
    msg_gateway::config::Config::command()
}

fn transfer() -> Command {
    msg_transfer::cli::Cli::command()
}

fn settings(command: &Command) -> Vec<Setting> {
    command.get_arguments().map(setting).collect()
}

fn setting(arg: &Arg) -> Setting {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.iter().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ");
    let flag = match arg.get_long() {
        Some(long) if is_switch => format!("--{long}"),
        Some(long) => format!("--{long} {value}"),
        None => value,
    };
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match defaults.join(",") {
        _ if is_switch => "off".to_owned(),
        none if none.is_empty() => String::new(),
        some => format!("`{some}`"),
    };
    let mut meaning = cell(&arg.get_help().map(ToString::to_string).unwrap_or_default());
    let values: Vec<_> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !is_switch && !values.is_empty() {
        write!(meaning, ". Values: {}", values.join(", ")).unwrap();
    }
    let variable = arg.get_env().map(|name| name.to_str().unwrap().to_owned());
    Setting { flag, variable, default, meaning }
}

fn section(page: &mut String, heading: &str, about: &str, settings: &[Setting]) {
    write!(page, "\n{heading}\n").unwrap();
    if !about.is_empty() {
        write!(page, "\n{about}.\n").unwrap();
    }
    if settings.is_empty() {
        return;
    }
    if settings.iter().any(|setting| setting.variable.is_some()) {
        page.push_str("\n| variable | flag | default | meaning |\n|---|---|---|---|\n");
        for Setting { flag, variable, default, meaning } in settings {
            let variable = variable.as_ref().map(|name| format!("`{name}`")).unwrap_or_default();
            writeln!(page, "| {variable} | `{flag}` | {default} | {meaning} |").unwrap();
        }
    } else {
        page.push_str("\n| option | default | meaning |\n|---|---|---|\n");
        for Setting { flag, default, meaning, .. } in settings {
            writeln!(page, "| `{flag}` | {default} | {meaning} |").unwrap();
        }
    }
}

fn commands(page: &mut String, command: &Command, path: &str) {
    for sub in command.get_subcommands() {
        let path = format!("{path} {}", sub.get_name());
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let own = settings(sub);
        if sub.has_subcommands() {
            commands(page, sub, &path);
        } else {
            section(page, &format!("### `{path}`"), &wrapped(&cell(&about)), &own);
        }
    }
}

/// Breaks text into lines of at most 119 columns, because the caller appends a period.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() < 120 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
