//! The command line: the settings, and the one-shot commands with their options.

use clap::Parser;
use msg_common::config::{Check, name_problem};
use msg_common::kafka::Role;

use crate::commands::Command;
use crate::config::Config;

/// Stores the messages of a Kafka topic in PostgreSQL: each once, in order, none missing.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Cli {
    /// Command to run; without one, the service runs
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings, of which a command needs only some.
    #[command(flatten)]
    pub config: Config,
}

impl Check for Cli {
    fn problems(&self) -> Vec<String> {
        let config = &self.config;
        let mut problems = [config.kafka.problems(), config.log.problems()].concat();
        if matches!(self.command, Some(Command::Healthcheck)) {
            return problems;
        }
        let kafka_is_good = problems.is_empty();
        if !config.database.is_given() {
            problems.push("--database-url or --database-url-file is required".into());
        }
        problems.extend(config.database.problems());
        problems.extend(name_problem("--group-id", &config.consumer.group_id));
        match &self.command {
            None | Some(Command::Migrate | Command::Check(_)) => problems.extend(config.service_problems()),
            Some(Command::Purge(options)) => problems.extend(options.problems()),
            Some(Command::DeadLetters(command)) => problems.extend(command.problems()),
            Some(Command::Resume(options)) => problems.extend(options.problems()),
            Some(Command::Healthcheck | Command::Lag(_)) => {}
        }
        if kafka_is_good && problems.is_empty() {
            problems.extend(config.kafka.creation_problem(&config.consumer_config(), Role::Consumer));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msg_common::config::{LoadError, read};
    use std::ffi::OsString;

    fn read_words(words: &str) -> Result<Cli, LoadError> {
        read(words.split(' ').map(OsString::from))
    }

    #[test]
    fn default_settings_need_only_a_database() {
        let cli = read_words("msg-transfer --database-url postgres://localhost/x").expect("the defaults are valid");
        cli.config.consumer_config().config().create_native_config().expect("librdkafka knows each key and value");
    }

    #[test]
    fn setting_errors_name_every_problem() {
        let words = "msg-transfer --lanes 0 --batch-records 0 --session-timeout 1s --group-id= --kafka-topic=a/b";
        let Err(LoadError::Problems(problems)) = read_words(words) else { panic!("the settings are invalid") };
        assert_eq!(problems.len(), 7, "{problems:?}");
    }
}
