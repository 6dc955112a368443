//! Injects faults of the services' accounts: withdraws and grants rights, and changes passwords.

use msg_stack::{Operation, Resource, Right};

use super::broker;
use super::injection::{FaultInjection, all_ready};
use crate::accounts::{Accounts, GATEWAY, TRANSFER};
use crate::error::LabError;
use crate::topology::{GROUP, TOPIC};

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

fn accounts<'a>(injection: &FaultInjection<'a>) -> Result<&'a Accounts, LabError> {
    let accounts = injection.world.accounts.as_ref();
    accounts.ok_or_else(|| LabError::Setting("the services log in without passwords".into()))
}
