//! Logins and TLS to Kafka: each mechanism carries messages with the documented rights, and what is wrong is named.

use std::path::Path;

use msg_common::proto::SendMsgRequest;
use msg_common::proto::WaitFor;
use msg_stack::kafka::rights::password;
use msg_stack::{BrokerTls, Operation, Resource, Right, ServiceSpec, Stack, StackOptions};

use crate::gateway::calls::client;
use crate::process::causes::assert_all_report;
use crate::support::certificates::Ca;
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::transfer::commands::{run, run_with};

const USER: &str = "app";
/// The brokers' address, which their certificate names.
const BROKER: &str = "127.0.0.1";

/// A cluster with logins, TLS and an authorizer, and the files that a client needs.
struct Secure {
    stack: Stack,
    world: World,
    folder: tempfile::TempDir,
    ca: Ca,
}

/// The settings of a service.
type Settings = Vec<(&'static str, String)>;

impl Secure {
    /// Starts a cluster whose certificate names `host`. The user has the rights of both services.
    async fn start(name: &str, host: &str) -> Secure {
        let folder = tempfile::Builder::new().prefix(&format!("msg-it-{name}-")).tempdir().unwrap();
        let ca = Ca::new("brokers");
        let broker = ca.sign(&[host]);
        let mut options = StackOptions::new(folder.path().join("stack"));
        options.cluster.users = vec![USER.into()];
        options.cluster.tls = Some(BrokerTls { certificate: broker.certificate, key: broker.key, client_ca: ca.pem() });
        let stack = Stack::start(options).await.unwrap();
        let world = World::on(&stack, name, 4);
        world.create(&stack).await;
        run(&world, "migrate").await.assert_code(0);
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
        let rights = rights.map(|(operation, resource)| Right::new(USER, operation, resource));
        stack.kafka().grant(rights.to_vec()).await.unwrap();
        let secure = Secure { stack, world, folder, ca };
        secure.write("ca.crt", &secure.ca.pem());
        secure.write("password", &format!("{}\n", password(USER)));
        secure
    }

    /// Writes a file and returns its path.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        self.path(&path)
    }

    fn path(&self, path: &Path) -> String {
        self.folder.path().join(path).to_str().unwrap().to_owned()
    }

    /// The settings of a login over TLS.
    fn login(&self, mechanism: &str) -> Settings {
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
    async fn assert_carries_a_message(&self, name: &str, settings: &Settings) {
        let configure = |spec: ServiceSpec| settings.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
        let (gateway, transfer) = (self.world.gateway(name, configure), self.world.transfer(name, configure));
        gateway.service.start().await.unwrap();
        transfer.start().await.unwrap();
        let message = msg("alice", "bob", name, "hello");
        let request = SendMsgRequest { msg: Some(message), wait_for: WaitFor::Stored.into() };
        let placement = client(&gateway).await.send_msg(request).await.unwrap().into_inner().placement.unwrap();
        assert!(placement.seq > 0, "{name}: {placement:?}");
        let check = run_with(&self.world, "check --allow-unsafe-topic", &borrowed(settings)).await.assert_code(0);
        assert!(check.stdout.contains("client.id msg-transfer-consumer"), "{}", check.stdout);
        for service in [&gateway.service, &transfer] {
            assert!(service.stop().await.unwrap().success());
        }
    }

    async fn assert_reported(&self, settings: &Settings, texts: &[&str]) {
        assert_all_report(&self.world, &borrowed(settings), texts).await;
    }
}

fn borrowed(settings: &Settings) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// The same settings with another value of one.
fn with(mut settings: Settings, name: &str, value: String) -> Settings {
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
    secure.assert_reported(&wrong, &["certificate verify failed", "give its CA with KAFKA_SSL_CA_FILE"]).await;
    secure.stack.stop().await;
}

#[tokio::test]
async fn certificate_for_another_kafka_host_is_named() {
    let secure = Secure::start("kafka_host", "kafka.example").await;
    secure.assert_reported(&secure.login("PLAIN"), &["for another host"]).await;
    secure.stack.stop().await;
}
