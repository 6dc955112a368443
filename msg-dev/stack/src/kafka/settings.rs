//! Owns the settings of a broker of the stack.

use std::path::Path;

use super::{BETWEEN_BROKERS, Broker, Leg, secure};
use crate::ports::Port;

/// Logs warnings, and what `Kafka` itself logs at start and stop, to standard output: the broker's log file.
pub(super) const LOG4J: &str = r#"<Configuration status="WARN" shutdownHook="disable">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"#;

/// The listener where users log in.
const USERS: &str = "USERS";

/// Returns the settings for users: Kafka's own authorizer decides what each user may do. A client without a user, such
/// as a broker, may do everything.
pub(super) fn users(broker: &Broker, users: &[(String, String)]) -> Vec<(String, String)> {
    if broker.users.is_none() {
        return Vec::new();
    }
    let login = plain_login(users);
    let settings = [
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:ANONYMOUS"),
        ("sasl.enabled.mechanisms", "PLAIN"),
    ];
    let networks = broker.legs.iter().filter(|leg| requires_login(broker, leg)).map(|leg| leg.network.as_str());
    let logins = networks.chain([USERS]).map(|listener| {
        (format!("listener.name.{}.plain.sasl.jaas.config", listener.to_ascii_lowercase()), login.clone())
    });
    settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().chain(logins).collect()
}

/// Returns the login module that knows these users and passwords.
pub(super) fn plain_login(users: &[(String, String)]) -> String {
    let known: String = users.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
    format!("org.apache.kafka.common.security.plain.PlainLoginModule required{known};")
}

pub(super) fn requires_login(broker: &Broker, leg: &Leg) -> bool {
    broker.users.is_some() && leg.network != BETWEEN_BROKERS
}

pub(super) fn server_properties(broker: &Broker, voters: &[String], data: &Path, more: &[(String, String)]) -> String {
    let (replicas, in_sync) = if voters.len() == 1 { (1, 1) } else { (3, 2) };
    let Broker { id, client, controller, legs, users, secure, .. } = broker;
    let listeners = |port: fn(&Leg) -> &Port| {
        legs.iter().map(move |leg| format!(",{}://{}", leg.network, port(leg))).collect::<String>()
    };
    let protocol = |leg: &Leg| match (requires_login(broker, leg), secure) {
        (false, _) => "PLAINTEXT",
        (true, None) => "SASL_PLAINTEXT",
        (true, Some(_)) => "SASL_SSL",
    };
    let mut protocols: String = legs.iter().map(|leg| format!(",{}:{}", leg.network, protocol(leg))).collect();
    let mut at = users.as_ref().map_or_else(String::new, |port| format!(",{USERS}://{port}"));
    if users.is_some() {
        protocols.push_str(&format!(",{USERS}:SASL_PLAINTEXT"));
    }
    if let Some(ports) = secure {
        at.push_str(&ports.listeners());
        protocols.push_str(&format!(",{}:SASL_SSL,{}:SSL", secure::LOGIN, secure::CERTIFICATE));
    }
    let between = if legs.iter().any(|leg| leg.network == BETWEEN_BROKERS) { BETWEEN_BROKERS } else { "PLAINTEXT" };
    let settings: [(&str, String); 24] = [
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", id.to_string()),
        ("controller.quorum.voters", voters.join(",")),
        ("listeners", format!("PLAINTEXT://{client},CONTROLLER://{controller}{}{at}", listeners(|leg| &leg.behind))),
        ("advertised.listeners", format!("PLAINTEXT://{client}{}{at}", listeners(|leg| &leg.front))),
        ("listener.security.protocol.map", format!("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}")),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("inter.broker.listener.name", between.to_owned()),
        ("log.dirs", data.display().to_string()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("default.replication.factor", replicas.to_string()),
        ("min.insync.replicas", in_sync.to_string()),
        ("offsets.topic.replication.factor", replicas.to_string()),
        // Fewer than Kafka's 50, which need more than a second to create when the first group joins.
        ("offsets.topic.num.partitions", "8".to_owned()),
        ("transaction.state.log.replication.factor", replicas.to_string()),
        ("transaction.state.log.min.isr", in_sync.to_string()),
        ("transaction.state.log.num.partitions", "8".to_owned()),
        ("share.coordinator.state.topic.replication.factor", replicas.to_string()),
        ("share.coordinator.state.topic.min.isr", in_sync.to_string()),
        // Kafka's wait of 3 s for more members would slow every test that starts a consumer.
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        // Tests use short sessions, so that the group expels a dead consumer soon.
        ("group.min.session.timeout.ms", "1000".to_owned()),
        // The controller accepts a killed broker again only when the session of its predecessor has expired. Kafka's 9
        // s would slow every test of a crash.
        ("broker.session.timeout.ms", "3000".to_owned()),
        ("broker.heartbeat.interval.ms", "500".to_owned()),
    ];
    let settings = settings.iter().map(|(key, value)| format!("{key}={value}\n"));
    settings.chain(more.iter().map(|(key, value)| format!("{key}={value}\n"))).collect()
}
