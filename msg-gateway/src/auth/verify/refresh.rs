//! Keeps the keys of an issuer's JWKS URL fresh: hourly, and when a token names an unknown key, but at most once in 10
//! seconds for all callers. While the issuer does not respond, the last keys stay in use for a day. A key set that it
//! publishes is in force, even without keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use metrics::{counter, gauge};
use msg_common::admin::Readiness;
use msg_common::error::chain;
use msg_common::http_client::HttpError;
use msg_common::repeat::Repeats;
use rand::RngExt;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::auth::verify::Verifier;
use crate::auth::verify::keys::{KeyError, Keys};
use crate::metrics::{AUTH_KEY_FETCHES, AUTH_KEYS_AGE};

/// The component of [`Readiness`] for the keys.
pub(crate) const COMPONENT: &str = "auth";

/// How often the keys are fetched while the issuer responds.
const INTERVAL: Duration = Duration::from_secs(3600);
/// The minimum time between two attempts, whatever the callers send.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// How long keys are used after they were fetched.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

static FAILURES: Repeats = Repeats::new();

/// Where the key set is fetched from.
pub(crate) trait Fetch: Send + Sync {
    /// Fetches the key set. It has its own timeout.
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, HttpError>>;
}

/// A key set that the issuer publishes.
struct KeySet {
    keys: Keys,
    /// Why it verifies no token.
    unusable: Option<String>,
}

/// Why the keys were not refreshed.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] HttpError),
    #[error("the response")]
    Keys(#[from] KeyError),
}

pub(crate) struct Refresher {
    source: Box<dyn Fetch>,
    verifier: Arc<Verifier>,
    readiness: Readiness,
    /// Locked during an attempt: the callers with unknown keys wait for that attempt together.
    schedule: Arc<Mutex<Schedule>>,
}

/// When the keys were fetched, and when they have to be fetched again.
#[derive(Debug, Default)]
struct Schedule {
    attempted: Option<Instant>,
    succeeded: Option<Instant>,
    /// The SHA-256 of the key set in use.
    digest: Option<[u8; 32]>,
    /// Why the key set in use verifies no token, if the issuer has withdrawn all keys.
    unusable: Option<String>,
}

impl Schedule {
    /// Returns whether an unknown key is a reason for an attempt.
    fn may_attempt(&self, now: Instant) -> bool {
        self.attempted.is_none_or(|attempted| now.saturating_duration_since(attempted) >= MIN_INTERVAL)
    }

    /// Returns whether the last attempt succeeded.
    fn is_fresh(&self) -> bool {
        self.succeeded.is_some() && self.succeeded == self.attempted
    }

    /// Returns whether the keys are too old to be used.
    fn is_over(&self, now: Instant) -> bool {
        self.succeeded.is_some_and(|succeeded| now.saturating_duration_since(succeeded) >= MAX_AGE)
    }

    /// Returns the time until the next regular attempt, which is due `interval` after one that found usable keys.
    fn wait(&self, now: Instant, interval: Duration) -> Duration {
        let interval = if self.is_fresh() && self.unusable.is_none() { interval } else { MIN_INTERVAL };
        self.attempted.map_or(Duration::ZERO, |attempted| (attempted + interval).saturating_duration_since(now))
    }
}

impl Refresher {
    pub(crate) fn new(source: Box<dyn Fetch>, verifier: Arc<Verifier>, readiness: Readiness) -> Self {
        Refresher { source, verifier, readiness, schedule: Arc::default() }
    }

    /// Fetches the keys regularly until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let refresh = async {
            loop {
                // Gateways that started together must not ask the issuer together.
                let interval = INTERVAL.mul_f64(rand::rng().random_range(0.9..1.0));
                let wait = self.schedule.lock().await.wait(Instant::now(), interval);
                tokio::time::sleep(wait).await;
                let mut schedule = self.schedule.lock().await;
                let now = Instant::now();
                // A caller with an unknown key may have fetched them meanwhile.
                if schedule.wait(now, interval).is_zero() {
                    self.attempt(&mut schedule, now).await;
                }
            }
        };
        stop.run_until_cancelled(refresh).await;
    }

    /// Fetches the keys for a token whose key is unknown, if the last attempt was long enough ago, or waits for the
    /// attempt in progress. Returns whether the keys in use are those of the last attempt.
    pub(crate) async fn refresh_for_unknown_key(self: &Arc<Self>) -> bool {
        self.refresh_at(Instant::now()).await
    }

    async fn refresh_at(self: &Arc<Self>, now: Instant) -> bool {
        let mut schedule = self.schedule.clone().lock_owned().await;
        if !schedule.may_attempt(now) {
            return schedule.is_fresh();
        }
        // In a task of its own, with the lock: a caller that disconnects would otherwise end the attempt, and could so keep
        // the keys from being fetched for all others.
        let refresher = self.clone();
        let attempt = tokio::spawn(async move {
            refresher.attempt(&mut schedule, now).await;
            schedule.is_fresh()
        });
        attempt.await.unwrap_or(false)
    }

    async fn attempt(&self, schedule: &mut Schedule, now: Instant) {
        schedule.attempted = Some(now);
        match self.load(schedule.digest).await {
            Ok((digest, keys)) => {
                schedule.succeeded = Some(now);
                schedule.digest = Some(digest);
                if let Some(KeySet { keys, unusable }) = keys {
                    match &unusable {
                        None => tracing::info!("keys of the token issuer changed"),
                        Some(error) => tracing::warn!(error, "the token issuer has withdrawn all keys"),
                    }
                    schedule.unusable = unusable;
                    self.verifier.replace_keys(Some(keys));
                }
                counter!(AUTH_KEY_FETCHES, "outcome" => "OK").increment(1);
                match &schedule.unusable {
                    None => self.readiness.ready(COMPONENT),
                    Some(error) => self.no_keys(&format!("the key set of the issuer {error}")),
                }
            }
            Err(error) => self.failed(schedule, now, &chain(&error)),
        }
        let age = schedule.succeeded.map_or(0.0, |succeeded| now.saturating_duration_since(succeeded).as_secs_f64());
        gauge!(AUTH_KEYS_AGE).set(age);
    }

    fn failed(&self, schedule: &mut Schedule, now: Instant, error: &str) {
        counter!(AUTH_KEY_FETCHES, "outcome" => "FAILED").increment(1);
        if schedule.is_over(now) {
            (schedule.succeeded, schedule.digest, schedule.unusable) = (None, None, None);
            self.verifier.replace_keys(None);
        }
        if schedule.succeeded.is_none() {
            self.no_keys(error);
        } else if let Some(repeated) = FAILURES.occurred(error) {
            tracing::warn!(error, repeated, "cannot fetch keys of the token issuer, using the last ones");
        }
    }

    fn no_keys(&self, error: &str) {
        let reason = format!("no keys to check tokens with: {error}: check AUTH_JWKS_URL and the issuer");
        self.readiness.not_ready(COMPONENT, reason);
    }

    /// Returns the digest of the key set, and the keys, unless they are the same as before: tokens that were verified
    /// stay verified. A key set without usable keys is in force too: the issuer has withdrawn them.
    async fn load(&self, current: Option<[u8; 32]>) -> Result<([u8; 32], Option<KeySet>), RefreshError> {
        let text = self.source.fetch().await?;
        let digest: [u8; 32] = Sha256::digest(&text).into();
        if current == Some(digest) {
            return Ok((digest, None));
        }
        let set = match Keys::from_jwks(&text, &self.verifier.rules().algorithms) {
            Ok(keys) => KeySet { keys, unusable: None },
            Err(error @ KeyError::NoneFits { .. }) => KeySet { keys: Keys::none(), unusable: Some(error.to_string()) },
            Err(error) => return Err(error.into()),
        };
        Ok((digest, Some(set)))
    }
}

#[cfg(test)]
mod tests;
