//! Logins and TLS to Kafka: each mechanism carries messages with the documented rights, and what is wrong is named.

use std::path::Path;
use std::time::SystemTime;

use msg_common::proto::SendMsgRequest;
use msg_common::proto::WaitFor;
use msg_stack::kafka::rights::password;
use msg_stack::{BrokerTls, Operation, Resource, Right, Service, ServiceSpec, Stack, StackOptions, TokenIssuer};

use super::hang_up;
use crate::gateway::calls::client;
use crate::process::causes::assert_all_report;
use crate::process::readiness;
use crate::support::certificates::Ca;
use crate::support::kafka::msg;
use crate::support::world::{Gateway, World};
use crate::support::{ensure, eventually};
use crate::transfer::commands::{run, run_with};
use crate::transfer::topics::recreate_topic;

pub(super) const USER: &str = "app";
/// The brokers' address, which their certificate names.
pub(super) const BROKER: &str = "127.0.0.1";

/// A cluster with logins, TLS and an authorizer, and the files that a client needs.
pub(super) struct Secure {
    pub(super) stack: Stack,
    pub(super) world: World,
    folder: tempfile::TempDir,
    pub(super) ca: Ca,
}

/// The settings of a service.
pub(super) type Settings = Vec<(&'static str, String)>;

impl Secure {
    /// Starts a cluster whose certificate names `host`. The user has the rights of both services.
    pub(super) async fn start(name: &str, host: &str) -> Secure {
        Secure::start_with(name, host, None).await
    }

    /// Starts a cluster that also accepts tokens of this issuer.
    pub(super) async fn start_with_tokens(name: &str, host: &str, issuer: TokenIssuer) -> Secure {
        Secure::start_with(name, host, Some(issuer)).await
    }

    async fn start_with(name: &str, host: &str, tokens: Option<TokenIssuer>) -> Secure {
        let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().unwrap();
        let ca = Ca::new("brokers");
        let broker = ca.sign(&[host]);
        let mut options = StackOptions::new(folder.path().join("stack"));
        options.cluster.users = vec![USER.into()];
        options.cluster.tls = Some(BrokerTls { certificate: broker.certificate, key: broker.key, client_ca: ca.pem() });
        options.cluster.tokens = tokens;
        let stack = Stack::start(options).await.unwrap();
        let world = World::on(&stack, name, 4);
        world.create(&stack).await;
        run(&world, "migrate").await.assert_code(0);
        let secure = Secure { stack, world, folder, ca };
        secure.stack.kafka().grant(secure.rights(USER)).await.unwrap();
        secure.write("ca.crt", &secure.ca.pem());
        secure.write("password", &format!("{}\n", password(USER)));
        secure
    }

    /// The rights of both services.
    fn rights(&self, user: &str) -> Vec<Right> {
        let name = self.world.topic();
        let (topic, hints) = (Resource::Topic(name.into()), Resource::Topic(format!("{name}-hints")));
        let (group, reader) = (Resource::Group(name.into()), Resource::Group("msg-gateway-hints".into()));
        let rights = [
            (Operation::Write, topic.clone()),
            (Operation::Read, topic.clone()),
            (Operation::DescribeConfigs, topic),
            (Operation::Write, hints.clone()),
            (Operation::Read, hints.clone()),
            (Operation::DescribeConfigs, hints),
            (Operation::Read, group),
            (Operation::Read, reader),
        ];
        rights.map(|(operation, resource)| Right::new(user, operation, resource)).to_vec()
    }

    /// Starts a gateway and a transfer with these settings.
    pub(super) async fn services(&self, name: &str, settings: &Settings) -> (Gateway, Service) {
        let configure = |spec: ServiceSpec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
        let (gateway, transfer) = (self.world.gateway(name, configure), self.world.transfer(name, configure));
        gateway.service.start().await.unwrap();
        transfer.start().await.unwrap();
        (gateway, transfer)
    }

    pub(super) async fn stop(&self, services: [&Service; 2]) {
        for service in services {
            assert!(service.stop().await.unwrap().success());
        }
        self.stack.stop().await;
    }

    /// Writes a file and returns its path.
    pub(super) fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        self.path(&path)
    }

    pub(super) fn path(&self, path: &Path) -> String {
        self.folder.path().join(path).to_str().unwrap().to_owned()
    }

    /// The settings of a login over TLS.
    pub(super) fn login(&self, mechanism: &str) -> Settings {
        vec![
            ("KAFKA_BROKERS", self.stack.kafka().bootstrap_with_login()),
            ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL".into()),
            ("KAFKA_SASL_MECHANISM", mechanism.into()),
            ("KAFKA_SASL_USERNAME", USER.into()),
            ("KAFKA_SASL_PASSWORD_FILE", self.path(Path::new("password"))),
            ("KAFKA_SSL_CA_FILE", self.path(Path::new("ca.crt"))),
        ]
    }

    /// The settings of a client that logs in with a certificate.
    fn certificate(&self) -> Settings {
        let pair = self.ca.sign_for(USER, &[USER]);
        vec![
            ("KAFKA_BROKERS", self.stack.kafka().bootstrap_with_certificate()),
            ("KAFKA_SECURITY_PROTOCOL", "ssl".into()),
            ("KAFKA_SSL_CA_FILE", self.path(Path::new("ca.crt"))),
            ("KAFKA_SSL_CERT_FILE", self.write("tls.crt", &pair.certificate)),
            ("KAFKA_SSL_KEY_FILE", self.write("tls.key", &pair.key)),
        ]
    }

    /// Sends a message, waits until it is stored, and runs `check`.
    pub(super) async fn assert_carries_a_message(&self, name: &str, settings: &Settings) {
        let (gateway, transfer) = self.services(name, settings).await;
        let message = msg("alice", "bob", name, "hello");
        let request = SendMsgRequest { msg: Some(message), wait_for: WaitFor::Stored.into() };
        let placement = client(&gateway).await.send_msg(request).await.unwrap().into_inner().placement.unwrap();
        assert!(placement.stored.is_some_and(|stored| stored.seq > 0), "{name}: {placement:?}");
        let check = run_with(&self.world, "check --allow-unsafe-topic", &borrowed(settings)).await.assert_code(0);
        assert!(check.stdout.contains("client.id msg-transfer-consumer"), "{}", check.stdout);
        for service in [&gateway.service, &transfer] {
            assert!(service.stop().await.unwrap().success());
        }
    }

    pub(super) async fn assert_reported(&self, settings: &Settings, texts: &[&str]) {
        assert_all_report(&self.world, &borrowed(settings), texts).await;
    }
}

pub(super) fn borrowed(settings: &Settings) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// The same settings with another value of one.
pub(super) fn with(mut settings: Settings, name: &str, value: String) -> Settings {
    let setting = settings.iter_mut().find(|(known, _)| *known == name).unwrap();
    setting.1 = value;
    settings
}

#[tokio::test]
async fn each_kafka_login_carries_messages() {
    let secure = Secure::start("kafka_logins", BROKER).await;
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        secure.assert_carries_a_message(mechanism, &secure.login(mechanism)).await;
    }
    secure.assert_carries_a_message("certificate", &secure.certificate()).await;
    secure.stack.stop().await;
}

#[tokio::test]
async fn wrong_kafka_password_and_ca_are_named() {
    let secure = Secure::start("kafka_wrong", BROKER).await;
    let login = secure.login("SCRAM-SHA-512");
    let wrong = with(login.clone(), "KAFKA_SASL_PASSWORD_FILE", secure.write("wrong", "hunter2"));
    secure.assert_reported(&wrong, &["refuses the user or the password", "KAFKA_SASL_PASSWORD_FILE"]).await;
    let other = secure.write("other.crt", &Ca::new("another").pem());
    let wrong = with(login, "KAFKA_SSL_CA_FILE", other);
    secure
        .assert_reported(
            &wrong,
            &["certificate verify failed", "its CA is not trusted; give its CA with KAFKA_SSL_CA_FILE"],
        )
        .await;
    secure.stack.stop().await;
}

#[tokio::test]
async fn certificate_for_another_kafka_host_is_named() {
    let secure = Secure::start("kafka_host", "kafka.example").await;
    secure.assert_reported(&secure.login("PLAIN"), &["the broker's certificate is for another host; connect"]).await;
    secure.stack.stop().await;
}

#[tokio::test]
async fn refused_kafka_client_certificate_is_named() {
    let secure = Secure::start("kafka_client_ca", BROKER).await;
    let other = Ca::new("another").sign_for(USER, &[USER]);
    let (certificate, key) = (secure.write("other.crt", &other.certificate), secure.write("other.key", &other.key));
    let settings = with(secure.certificate(), "KAFKA_SSL_CERT_FILE", certificate);
    let settings = with(settings, "KAFKA_SSL_KEY_FILE", key);
    secure.assert_reported(&settings, &["the broker refuses the client's certificate"]).await;
    secure.stack.stop().await;
}

/// Sends a message until it is stored. Each attempt has a new id.
pub(super) async fn assert_stores(gateway: &Gateway, what: &str) {
    let (mut client, mut attempt) = (client(gateway).await, 0);
    eventually(what, async || {
        attempt += 1;
        let msg = Some(msg("alice", "bob", &format!("{what} {attempt}"), "hello"));
        client.send_msg(SendMsgRequest { msg, wait_for: WaitFor::Stored.into() }).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn changed_kafka_password_needs_no_process_restart() {
    let secure = Secure::start("kafka_password", BROKER).await;
    let (gateway, transfer) = secure.services("rotated", &secure.login("SCRAM-SHA-256")).await;
    assert_stores(&gateway, "with the first password").await;
    secure.stack.kafka().set_scram_password(USER, "second").await.unwrap();
    secure.write("password", "second");
    // Otherwise the open connections would stay in use.
    secure.stack.kafka().stop_broker(1).await.unwrap();
    secure.stack.kafka().start_broker(1).await.unwrap();
    [&gateway.service, &transfer].into_iter().for_each(hang_up);
    assert_stores(&gateway, "with the second password").await;
    secure.stop([&gateway.service, &transfer]).await;
}

#[tokio::test]
async fn changed_kafka_certificate_is_used_by_all_clients() {
    let secure = Secure::start("kafka_certificate", BROKER).await;
    let (gateway, transfer) = secure.services("rotated", &secure.certificate()).await;
    assert_stores(&gateway, "with the first certificate").await;
    let second = secure.ca.sign_for("second", &["second"]);
    secure.stack.kafka().grant(secure.rights("second")).await.unwrap();
    secure.write("tls.crt", &second.certificate);
    secure.write("tls.key", &second.key);
    [&gateway.service, &transfer].into_iter().for_each(hang_up);
    for (service, metric) in
        [(&gateway.service, "msg_gateway_producers_replaced_total"), (&transfer, "msg_transfer_client_restarts_total")]
    {
        eventually("the clients are replaced", async || {
            let metrics = service.metrics().await?;
            let count = metrics.lines().find(|line| line.starts_with(metric)).unwrap_or_default();
            ensure(count.ends_with(" 1"), count)
        })
        .await;
    }
    for service in [&gateway.service, &transfer] {
        let expiry = service.metric("msg_tls_certificate_expiry_timestamp_seconds{use=\"kafka\"}").await.unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(expiry > now, "the certificate in use expires at {expiry}, and it is {now}");
    }
    // The rights of the first certificate's user are of no use any more.
    secure.stack.kafka().withdraw(secure.rights(USER)).await.unwrap();
    assert_stores(&gateway, "with the second certificate").await;
    secure.stop([&gateway.service, &transfer]).await;
}

#[tokio::test]
async fn kafka_right_that_returns_needs_no_process_restart() {
    let secure = Secure::start("kafka_right", BROKER).await;
    let (gateway, transfer) = secure.services("right", &secure.login("PLAIN")).await;
    assert_stores(&gateway, "with the right").await;
    // Without a right to write to any topic, brokers refuse a producer as a whole.
    let topics = ["kafka_right", "kafka_right-hints"].map(|name| Resource::Topic(name.into()));
    let write = topics.map(|topic| Right::new(USER, Operation::Write, topic)).to_vec();
    secure.stack.kafka().withdraw(write.clone()).await.unwrap();
    let mut sender = client(&gateway).await;
    eventually("sends are rejected", async || {
        let request = SendMsgRequest { msg: Some(msg("alice", "bob", "without", "hello")), wait_for: 0 };
        let sent = sender.send_msg(request).await;
        ensure(sent.is_err(), format!("{sent:?}"))
    })
    .await;
    readiness(&gateway.service, 503, "grant it WRITE").await;
    // Longer than failed deliveries count: no send fails in this time, and the right is still missing.
    let looks_good = async || {
        let (status, body) = msg_common::admin::probe(gateway.service.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 200, body)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(35);
    while std::time::Instant::now() < deadline {
        assert!(looks_good().await.is_err(), "ready without the right to write");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    secure.stack.kafka().grant(write).await.unwrap();
    assert_stores(&gateway, "with the right again").await;
    readiness(&gateway.service, 200, "ready").await;
    secure.stop([&gateway.service, &transfer]).await;
}

/// A certificate whose key is not its own, as while one of two files is written.
#[tokio::test]
async fn broken_kafka_certificate_ends_no_service() {
    let secure = Secure::start("kafka_broken", BROKER).await;
    let (gateway, transfer) = secure.services("broken", &secure.certificate()).await;
    assert_stores(&gateway, "with the first certificate").await;
    secure.write("tls.key", &secure.ca.sign_for(USER, &[USER]).key);
    for service in [&gateway.service, &transfer] {
        hang_up(service);
        eventually("the pair is rejected", async || {
            let metrics = service.metrics().await?;
            let label = "use=\"kafka\",outcome=\"rejected\"";
            let line = metrics.lines().find(|line| line.contains(label)).unwrap_or_default();
            ensure(line.ends_with(" 1"), line)
        })
        .await;
    }
    // The transfer creates its clients again, for a reason of another kind.
    recreate_topic(&secure.stack, &secure.world).await;
    eventually("the clients are restarted", async || {
        let metrics = transfer.metrics().await?;
        let restarts = metrics.lines().find(|line| line.starts_with("msg_transfer_client_restarts_total"));
        ensure(restarts.is_some_and(|line| !line.ends_with(" 0")), restarts.unwrap_or_default())
    })
    .await;
    assert_stores(&gateway, "with the accepted certificate").await;
    readiness(&transfer, 200, "ready").await;
    secure.stop([&gateway.service, &transfer]).await;
}
