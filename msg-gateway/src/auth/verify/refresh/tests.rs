//! The refresher with an issuer that is counted, and that can be away.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, Header};
use tokio::sync::Semaphore;

use super::*;
use crate::auth::Rejection;
use crate::auth::verify::Tokens;
use crate::auth::verify::tests::issuer::{SigningKey, claims_with, jwks, rules};

/// The issuer: `None` while it is away.
#[derive(Default)]
struct Issuer {
    keys: StdMutex<Option<String>>,
    fetches: AtomicUsize,
    /// Permits to respond, if the issuer is slow.
    slow: Option<Semaphore>,
}

struct Handle(Arc<Issuer>);

impl Fetch for Handle {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, HttpError>> {
        Box::pin(async {
            self.0.fetches.fetch_add(1, Ordering::Relaxed);
            if let Some(slow) = &self.0.slow {
                slow.acquire().await.expect("it is open").forget();
            }
            let keys = self.0.keys.lock().expect("no panic").clone();
            keys.map(Bytes::from).ok_or(HttpError::TimedOut)
        })
    }
}

impl Issuer {
    fn publish(&self, keys: &[&SigningKey]) {
        *self.keys.lock().expect("no panic") = Some(jwks(keys));
    }

    fn leave(&self) {
        *self.keys.lock().expect("no panic") = None;
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }
}

fn tokens(issuer: &Arc<Issuer>) -> (Tokens, Readiness) {
    let readiness = Readiness::waiting_for(&[COMPONENT]);
    let verifier = Arc::new(Verifier::new(rules(&[Algorithm::ES256]), None));
    let refresher = Refresher::new(Box::new(Handle(issuer.clone())), verifier.clone(), readiness.clone());
    (Tokens { verifier, refresher: Some(Arc::new(refresher)) }, readiness)
}

fn key(kid: &'static str) -> SigningKey {
    SigningKey::new(Algorithm::ES256, kid)
}

/// A token that is valid now.
fn token(key: &SigningKey) -> String {
    key.sign(&claims_with("exp", u64::MAX.into()))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn refresh(tokens: &Tokens, now: Instant) -> bool {
    tokens.refresher.as_ref().expect("it has one").refresh_at(now).await
}

#[tokio::test]
async fn unknown_keys_cost_one_fetch_for_all_callers() {
    let (known, issuer) = (key("a"), Arc::new(Issuer::default()));
    issuer.publish(&[&known]);
    let (tokens, _) = tokens(&issuer);
    let header = |number: usize| Header { kid: Some(format!("random-{number}")), ..Header::new(Algorithm::ES256) };
    // The signature is never checked, so one is enough.
    let signed = token(&known);
    let signature = signed.rsplit('.').next().expect("it has one");
    for number in 0..100_000 {
        let head = serde_json::to_vec(&header(number)).expect("it is JSON");
        let head = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, head);
        let random = format!("{head}.e30.{signature}");
        let rejection = tokens.verify(&random).expect_err("its key is unknown");
        assert!(tokens.can_fetch_for(rejection));
        assert_eq!(tokens.verify_with_fresh_keys(&random).await, Err(Rejection::UnknownKey));
    }
    assert_eq!(issuer.fetches(), 1);
    assert!(tokens.verify(&signed).is_ok());
}

#[tokio::test]
async fn unknown_key_is_fetched_again_after_ten_seconds() {
    let (old, new, issuer, start) = (key("a"), key("b"), Arc::new(Issuer::default()), Instant::now());
    issuer.publish(&[&old]);
    let (tokens, readiness) = tokens(&issuer);
    assert!(refresh(&tokens, start).await && tokens.verify(&token(&old)).is_ok());
    assert!(readiness.reasons().is_empty());
    issuer.publish(&[&old, &new]);
    for (second, fetches) in [(1, 1), (9, 1), (10, 2), (11, 2), (19, 2), (20, 3)] {
        assert!(refresh(&tokens, start + seconds(second)).await);
        assert_eq!(issuer.fetches(), fetches, "after {second} s");
        assert_eq!(tokens.verify(&token(&new)).is_ok(), second >= 10, "after {second} s");
    }
}

#[tokio::test]
async fn callers_wait_for_the_attempt_in_progress_together() {
    let (new, issuer) = (key("a"), Issuer { slow: Some(Semaphore::new(0)), ..Issuer::default() });
    issuer.publish(&[&new]);
    let issuer = Arc::new(issuer);
    let (tokens, _) = tokens(&issuer);
    let token = token(&new);
    let callers = join_all((0..100).map(|_| tokens.verify_with_fresh_keys(&token)));
    let release = async {
        while issuer.fetches() == 0 {
            tokio::task::yield_now().await;
        }
        issuer.slow.as_ref().expect("it is slow").add_permits(100);
    };
    let (verified, ()) = tokio::join!(callers, release);
    assert!(verified.iter().all(Result::is_ok), "{verified:?}");
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn attempt_continues_when_its_caller_disconnects() {
    let (new, issuer) = (key("a"), Issuer { slow: Some(Semaphore::new(0)), ..Issuer::default() });
    issuer.publish(&[&new]);
    let issuer = Arc::new(issuer);
    let (tokens, _) = tokens(&issuer);
    let token = token(&new);
    let first = tokens.verify_with_fresh_keys(&token);
    let started = async {
        while issuer.fetches() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = first => panic!("the issuer has not responded"),
        () = started => {}
    }
    issuer.slow.as_ref().expect("it is slow").add_permits(1);
    assert!(tokens.verify_with_fresh_keys(&token).await.is_ok());
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn last_keys_are_used_for_a_day_while_the_issuer_is_away() {
    let (old, new, issuer, start) = (key("a"), key("b"), Arc::new(Issuer::default()), Instant::now());
    issuer.publish(&[&old]);
    let (tokens, readiness) = tokens(&issuer);
    assert!(refresh(&tokens, start).await);
    issuer.leave();
    for hour in [1, 2, 23] {
        assert!(!refresh(&tokens, start + seconds(hour * 3600)).await);
        assert!(tokens.verify(&token(&old)).is_ok(), "after {hour} h");
        assert!(readiness.reasons().is_empty(), "after {hour} h: {:?}", readiness.reasons());
    }
    // The issuer may have signed it with a new key: the caller is not to blame.
    assert_eq!(tokens.verify_with_fresh_keys(&token(&new)).await, Err(Rejection::NoKeys));
    assert!(!refresh(&tokens, start + seconds(24 * 3600)).await);
    assert_eq!(tokens.verify(&token(&old)), Err(Rejection::NoKeys));
    assert!(readiness.reasons()[COMPONENT].contains("AUTH_JWKS_URL"), "{:?}", readiness.reasons());
    issuer.publish(&[&new]);
    assert!(refresh(&tokens, start + seconds(25 * 3600)).await);
    assert!(tokens.verify(&token(&new)).is_ok() && readiness.reasons().is_empty());
}

#[tokio::test]
async fn gateway_is_not_ready_until_the_first_keys_are_there() {
    let (first, issuer, start) = (key("a"), Arc::new(Issuer::default()), Instant::now());
    let (tokens, readiness) = tokens(&issuer);
    assert!(!refresh(&tokens, start).await);
    assert_eq!(tokens.verify_with_fresh_keys(&token(&first)).await, Err(Rejection::NoKeys));
    assert!(readiness.reasons()[COMPONENT].contains("no complete response"), "{:?}", readiness.reasons());
    *issuer.keys.lock().expect("no panic") = Some("<html>".into());
    assert!(!refresh(&tokens, start + seconds(10)).await);
    assert!(readiness.reasons()[COMPONENT].contains("no JWK set"), "{:?}", readiness.reasons());
    issuer.publish(&[&first]);
    assert!(refresh(&tokens, start + seconds(20)).await);
    assert!(tokens.verify(&token(&first)).is_ok() && readiness.reasons().is_empty());
}

#[tokio::test]
async fn broken_key_set_keeps_the_keys_in_use() {
    let (old, issuer, start) = (key("a"), Arc::new(Issuer::default()), Instant::now());
    issuer.publish(&[&old]);
    let (tokens, readiness) = tokens(&issuer);
    assert!(refresh(&tokens, start).await);
    for (second, broken) in [(10, "<html>"), (20, "{}"), (30, r#"{"keys":7}"#)] {
        *issuer.keys.lock().expect("no panic") = Some(broken.into());
        assert!(!refresh(&tokens, start + seconds(second)).await, "{broken}");
        assert!(tokens.verify(&token(&old)).is_ok() && readiness.reasons().is_empty(), "{broken}");
    }
}

#[tokio::test]
async fn issuer_that_withdraws_its_last_key_is_obeyed() {
    let (old, next, issuer, start) = (key("a"), key("b"), Arc::new(Issuer::default()), Instant::now());
    let mut unusable = old.jwk();
    unusable["use"] = "enc".into();
    let (tokens, readiness) = tokens(&issuer);
    let mut second = 0;
    for withdrawn in [r#"{"keys":[]}"#.to_owned(), serde_json::json!({ "keys": [unusable] }).to_string()] {
        issuer.publish(&[&old]);
        assert!(refresh(&tokens, start + seconds(second)).await);
        assert!(tokens.verify(&token(&old)).is_ok() && readiness.reasons().is_empty(), "{withdrawn}");
        *issuer.keys.lock().expect("no panic") = Some(withdrawn.clone());
        // Also when it is fetched again and has not changed.
        for again in [10, 20] {
            assert!(refresh(&tokens, start + seconds(second + again)).await);
            assert_eq!(tokens.verify(&token(&old)), Err(Rejection::UnknownKey), "{withdrawn}");
            assert!(readiness.reasons()[COMPONENT].contains("none that fits"), "{:?}", readiness.reasons());
        }
        // It is fetched again soon: a gateway that is not ready gets no calls that would cause it.
        let schedule = tokens.refresher.as_ref().expect("it has one").schedule.lock().await;
        assert_eq!(schedule.wait(start + seconds(second + 20), INTERVAL), MIN_INTERVAL, "{withdrawn}");
        drop(schedule);
        // The empty set stays in force while the issuer is away.
        issuer.leave();
        assert!(!refresh(&tokens, start + seconds(second + 30)).await);
        assert_eq!(tokens.verify(&token(&old)), Err(Rejection::UnknownKey), "{withdrawn}");
        second += 40;
    }
    issuer.publish(&[&next]);
    assert!(refresh(&tokens, start + seconds(second)).await);
    assert!(tokens.verify(&token(&next)).is_ok() && readiness.reasons().is_empty());
}

#[test]
fn keys_are_fetched_hourly_and_more_often_after_a_failure() {
    let (mut schedule, start, hour) = (Schedule::default(), Instant::now(), INTERVAL);
    assert_eq!(schedule.wait(start, hour), Duration::ZERO);
    (schedule.attempted, schedule.succeeded) = (Some(start), Some(start));
    assert_eq!(schedule.wait(start + seconds(600), hour), seconds(3000));
    schedule.unusable = Some("has 0 keys".into());
    assert_eq!(schedule.wait(start + seconds(4), hour), seconds(6));
    schedule.unusable = None;
    schedule.attempted = Some(start + seconds(3600));
    assert_eq!(schedule.wait(start + seconds(3600), hour), MIN_INTERVAL);
    assert_eq!(schedule.wait(start + seconds(3700), hour), Duration::ZERO);
}
