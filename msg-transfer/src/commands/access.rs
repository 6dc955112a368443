//! How commands reach the database and Kafka.

use msg_common::config::SettingError;
use msg_common::kafka::RequestError;
use msg_common::postgres::{Object, Pool, Purpose};

use super::error::CommandError;
use crate::config::Config;
use crate::lag::LagReader;
use crate::{schema, session};

/// One connection, made when first used.
pub(super) fn pool(config: &Config, purpose: Purpose) -> Result<Pool, SettingError> {
    config.database.pool("msg-transfer", 1, &session::settings(&config.database), purpose)
}

/// The connection, to a database whose schema is this build's.
pub(super) async fn connect(config: &Config, purpose: Purpose) -> Result<Object, CommandError> {
    let pool = pool(config, purpose)?;
    schema::check(&pool).await?;
    Ok(pool.get().await?)
}

/// Reads the topic, and how far it is stored.
pub(super) fn lag_reader(config: &Config, pool: Pool) -> Result<LagReader, RequestError> {
    LagReader::new(&config.lookup_config(), config.kafka.kafka_topic.clone(), pool)
}
