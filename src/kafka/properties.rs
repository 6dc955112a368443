//! Parses additional librdkafka settings from KAFKA_PROPERTIES and from a file, and reports their problems. A setting may
//! contain a password, and a comma in the password splits it into several entries. So a problem repeats no value, and no key
//! that may be a part of a password.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::security::WITH_OPENSSL;
use crate::config::hide_secrets;

/// Settings that the operator must not set, with all of their names: the guarantees depend on them, or the service has a
/// setting of its own for them.
const OURS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.size",
    "bootstrap.servers",
    "check.crcs",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    // A broker is always verified, with its host.
    "enable.ssl.certificate.verification",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "log.queue",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.max.bytes",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "request.required.acks",
    "request.timeout.ms",
    "session.timeout.ms",
    "socket.timeout.ms",
    "ssl.endpoint.identification.algorithm",
    // A mock cluster, which keeps its records only in memory.
    "test.mock.broker.rtt",
    "test.mock.num.brokers",
    "transactional.id",
];

/// Other names of the same setting. If a setting is given under two names, librdkafka uses the last value.
const ALIASES: &[(&str, &str)] = &[
    ("compression.codec", "compression.type"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("message.send.max.retries", "retries"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("sasl.mechanisms", "sasl.mechanism"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The setting, whose entries end at a comma or a line end.
    Setting,
    /// The file, with one on each line.
    File,
}

impl Source {
    fn flag(self) -> &'static str {
        match self {
            Source::Setting => "--kafka-properties",
            Source::File => "--kafka-properties-file",
        }
    }
}

/// The valid entries, and the problems of the others. It has no `Debug`, because an entry may be a password.
#[derive(Default)]
pub(super) struct Properties {
    /// Each setting once, under its usual name.
    pub(super) entries: Vec<(String, String)>,
    pub(super) problems: Vec<String>,
}

impl Properties {
    /// Returns the value of this key, by its usual name.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Adds the entries of this text.
    pub(super) fn read(&mut self, text: &str, source: Source) {
        let text = text.trim_start_matches('\u{feff}');
        let mut entries: Vec<(usize, &str)> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            match source {
                Source::File => entries.push((at + 1, line)),
                Source::Setting => {
                    for entry in line.split(',') {
                        entries.push((entries.len() + 1, entry));
                    }
                }
            }
        }
        // Whether the next entry may be the rest of a secret value that contains a comma.
        let mut secret_before = false;
        for (at, entry) in entries {
            let entry = entry.trim();
            if entry.is_empty() || (source == Source::File && entry.starts_with('#')) {
                continue;
            }
            let (kind, hint) = match source {
                Source::Setting => ("entry", "; a value with a comma belongs in a file: --kafka-properties-file"),
                Source::File => ("line", ""),
            };
            match self.entry(entry, source) {
                Ok(key) => secret_before = is_secret(&key),
                Err((Some(key), reason)) if !secret_before => {
                    self.problems.push(format!("{}: {kind} {at}, {key}: {reason}", source.flag()));
                    secret_before = !is_known(&key) || is_secret(&key);
                }
                Err((Some(key), reason)) if is_known(&key) => {
                    self.problems.push(format!("{}: {kind} {at}, {key}: {reason}", source.flag()));
                    secret_before = is_secret(&key);
                }
                Err((key, _)) => {
                    let reason = if key.is_some() {
                        "it has a key that librdkafka does not know"
                    } else {
                        "it is not key=value"
                    };
                    self.problems.push(format!("{}: {kind} {at}: {reason}{hint}", source.flag()));
                    secret_before = true;
                }
            }
        }
    }

    /// Adds an entry and returns its key. An error holds the key, if the entry has one, and the problem.
    fn entry(&mut self, entry: &str, source: Source) -> Result<String, (Option<String>, String)> {
        let Some((key, value)) = entry.split_once('=') else { return Err((None, String::new())) };
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || key.chars().any(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
            return Err((None, String::new()));
        }
        let wrong = |reason: String| Err((Some(key.to_owned()), reason));
        let usual = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, usual)| usual);
        if OURS.contains(&usual) {
            return wrong(format!("{usual} is set by the service"));
        }
        // Quotes in a file are part of the value. Quotes in a variable are usually a mistake in a shell or compose file.
        let quoted =
            value.len() > 1 && ['"', '\''].iter().any(|quote| value.starts_with(*quote) && value.ends_with(*quote));
        if quoted && source == Source::Setting {
            return wrong("the value is in quotes, which would be a part of it: remove them".to_owned());
        }
        if value.is_empty() {
            return wrong("it has no value".to_owned());
        }
        if let Some(reason) = rejection(usual, value) {
            return wrong(reason);
        }
        if self.entries.iter().any(|(known, _)| known == usual) {
            return wrong("it is given twice".to_owned());
        }
        self.entries.push((usual.to_owned(), value.to_owned()));
        Ok(usual.to_owned())
    }
}

/// Returns why librdkafka rejects this value.
fn rejection(key: &str, value: &str) -> Option<String> {
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some("librdkafka has no such setting".to_owned())
        }
        // The text of the error repeats the value.
        Err(_) if is_secret(key) => Some("librdkafka rejects the value".to_owned()),
        Err(KafkaError::ClientConfig(_, reason, ..)) if reason.contains("OpenSSL not available at build time") => {
            Some(format!("{reason}: {WITH_OPENSSL}"))
        }
        Err(KafkaError::ClientConfig(_, reason, ..)) => Some(reason),
        Err(error) => Some(error.to_string()),
    }
}

fn is_known(key: &str) -> bool {
    let created = ClientConfig::new().set(key, "").create_native_config();
    !matches!(created, Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)))
}

/// Returns whether the value of this key is a secret.
pub(super) fn is_secret(key: &str) -> bool {
    ["password", "secret", "key.pem", "token", "oauthbearer.config", "jaas", "assertion"]
        .iter()
        .any(|part| key.contains(part))
}

/// Returns the problems of the addresses of brokers, whose clients use this `security.protocol`.
pub(super) fn broker_problems(brokers: &str, protocol: &str) -> Vec<String> {
    let entries: Vec<&str> = brokers.split(',').collect();
    let of = |(at, entry): (usize, &&str)| {
        let reason = broker_problem(entry, protocol)?;
        let which = if entries.len() > 1 { format!(" entry {}", at + 1) } else { String::new() };
        Some(format!("--kafka-brokers:{which} `{}`: {reason}", hide_secrets(entry)))
    };
    entries.iter().enumerate().filter_map(of).collect()
}

fn broker_problem(entry: &str, protocol: &str) -> Option<String> {
    const FORM: &str = "give host:port, such as kafka-1:9092";
    let address = match entry.split_once("://") {
        Some((scheme, address)) => {
            let protocols = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
            if !protocols.iter().any(|protocol| protocol.eq_ignore_ascii_case(scheme)) {
                return Some(format!("{scheme}:// is not a protocol of Kafka: {FORM}"));
            }
            // librdkafka would only log that, and ignore this address and those after it.
            if !scheme.eq_ignore_ascii_case(protocol) {
                return Some(format!("{scheme}:// is another protocol than {protocol}, which is configured: {FORM}"));
            }
            address
        }
        None => entry,
    };
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        Some(_) => return Some(format!("an IPv6 address needs brackets: {FORM}, or [::1]:9092")),
        None => (address, None),
    };
    if host.is_empty() {
        return Some(format!("it has no host: {FORM}"));
    }
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match name {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')),
    };
    if !good {
        return Some(format!("it is not a host name: {FORM}"));
    }
    match port.map(str::parse::<u16>) {
        Some(Ok(0) | Err(_)) => Some(format!("the port must be 1 to 65535: {FORM}")),
        Some(Ok(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, source: Source) -> Properties {
        let mut properties = Properties::default();
        properties.read(text, source);
        properties
    }

    #[test]
    fn file_values_may_hold_commas_and_quotes() {
        let text = "\u{feff}# who we are\r\nsasl.username = me\r\n\r\n  sasl.password=se,cret=\"x\" \r\ncompression.codec=lz4\n";
        let found = read(text, Source::File);
        assert_eq!(found.problems, Vec::<String>::new());
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected =
            [entry("sasl.username", "me"), entry("sasl.password", "se,cret=\"x\""), entry("compression.type", "lz4")];
        assert_eq!(found.entries, expected);
    }

    #[test]
    fn no_part_of_a_password_is_repeated() {
        for text in [
            "sasl.password=hun,ter",
            "sasl.password=hun,ter=hun",
            "sasl.password=hun,ter=hun,ter2=x,hun=ter",
            "sasl.pasword=hun,ter=hun",
            "hunter",
            "\"sasl.password=hunter\"",
            "'sasl.password'='hunter'",
            "sasl.password='hunter'",
            "sasl.jaas.config=org.Plain required username=\"ter\" password=\"hunter\";",
            "ssl.key.pem=-----BEGIN\nhunter=x",
            "=hunter",
        ] {
            for source in [Source::Setting, Source::File] {
                let found = read(text, source);
                let good = source == Source::File && (text.starts_with("sasl.password="));
                assert_eq!(found.problems.is_empty(), good, "{text}: {:?}", found.problems);
                assert!(
                    !found.problems.iter().any(|text| text.contains("hun") || text.contains("ter=")),
                    "{:?}",
                    found.problems
                );
            }
        }
    }

    #[test]
    fn invalid_entries_are_reported_with_the_reason() {
        for (text, key, reason) in [
            ("linger.mss=5", "linger.mss", "has no such"),
            ("acks=1", "acks", "set by the service"),
            ("request.required.acks=1", "request.required.acks", "set by the service"),
            ("fetch.message.max.bytes=1", "fetch.message.max.bytes", "set by the service"),
            ("compression.type=best", "compression.type", "best"),
            ("linger.ms=-5", "linger.ms", "range"),
            ("linger.ms=1,queue.buffering.max.ms=2", "queue.buffering.max.ms", "twice"),
            ("client.id=", "client.id", "no value"),
            ("client.id='x'", "client.id", "quotes"),
            ("sasl.password=a,b,acks=1", "acks", "set by the service"),
        ] {
            let found = read(text, Source::Setting).problems;
            assert!(found.iter().any(|text| text.contains(key) && text.contains(reason)), "{text}: {found:?}");
        }
    }

    #[test]
    fn brokers_are_hosts_and_ports() {
        for good in ["a", "a:1", "a:9092,b.c:65535", "[::1]:9092", "PLAINTEXT://a:1"] {
            assert_eq!(broker_problems(good, "plaintext"), Vec::<String>::new(), "{good}");
        }
        assert_eq!(broker_problems("sasl_ssl://a:1,b:1", "SASL_SSL"), Vec::<String>::new());
        let other = broker_problems("a:1,PLAINTEXT://b:1", "sasl_ssl");
        assert!(other.len() == 1 && other[0].contains("entry 2"), "{other:?}");
        for bad in [
            "",
            "a:0",
            "a:70000",
            "a:",
            ":9092",
            "a:9092,",
            "http://a:1",
            "'a:1'",
            "a b:1",
            "::1:9092",
            "a:1;b:1",
            "[x]:1",
        ] {
            assert_eq!(broker_problems(bad, "plaintext").len(), 1, "{bad}");
        }
    }
}
