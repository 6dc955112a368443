//! The commands that the audit log has: those that change something, and those that show messages.

use std::fmt::Display;
use std::time::Duration;

use msg_common::audit;

use super::dead_letters::{self, Filter};
use super::output::rfc3339;
use super::{Command, purge, resume};

/// The options of a command, as the audit log has them. An inbox is not one of them.
#[derive(Default)]
struct Options(Vec<String>);

impl Options {
    fn value(mut self, name: &str, value: Option<impl Display>) -> Self {
        self.0.extend(value.map(|value| format!("--{name} {value}")));
        self
    }

    fn each(mut self, name: &str, values: &[impl Display]) -> Self {
        self.0.extend(values.iter().map(|value| format!("--{name} {value}")));
        self
    }

    fn flag(mut self, name: &str, given: bool) -> Self {
        self.0.extend(given.then(|| format!("--{name}")));
        self
    }

    /// In seconds: larger units are rounded or have several forms.
    fn age(self, older_than: Duration) -> Self {
        self.value("older-than", Some(format!("{}s", older_than.as_secs())))
    }

    fn filter(self, filter: &Filter) -> Self {
        self.each("topic-partition", &filter.partitions)
            .value("offset", filter.offset)
            .value("reason", filter.reason)
            .value("since", filter.since.map(rfc3339))
            .value("until", filter.until.map(rfc3339))
            .flag("not-replayed", filter.not_replayed)
            .value("limit", filter.limit)
    }

    fn command(self, method: &'static str, inbox: Option<&String>) -> Option<audit::Command> {
        Some(audit::Command { method, inbox: inbox.cloned(), options: self.0.join(" ") })
    }
}

/// Returns what the audit log has of a command. `None` if the command changes nothing and shows no message.
pub(super) fn audited(command: &Command) -> Option<audit::Command> {
    match command {
        Command::Healthcheck | Command::Check(_) | Command::Lag(_) => None,
        Command::Migrate => Options::default().command("msg-transfer migrate", None),
        Command::Purge(purge::Options { older_than, dry_run, dead_letters, .. }) => Options::default()
            .age(*older_than)
            .flag("dead-letters", *dead_letters)
            .flag("dry-run", *dry_run)
            .command("msg-transfer purge", None),
        Command::Resume(resume::Options { partitions, all, .. }) => Options::default()
            .each("topic-partition", partitions)
            .flag("all", *all)
            .command("msg-transfer resume", None),
        Command::DeadLetters(command) => of_dead_letters(command),
    }
}

fn of_dead_letters(command: &dead_letters::Command) -> Option<audit::Command> {
    let filtered = |filter| Options::default().filter(filter);
    match command {
        dead_letters::Command::List(list) => {
            filtered(&list.filter).command("msg-transfer dead-letters list", list.filter.recv_id.as_ref())
        }
        dead_letters::Command::Show(show) => Options::default()
            .value("topic-partition", Some(show.partition))
            .value("offset", Some(show.offset))
            .flag("content", show.content)
            .command("msg-transfer dead-letters show", None),
        dead_letters::Command::Export(export) => {
            filtered(&export.filter).command("msg-transfer dead-letters export", export.filter.recv_id.as_ref())
        }
        dead_letters::Command::Replay(replay) => filtered(&replay.filter)
            .flag("all", replay.all)
            .flag("again", replay.again)
            .flag("dry-run", replay.dry_run)
            .command("msg-transfer dead-letters replay", replay.filter.recv_id.as_ref()),
        dead_letters::Command::Discard(discard) => filtered(&discard.filter)
            .age(discard.older_than)
            .flag("dry-run", discard.dry_run)
            .command("msg-transfer dead-letters discard", discard.filter.recv_id.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn of(words: &str) -> Option<audit::Command> {
        let cli = Cli::try_parse_from(["msg-transfer"].into_iter().chain(words.split(' '))).expect("it is valid");
        audited(&cli.command.expect("it is given"))
    }

    #[test]
    fn commands_that_change_or_show_messages_are_audited() {
        for words in ["healthcheck", "check", "lag"] {
            assert_eq!(of(words), None, "{words}");
        }
        for (words, method, options) in [
            ("migrate", "migrate", ""),
            ("purge --older-than 90days --dry-run", "purge", "--older-than 7776000s --dry-run"),
            ("resume --topic-partition 3 --topic-partition 5", "resume", "--topic-partition 3 --topic-partition 5"),
            ("dead-letters list --limit 2", "dead-letters list", "--limit 2"),
            ("dead-letters show 1 7 --content", "dead-letters show", "--topic-partition 1 --offset 7 --content"),
            ("dead-letters export --reason INVALID", "dead-letters export", "--reason INVALID"),
            ("dead-letters replay --all --again", "dead-letters replay", "--all --again"),
            (
                "dead-letters discard --reason INVALID --until 2026-11-23T10:00:00Z --older-than 1h",
                "dead-letters discard",
                "--reason INVALID --until 2026-11-23T10:00:00.000Z --older-than 3600s",
            ),
        ] {
            let found = of(words).expect(words);
            assert_eq!((found.method, found.options.as_str()), (&*format!("msg-transfer {method}"), options));
        }
    }

    #[test]
    fn inbox_is_no_option_of_the_line() {
        let found = of("dead-letters list --recv-id alice --not-replayed").expect("it shows inboxes");
        assert_eq!((found.inbox.as_deref(), found.options.as_str()), (Some("alice"), "--not-replayed"));
    }
}
