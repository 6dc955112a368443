//! Injects faults of the services' accounts: withdraws and grants rights, and changes passwords and certificates.

use std::time::Duration;

use msg_stack::{Operation, Resource, Right};

use super::broker;
use super::injection::{FaultInjection, all_ready};
use super::process;
use crate::accounts::{Accounts, GATEWAY, TRANSFER};
use crate::error::LabError;
use crate::topology::{GROUP, TOPIC};

/// How long a gateway may need until it uses changed files.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);
/// Counts the changed certificates that a gateway uses.
const RELOADS: &str = "msg_file_reloads_total{use=\"grpc\",outcome=\"applied\"}";

/// Without DESCRIBE, which READ implies, the transfers do not even see the topic.
pub(super) async fn withdraw_read(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let right = Right::new(TRANSFER, Operation::Read, Resource::Topic(TOPIC.to_owned()));
    withdraw(injection, right, "transfer", "lacks a right on the topic").await
}

pub(super) async fn withdraw_group(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let right = Right::new(TRANSFER, Operation::Read, Resource::Group(GROUP.to_owned()));
    withdraw(injection, right, "transfer", "lacks a right on the consumer group").await
}

pub(super) async fn withdraw_write(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let right = Right::new(GATEWAY, Operation::Write, Resource::Topic(TOPIC.to_owned()));
    withdraw(injection, right, "gateway", "lacks a right on the topic").await
}

async fn withdraw(
    injection: &mut FaultInjection<'_>,
    right: Right,
    process: &str,
    words: &str,
) -> Result<(), LabError> {
    let kafka = injection.world.stack.kafka();
    injection.target(format!("{:?} on {:?}", right.operation, right.resource));
    injection.must_report(process, &[words]);
    kafka.withdraw(vec![right.clone()]).await?;
    injection.hold().await;
    kafka.grant(vec![right]).await?;
    all_ready(injection.world).await
}

/// Changes the passwords in the server and ends all sessions. Only later the files get the new passwords.
pub(super) async fn rotate_password(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let accounts = accounts(injection)?;
    injection.target("both roles");
    injection.must_report("transfer", &["password authentication failed"]);
    accounts.change_database_passwords(&injection.world.database().await?).await?;
    injection.hold().await;
    accounts.write_urls()?;
    all_ready(injection.world).await
}

/// Changes the passwords of Kafka's users and ends all connections. Only later the files get the new passwords. The
/// services then replace their clients, and are not restarted.
pub(super) async fn rotate_kafka_password(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (accounts, kafka) = (accounts(injection)?, injection.world.stack.kafka());
    injection.target("both users, and 3 brokers restarted");
    for process in ["transfer", "gateway"] {
        injection.must_report(process, &["refuses the user or the password"]);
    }
    accounts.change_kafka_passwords(kafka).await?;
    broker::in_sync(injection.world).await?;
    injection.hold().await;
    accounts.write_kafka()?;
    all_ready(injection.world).await
}

/// Replaces the certificates of the gateways and of the database. All connections to the database end, and a process of
/// the load is replaced, so that new connections are made.
pub(super) async fn rotate_certificates(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, accounts) = (injection.world, accounts(injection)?);
    let identities = world.identities.as_ref().ok_or_else(|| LabError::Setting("there are no certificates".into()))?;
    let mut before = Vec::new();
    for gateway in &world.gateways {
        before.push(gateway.service().metric(RELOADS).await?);
    }
    identities.rotate(world.stack.postgres()).await?;
    accounts.end_sessions(&world.database().await?).await?;
    for (gateway, before) in world.gateways.iter().zip(before) {
        let in_force = async {
            while gateway.service().metric(RELOADS).await? <= before {
                tokio::time::sleep(POLL).await;
            }
            Ok::<(), LabError>(())
        };
        let late = |_| LabError::Stuck(format!("{} still uses its old certificate", gateway.name()));
        tokio::time::timeout(IN_FORCE_WITHIN, in_force).await.map_err(late)??;
    }
    process::kill_client(injection).await?;
    injection.target("both gateways, the database, and a process of the load");
    all_ready(world).await
}

fn accounts<'a>(injection: &FaultInjection<'a>) -> Result<&'a Accounts, LabError> {
    let accounts = injection.world.accounts.as_ref();
    accounts.ok_or_else(|| LabError::Setting("the services log in without passwords".into()))
}
