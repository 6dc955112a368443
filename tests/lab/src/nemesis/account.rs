//! Breaks what the services may do: rights that are withdrawn and granted again, passwords that are changed.

use msg_stack::{Operation, Resource, Right};

use super::broker;
use super::injection::{FaultInjection, all_ready};
use crate::accounts::{Accounts, GATEWAY, TRANSFER};
use crate::error::LabError;
use crate::topology::{GROUP, TOPIC};

/// Without DESCRIBE, which READ implies, the transfers do not even see the topic.
pub(super) async fn withdraw_read(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let right = Right::new(TRANSFER, Operation::Read, Resource::Topic(TOPIC.to_owned()));
    withdraw(strike, right, "transfer", "lacks a right on the topic").await
}

pub(super) async fn withdraw_group(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let right = Right::new(TRANSFER, Operation::Read, Resource::Group(GROUP.to_owned()));
    withdraw(strike, right, "transfer", "lacks a right on the consumer group").await
}

pub(super) async fn withdraw_write(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let right = Right::new(GATEWAY, Operation::Write, Resource::Topic(TOPIC.to_owned()));
    withdraw(strike, right, "gateway", "lacks a right on the topic").await
}

async fn withdraw(strike: &mut FaultInjection<'_>, right: Right, process: &str, words: &str) -> Result<(), LabError> {
    let kafka = strike.world.stack.kafka();
    strike.target(format!("{:?} on {:?}", right.operation, right.resource));
    strike.must_say(process, &[words]);
    kafka.withdraw(vec![right.clone()]).await?;
    strike.hold().await;
    kafka.grant(vec![right]).await?;
    all_ready(strike.world).await
}

/// The server has new passwords and no session is left; only later the files have them too.
pub(super) async fn rotate_password(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let accounts = accounts(strike)?;
    strike.target("both roles");
    strike.must_say("transfer", &["password authentication failed"]);
    accounts.change_database_passwords(&strike.world.database().await?).await?;
    strike.hold().await;
    accounts.write_urls()?;
    all_ready(strike.world).await
}

/// The same in Kafka, where the brokers know passwords from their start on. A service reads the file when it makes its clients, so
/// the services are restarted one after the other, as the documentation says.
pub(super) async fn rotate_kafka_password(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (accounts, kafka) = (accounts(strike)?, strike.world.stack.kafka());
    strike.target("both users, and 3 brokers restarted");
    for process in ["transfer", "gateway"] {
        strike.must_say(process, &["refuses the user or the password"]);
    }
    kafka.stop().await;
    for (user, password) in accounts.new_kafka_passwords() {
        kafka.set_password(user, &password)?;
    }
    kafka.start().await?;
    broker::in_sync(strike.world).await?;
    strike.hold().await;
    accounts.write_kafka()?;
    for node in strike.world.gateways.iter().chain(strike.world.running_transfers()) {
        node.stop().await;
        node.start().await?;
    }
    all_ready(strike.world).await
}

fn accounts<'a>(strike: &FaultInjection<'a>) -> Result<&'a Accounts, LabError> {
    let accounts = strike.world.accounts.as_ref();
    accounts.ok_or_else(|| LabError::Setting("the services log in without passwords".into()))
}
