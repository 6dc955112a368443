//! The connections of commands to the database and Kafka.

use msg_common::config::SettingError;
use msg_common::kafka::RequestError;
use msg_common::postgres::{Object, Pool, Purpose};
use tokio_util::sync::CancellationToken;

use super::error::CommandError;
use crate::config::Config;
use crate::lag::LagReader;
use crate::{schema, session};

/// Creates a pool of one connection, which is opened when it is first used.
pub(super) fn pool(config: &Config, purpose: Purpose) -> Result<Pool, SettingError> {
    config.database.pool("msg-transfer", 1, &session::settings(&config.database), purpose)
}

/// Opens a connection, and checks that this build can work with the schema.
pub(super) async fn connect(config: &Config, purpose: Purpose) -> Result<Object, CommandError> {
    let pool = pool(config, purpose)?;
    schema::check(&pool).await?;
    Ok(pool.get().await?)
}

/// Creates a reader of the topic and its lag. If the Kafka clients of the command log in with a token, it waits for the first
/// attempt to get one: if that fails, the requests fail with its reason.
pub(super) async fn lag_reader(config: &Config, pool: Pool) -> Result<LagReader, RequestError> {
    if let Some(refreshing) = config.kafka.refresh_token(CancellationToken::new()) {
        tokio::spawn(refreshing);
        config.kafka.token.attempted().await;
    }
    LagReader::new(config, pool)
}
