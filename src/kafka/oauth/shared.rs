//! The token that all clients of a process share, and the clients.
//!
//! librdkafka asks for a token with an event, and rust-rdkafka serves it only in the polls of some clients: an admin client
//! never, a client that only sends requests when it is next used. So nothing waits for that event. A token may be set at any
//! time, by any thread, and each client gets it as soon as it exists. For the same reason, the callbacks of each client are
//! called directly if there is none.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::watch;

use super::token::Token;

/// The token of all clients of a process. Clones share it.
#[derive(Clone, Default)]
pub struct SharedToken(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Whether the first attempt to get a token has ended.
    attempted: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    clients: HashMap<u64, Registered>,
    next_id: u64,
    last: Last,
}

/// What a new client gets.
#[derive(Default)]
enum Last {
    /// Nothing: there was no attempt yet, or the clients log in without a token.
    #[default]
    Nothing,
    Token(Token),
    /// The reason why there is no token.
    Failure(String),
}

/// A client that exists.
struct Registered {
    client: NativeClient,
    /// Calls its callback for errors.
    report: Box<dyn Fn(&str) + Send>,
}

struct NativeClient(*mut rd::rd_kafka_t);

// SAFETY: librdkafka's clients may be used from any thread.
unsafe impl Send for NativeClient {}

/// A client that gets each new token until this value is dropped.
pub(crate) struct Registration {
    token: SharedToken,
    id: u64,
}

impl std::fmt::Debug for SharedToken {
    /// Leaves out the token, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedToken").field("clients", &self.state().clients.len()).finish_non_exhaustive()
    }
}

impl SharedToken {
    /// Gives a client the last token, and each new one until the registration is dropped.
    ///
    /// # Safety
    /// The client must exist until the registration is dropped.
    pub(in crate::kafka) unsafe fn register<C: ClientContext + 'static>(&self, client: &Client<C>) -> Registration {
        let context = client.context().clone();
        let report = move |reason: &str| {
            let error = KafkaError::Global(RDKafkaErrorCode::Authentication);
            context.error(error, &format!("no OAUTHBEARER token: {reason}"));
        };
        let client = Registered { client: NativeClient(client.native_ptr()), report: Box::new(report) };
        let mut state = self.state();
        state.last.apply_to(&client);
        let id = state.next_id;
        state.next_id += 1;
        state.clients.insert(id, client);
        Registration { token: self.clone(), id }
    }

    /// Completes when the first attempt to get a token has ended.
    pub async fn attempted(&self) {
        // The sender is in the same value, so it cannot be dropped.
        let _ = self.0.attempted.subscribe().wait_for(|attempted| *attempted).await;
    }

    /// Replaces the token of all clients. Returns whether it is another one.
    pub(super) fn replace(&self, token: Token) -> bool {
        let mut state = self.state();
        let is_new = !matches!(&state.last, Last::Token(last) if last.value == token.value);
        if is_new {
            state.set(Last::Token(token));
        }
        self.0.attempted.send_replace(true);
        is_new
    }

    /// Reports to all clients why there is no token, unless the last one is still valid.
    pub(super) fn fail(&self, reason: String, now: SystemTime) {
        let mut state = self.state();
        if !matches!(&state.last, Last::Token(last) if last.expiry > now) {
            state.set(Last::Failure(reason));
        }
        self.0.attempted.send_replace(true);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // While another thread gives tokens to the clients, this waits for it, and the client exists until then.
        self.token.state().clients.remove(&self.id);
    }
}

impl State {
    fn set(&mut self, last: Last) {
        self.clients.values().for_each(|client| last.apply_to(client));
        self.last = last;
    }
}

impl Last {
    fn apply_to(&self, client: &Registered) {
        match self {
            Last::Nothing => {}
            Last::Token(token) => {
                // For example, the token expired in this moment.
                if let Err(reason) = client.client.set(token) {
                    (client.report)(&reason);
                }
            }
            Last::Failure(reason) => (client.report)(reason),
        }
    }
}

impl NativeClient {
    /// Sets the token. The connections that wait for one continue, and those that are open use it when they log in again. A
    /// client with another mechanism rejects it, which changes nothing.
    fn set(&self, token: &Token) -> Result<(), String> {
        let mut extensions: Vec<*const c_char> = token.extensions.iter().map(|text| text.as_ptr()).collect();
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: the client exists, because its registration does; librdkafka copies every text, and ends the reason with NUL.
        unsafe {
            let code = rd::rd_kafka_oauthbearer_set_token(
                self.0,
                token.value.as_ptr(),
                token.expiry_millis(),
                token.principal.as_ptr(),
                extensions.as_mut_ptr(),
                extensions.len(),
                reason.as_mut_ptr(),
                reason.len(),
            );
            let accepted = code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
            if accepted { Ok(()) } else { Err(CStr::from_ptr(reason.as_ptr()).to_string_lossy().into_owned()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rdkafka::admin::AdminClient;
    use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
    use rdkafka::consumer::{BaseConsumer, ConsumerContext};

    use super::*;
    use crate::kafka::{ClientSetup, KafkaClient, OwnsClient};

    /// Passes the texts of errors on.
    struct Errors(mpsc::Sender<String>);

    impl ClientContext for Errors {
        fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

        fn error(&self, _: KafkaError, reason: &str) {
            let _ = self.0.send(reason.to_owned());
        }
    }

    impl ConsumerContext for Errors {}

    fn token(text: &str) -> Token {
        Token::new(text, Some(Duration::from_secs(60)), SystemTime::now()).expect("it is valid")
    }

    fn client<T>(shared: &SharedToken) -> (KafkaClient<T>, mpsc::Receiver<String>)
    where
        T: FromClientConfigAndContext<Errors> + OwnsClient,
    {
        let mut setup = ClientSetup::new(shared.clone());
        setup.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "OAUTHBEARER");
        let (sender, errors) = mpsc::channel();
        (setup.create_with_context(Errors(sender)).expect("it is created"), errors)
    }

    #[test]
    fn failure_is_reported_by_each_client_until_there_is_a_token() {
        let (shared, now) = (SharedToken::default(), SystemTime::now());
        // None of these clients is polled.
        let (_early, early) = client::<AdminClient<Errors>>(&shared);
        shared.fail("the issuer is down".to_owned(), now);
        let (_late, late) = client::<BaseConsumer<Errors>>(&shared);
        for errors in [&early, &late] {
            assert_eq!(errors.try_recv().as_deref(), Ok("no OAUTHBEARER token: the issuer is down"));
            assert!(errors.try_recv().is_err(), "it is reported once for each attempt");
        }
        assert!(shared.replace(token("first")) && !shared.replace(token("first")) && shared.replace(token("second")));
        shared.fail("the issuer is down again".to_owned(), now);
        assert!(early.try_recv().is_err(), "the last token is valid");
        shared.fail("the issuer is down again".to_owned(), now + Duration::from_secs(120));
        assert!(early.try_recv().is_ok(), "the last token has expired");
    }

    #[test]
    fn dropped_clients_get_no_token() {
        let shared = SharedToken::default();
        let dropping = shared.clone();
        let thread = std::thread::spawn(move || {
            for _ in 0..20 {
                drop(client::<BaseConsumer<Errors>>(&dropping));
            }
        });
        let mut replaced = 0;
        while !thread.is_finished() {
            replaced += 1;
            shared.replace(token(&format!("token-{replaced}")));
        }
        thread.join().expect("it ends");
        assert!(replaced > 0 && shared.state().clients.is_empty());
    }

    #[tokio::test]
    async fn first_attempt_completes_whatever_its_result() {
        let shared = SharedToken::default();
        let attempted = shared.clone();
        let waiting = tokio::spawn(async move { attempted.attempted().await });
        shared.fail("the issuer is down".to_owned(), SystemTime::now());
        waiting.await.expect("it completes");
    }
}
