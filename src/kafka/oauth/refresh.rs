//! The task that keeps the token of a process fresh. Fetching a token may need seconds, so no client waits for it.

use std::time::{Duration, SystemTime};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio_util::sync::CancellationToken;

use super::TokenError;
use super::shared::SharedToken;
use super::source::Source;
use super::token::Token;
use crate::error::chain;
use crate::repeat::Repeats;

/// Tokens that were fetched, by `outcome`.
const FETCHES: &str = "msg_kafka_token_fetches_total";
/// When the token in use expires.
const EXPIRY: &str = "msg_kafka_token_expiry_timestamp_seconds";

static FAILURES: Repeats = Repeats::new();

/// Fetches tokens for the clients of a process.
pub(super) struct Refresher {
    pub(super) source: Source,
    pub(super) extensions: Vec<(String, String)>,
    pub(super) token: SharedToken,
}

impl Refresher {
    /// Fetches tokens until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        for outcome in ["OK", "FAILED"] {
            counter!(FETCHES, "outcome" => outcome).increment(0);
        }
        let refresh = async {
            let mut failures = 0;
            loop {
                let wait = match self.source.fetch().await {
                    Ok(token) => {
                        failures = 0;
                        let wait = self.source.interval(&token);
                        self.apply(token);
                        wait
                    }
                    Err(error) => {
                        failures += 1;
                        self.fail(&error);
                        self.source.backoff(failures)
                    }
                };
                tokio::time::sleep(wait).await;
            }
        };
        stop.run_until_cancelled(refresh).await;
    }

    fn apply(&self, token: Token) {
        let (expiry, remaining) = (token.expiry_millis(), token.remaining(SystemTime::now()));
        if self.token.replace(token.with_extensions(&self.extensions)) {
            counter!(FETCHES, "outcome" => "OK").increment(1);
            gauge!(EXPIRY).set(expiry as f64 / 1000.0);
            tracing::info!(valid_for = ?Duration::from_secs(remaining.as_secs()), "fetched a token for the kafka clients");
        }
    }

    fn fail(&self, error: &TokenError) {
        counter!(FETCHES, "outcome" => "FAILED").increment(1);
        let error = chain(error);
        // Texts that differ only in times are the same condition.
        let condition = error.replace(|c: char| c.is_ascii_digit(), "");
        if let Some(repeated) = FAILURES.occurred(&condition) {
            tracing::warn!(error, repeated, "cannot fetch a token for the kafka clients, will be retried");
        }
        self.token.fail(error, SystemTime::now());
    }
}

/// Describes the metrics of this module.
pub(crate) fn describe() {
    describe_counter!(
        FETCHES,
        "Tokens for the Kafka clients (OAUTHBEARER) that were fetched, by outcome; while it fails, the last token is used \
         until it expires"
    );
    describe_gauge!(
        EXPIRY,
        "When the token that the Kafka clients log in with expires, in seconds since 1970; absent with other mechanisms"
    );
}
