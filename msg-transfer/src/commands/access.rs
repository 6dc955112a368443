//! The connections of commands to the database and Kafka.

use msg_common::config::SettingError;
use msg_common::kafka::RequestError;
use msg_common::postgres::{Object, Pool, Purpose};

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

/// Creates a reader of the topic and its lag.
pub(super) fn lag_reader(config: &Config, pool: Pool) -> Result<LagReader, RequestError> {
    LagReader::new(config, pool)
}
