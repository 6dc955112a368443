//! Explains to the operator why Kafka cannot be used at present, and what to do about it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::watch;

use super::tls_probe::{self, Problem};

/// How long an error counts as a cause. librdkafka repeats a lasting error more often than that.
const VALID_FOR: Duration = Duration::from_secs(60);

/// How long the first of several causes of the same weight counts. While two brokers fail in different ways, their errors
/// alternate.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// How long to wait until it is known what is wrong with a broker's certificate. A broker usually responds much sooner.
const PROBED_WITHIN: Duration = Duration::from_secs(3);

/// The cause with the highest weight among the errors that a client's error callback received. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Causes(Arc<State>);

#[derive(Debug, Default)]
struct State {
    noted: Mutex<Option<Noted>>,
    /// Whether a thread finds out what is wrong with a broker's certificate.
    probing: watch::Sender<bool>,
}

#[derive(Debug)]
struct Noted {
    /// When the error last occurred.
    seen: Instant,
    /// When this cause replaced the previous one.
    since: Instant,
    weight: u8,
    text: String,
}

impl Causes {
    /// Notes an error of a client, with librdkafka's own text.
    pub fn note(&self, error: &KafkaError, detail: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let Some((weight, text)) = explain(code, detail) else { return };
        self.keep(weight, text);
        if code == Code::SSL && is_unverified(detail) {
            self.probe(detail);
        }
    }

    fn keep(&self, weight: u8, text: String) {
        let now = Instant::now();
        let mut noted = self.noted();
        match &mut *noted {
            Some(old) if old.text == text => old.seen = now,
            Some(old)
                if now - old.seen < VALID_FOR
                    && (old.weight > weight || old.weight == weight && now - old.since < KEPT_FOR) => {}
            _ => *noted = Some(Noted { seen: now, since: now, weight, text }),
        }
    }

    /// Returns the cause, if its error occurred within the last minute.
    pub fn recent(&self) -> Option<String> {
        self.noted().as_ref().filter(|noted| noted.seen.elapsed() < VALID_FOR).map(|noted| noted.text.clone())
    }

    /// Waits until it is known what is wrong with a broker's certificate, if that is being found out. A command reports the
    /// first error that it receives.
    pub async fn probed(&self) {
        let mut probing = self.0.probing.subscribe();
        // Without a result, the cause that names all of these problems stays.
        let _ = tokio::time::timeout(PROBED_WITHIN, probing.wait_for(|probing| !probing)).await;
    }

    /// Notes what is wrong with the certificate of the broker that the text names, as soon as it is known. Does not block:
    /// the caller is a callback of librdkafka.
    fn probe(&self, detail: &str) {
        if self.0.probing.send_replace(true) {
            return;
        }
        let (causes, detail) = (self.clone(), detail.to_owned());
        let probe = move || {
            let found = tls_probe::problem(&detail);
            if let Some(problem) = found {
                causes.keep(CERTIFICATE_WEIGHT, format!("{}: {}", lasting(&detail), certificate_fix(problem)));
            }
            causes.0.probing.send_replace(false);
        };
        // Without a thread, the cause that names all of these problems stays.
        if thread::Builder::new().name("tls-probe".into()).spawn(probe).is_err() {
            self.0.probing.send_replace(false);
        }
    }

    fn noted(&self) -> MutexGuard<'_, Option<Noted>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the text of the error, and what to do if that is known.
pub fn describe(error: &KafkaError) -> String {
    let explained = error.rdkafka_error_code().and_then(|code| explain(code, ""));
    // The text of a lost connection is the client's own: it says more than the code.
    explained.filter(|(weight, _)| *weight > 1).map_or_else(|| error.to_string(), |(_, text)| text)
}

/// Returns the text of a code with a detail, and what to do if that is known.
pub(super) fn describe_with(code: Code, detail: &str) -> String {
    explain(code, detail).map_or_else(|| detail.to_owned(), |(_, text)| text)
}

/// Returns the weight and the text of a cause. The closer a cause is to the setting that the operator must fix, the higher
/// is its weight.
fn explain(code: Code, detail: &str) -> Option<(u8, String)> {
    let detail = lasting(detail);
    let (weight, fix) = match code {
        // Also the reason why a broker refuses the previous token.
        Code::Authentication if detail.starts_with("no OAUTHBEARER token") => (
            4,
            "without a token no client can log in to Kafka; the token comes from what the KAFKA_OAUTH_ settings name",
        ),
        Code::Authentication | Code::SaslAuthenticationFailed
            if detail.contains("invalid_token") || detail.contains("OAUTHBEARER") =>
        {
            (
                3,
                "Kafka refuses the token; compare its issuer, audience and expiry with the brokers' sasl.oauthbearer settings, and check what the KAFKA_OAUTH_ settings name",
            )
        }
        Code::Authentication | Code::SaslAuthenticationFailed => (
            3,
            "Kafka refuses the user or the password; correct sasl.username, sasl.password and sasl.mechanism: KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD_FILE and KAFKA_SASL_MECHANISM, or --kafka-properties or its file",
        ),
        Code::UnsupportedSASLMechanism => (
            3,
            "the brokers do not have this SASL mechanism; correct KAFKA_SASL_MECHANISM, or sasl.mechanism in --kafka-properties",
        ),
        Code::TopicAuthorizationFailed => (
            3,
            "the Kafka user lacks a right on the topic; grant it what docs/rights.md lists: DESCRIBE and DESCRIBE_CONFIGS, and READ (msg-transfer) or WRITE (msg-gateway)",
        ),
        Code::GroupAuthorizationFailed => (
            3,
            "the Kafka user lacks a right on the consumer group; grant it READ and DESCRIBE on the group of --group-id",
        ),
        Code::ClusterAuthorizationFailed => {
            (3, "the Kafka user lacks a right on the cluster; grant it what docs/rights.md lists")
        }
        Code::InconsistentGroupProtocol => (
            3,
            "another program is a member of the group and uses another assignor; give it a group of its own, or this service another --group-id",
        ),
        Code::InvalidSessionTimeout => (
            3,
            "the brokers do not accept --session-timeout; it must be between their group.min.session.timeout.ms and group.max.session.timeout.ms",
        ),
        Code::GroupMaxSizeReached => (3, "the group has as many members as the brokers' group.max.size allows"),
        Code::InvalidGroupId => (3, "the brokers do not accept --group-id"),
        Code::SSL => (3, tls_fix(detail)),
        // With TLS 1.3, a broker refuses the client's certificate after the handshake, and librdkafka reports it as a lost
        // connection.
        Code::BrokerTransportFailure if detail.contains("SSL alert number") => (3, tls_fix(detail)),
        Code::UnknownTopicOrPartition | Code::UnknownTopic => {
            (2, "the topic does not exist; create it, or correct --kafka-topic")
        }
        Code::CoordinatorNotAvailable => (
            2,
            "the group has no coordinator; start the brokers with the replicas of that partition, and give its topic several replicas",
        ),
        Code::Resolve => (
            2,
            "a broker's address does not resolve on this machine; correct --kafka-brokers, the broker's advertised.listeners, or the name service",
        ),
        Code::BrokerTransportFailure => (
            1,
            "a broker cannot be reached; check that it runs, its advertised.listeners, security.protocol, and the network",
        ),
        Code::AllBrokersDown => (0, "no broker can be reached; check --kafka-brokers, and that they run"),
        _ => return None,
    };
    let what = if detail.is_empty() { code.to_string() } else { detail.to_owned() };
    Some((weight, format!("{what}: {fix}")))
}

/// Removes the duration and the number of the attempts, which differ each time.
fn lasting(detail: &str) -> &str {
    detail.split(" (after ").next().unwrap_or_default().trim()
}

/// The weight of what is wrong with a broker's certificate: more than that of a certificate that is not accepted.
const CERTIFICATE_WEIGHT: u8 = 4;

fn certificate_fix(problem: Problem) -> &'static str {
    match problem {
        Problem::OtherHost => {
            "the broker's certificate is for another host; connect to the host that the certificate names, or give the broker a certificate for its advertised.listeners"
        }
        Problem::OtherCa => {
            "the broker's certificate is for this host, but its CA is not trusted; give its CA with KAFKA_SSL_CA_FILE"
        }
        Problem::Expired => "the broker's certificate has expired; give the broker a new one",
    }
}

/// Returns whether OpenSSL's text says that it did not accept the broker's certificate. It does not say why.
fn is_unverified(detail: &str) -> bool {
    detail.contains("certificate verify failed") || detail.contains("0A000086")
}

/// Returns what to do about a TLS handshake that failed, by OpenSSL's text.
fn tls_fix(detail: &str) -> &'static str {
    if is_unverified(detail) {
        "the broker's certificate is not trusted, or is for another host; give its CA with KAFKA_SSL_CA_FILE, and connect to the host that the certificate names"
    } else if detail.contains("alert") || detail.contains("unexpected message") {
        "the broker refuses the client's certificate; correct KAFKA_SSL_CERT_FILE and KAFKA_SSL_KEY_FILE"
    } else {
        "TLS to Kafka fails; check KAFKA_SECURITY_PROTOCOL and the certificates: KAFKA_SSL_CA_FILE, KAFKA_SSL_CERT_FILE and KAFKA_SSL_KEY_FILE, or --kafka-properties"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_with_the_highest_weight_counts() {
        let causes = Causes::default();
        assert_eq!(causes.recent(), None);
        let note = |code, detail| causes.note(&KafkaError::Global(code), detail);
        note(Code::AllBrokersDown, "1/1 brokers are down");
        assert!(causes.recent().is_some_and(|cause| cause.starts_with("1/1 brokers are down: no broker")));
        note(Code::Authentication, "a:1/bootstrap: SASL authentication error: wrong (after 5ms in state AUTH_REQ)");
        note(Code::Authentication, "b:1/bootstrap: SASL authentication error: wrong (after 7ms in state AUTH_REQ)");
        note(Code::AllBrokersDown, "1/1 brokers are down");
        note(Code::MessageTimedOut, "a record");
        let cause = causes.recent().expect("there is one");
        assert!(cause.starts_with("a:1/bootstrap: SASL authentication error: wrong: Kafka refuses"), "{cause}");
    }

    #[test]
    fn refused_client_certificate_is_no_lost_connection() {
        let causes = Causes::default();
        let detail = "ssl://a:1/bootstrap: Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116 (after 3ms in state APIVERSION_QUERY)";
        causes.note(&KafkaError::Global(Code::BrokerTransportFailure), detail);
        let cause = causes.recent().expect("there is one");
        assert!(cause.contains("number 116: the broker refuses the client's certificate"), "{cause}");
    }

    #[test]
    fn missing_token_counts_more_than_the_refused_old_one() {
        let causes = Causes::default();
        let note = |detail| causes.note(&KafkaError::Global(Code::Authentication), detail);
        note("a:1/bootstrap: SASL authentication error: {\"status\":\"invalid_token\"} (after 5ms in state AUTH_REQ)");
        assert!(causes.recent().is_some_and(|cause| cause.contains("Kafka refuses the token")));
        note("no OAUTHBEARER token: --kafka-oauth-token-url: cannot connect");
        let cause = causes.recent().expect("there is one");
        assert!(cause.contains("cannot connect: without a token no client can log in"), "{cause}");
    }
}
