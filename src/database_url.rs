//! Parses the URL of a database. A problem repeats no part of the URL: the URL contains a password, and in an invalid URL
//! the password may be anywhere.

mod encryption;
mod options;

use std::error::Error;
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};

pub(crate) use self::encryption::{Encryption, Verify};

use crate::config::SettingError;

const FORM: &str = "give postgres://user:password@host:5432/name, in whose password other characters than letters, digits, `-`, \
                    `.`, `_` and `~` are percent-encoded";

/// The settings of a URL.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseUrl {
    pub(crate) config: Config,
    pub(crate) encryption: Encryption,
}

impl DatabaseUrl {
    /// Returns whether connections leave this machine without TLS.
    pub(crate) fn is_exposed(&self) -> bool {
        self.encryption == Encryption::Plain && encryption::is_remote(&self.config)
    }
}

/// Returns the settings of the URL that `setting` gives, or its problem.
pub(crate) fn parse(setting: &'static str, url: &str) -> Result<DatabaseUrl, SettingError> {
    let invalid = |problem| SettingError::Invalid { setting, problem };
    let (rest, options) = options::take(url);
    let mut config = Config::from_str(&rest).map_err(|error| {
        let reason = error.source().map(ToString::to_string).unwrap_or_default();
        // The driver's other texts repeat parts of the URL.
        let problem = match reason.strip_prefix("invalid value for option ") {
            Some(option) => format!("the value of {option} cannot be used"),
            None if reason.starts_with("unknown option") => "it has an option that the driver does not know".to_owned(),
            None => "it is not a URL".to_owned(),
        };
        invalid(format!("{problem}; {FORM}"))
    })?;
    let odd = |host: &str| {
        host.is_empty() || host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '@'))
    };
    // The driver would use a part of the password as the host, which errors name.
    if is_ambiguous(url) {
        return Err(invalid(format!("it has an @ after its host; {FORM}")));
    }
    let hosts = config.get_hosts();
    if hosts.is_empty() && config.get_hostaddrs().is_empty() {
        return Err(invalid(format!("it names no host; {FORM}")));
    }
    if hosts.iter().any(|host| matches!(host, Host::Tcp(name) if odd(name))) {
        return Err(invalid(format!("the host is no name of a host; {FORM}")));
    }
    if config.get_ports().contains(&0) {
        return Err(invalid("the port must be 1 to 65535".to_owned()));
    }
    let encryption = Encryption::of(options, &config).map_err(invalid)?;
    // The driver gets a socket that is ready for the login: encrypted already, or plain on purpose. With these two values it
    // neither requests TLS nor sends anything else before the login.
    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    Ok(DatabaseUrl { config, encryption })
}

/// Returns whether an `@` follows the one that ends the credentials: the password has one that is not percent-encoded.
fn is_ambiguous(url: &str) -> bool {
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let host = url.split_once('@').map_or("", |(_, rest)| rest.split('?').next().unwrap_or(rest));
    is_url && host.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_url_is_rejected_without_repeating_any_part() {
        for url in [
            "postgres://app:hunter@host:70000/x",
            "postgres://app:hunter@host:0/x",
            "postgres://app:hunter@host/x?hunter=hunter",
            "postgres://app:hunter@host/x?sslmode=require",
            "postgres://app:hunter@host/x?sslmode=hunter",
            "host=h sslmode=hunter user=u",
            "postgres://app:hunter@host/x?sslcert=hunter",
            "postgres://app:hunter@host/x?connect_timeout=hunter",
            "\"postgres://app:hunter@host/x\"",
            "'postgres://app:hunter@host/x'",
            "http://app:hunter@host/x",
            "app:hunter@host/x",
            "postgres://app:x@hunter/x@host/x",
            "postgres://app:x@hunter:5432/x@host/x?sslmode=disable",
            "postgres://app:x@hunter@host/x",
            "host=h password=hun ter=hunter",
            "host=h password='hunter",
            "postgres:///x?user=hunter",
            "hunter",
            "",
        ] {
            let problem = parse("--database-url", url).expect_err(url).to_string();
            assert!(problem.starts_with("--database-url: "), "{url}: {problem}");
            assert!(!problem.contains("hun") && !problem.contains("ter="), "{url}: {problem}");
        }
    }

    #[test]
    fn usual_urls_are_accepted() {
        for url in [
            "postgres://app:p%40ss@host/x",
            "postgres://app:p/s?s:w#rd=x&y,z@host/x",
            "postgres://app:x@host/x?application_name=a@b",
            "postgresql://a,b:5433/x?target_session_attrs=read-write",
            "postgres://app@%2Fvar%2Frun%2Fpostgresql/x",
            "postgres://app@[::1]:5432/x?sslmode=disable",
            "host=/tmp user=app dbname=x",
        ] {
            parse("--database-url", url).expect(url);
        }
    }
}
