//! Which topic has the name: one that is deleted and made anew has another id, and offsets of its own.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The topics that had the name before, as far as this process knows. A broker that is cut off from the controllers still speaks of
/// them.
#[derive(Clone, Default)]
pub struct FormerTopics(Arc<Mutex<HashSet<Uuid>>>);

/// The topic that the clients were made for.
#[derive(Clone)]
pub struct TopicIdentity {
    former: FormerTopics,
    state: Arc<Mutex<State>>,
    /// Cancelled when the topic was recreated.
    restart: CancellationToken,
}

#[derive(Default)]
struct State {
    known: Option<Uuid>,
    /// Another one has the name.
    is_another: bool,
    /// It was said not to be there, and its id was not told since.
    is_missing: bool,
}

impl TopicIdentity {
    /// Not told yet.
    pub fn new(former: FormerTopics, restart: CancellationToken) -> Self {
        TopicIdentity { former, state: Arc::default(), restart }
    }

    /// Records the ID that a broker returned, `None` if it is too old to have one. Fails if the ID cannot be the present one.
    pub fn record_topic_id(&self, id: Option<Uuid>) -> Result<Uuid, &'static str> {
        let mut state = self.state();
        let mut former = self.former.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = match (id, state.known) {
            (None, None) => Uuid::nil(),
            (None, Some(_)) => return Err("only some of the brokers tell the topic's id"),
            (Some(id), _) if former.contains(&id) => return Err("a broker speaks of a topic that is gone"),
            (Some(id), None) => *state.known.insert(id),
            (Some(id), Some(known)) if id == known => id,
            (Some(_), Some(known)) => {
                tracing::warn!(topic_id = %known, "the topic was made anew");
                former.insert(known);
                state.is_another = true;
                self.restart.cancel();
                return Err("the topic was made anew");
            }
        };
        state.is_missing = false;
        Ok(id)
    }

    /// Kafka says that there is no such topic.
    pub fn missing(&self) {
        self.state().is_missing = true;
    }

    /// Whether another topic has the name.
    pub fn is_another(&self) -> bool {
        self.state().is_another
    }

    /// Whether the topic is missing, as far as is known.
    pub fn is_missing(&self) -> bool {
        self.state().is_missing
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_id_is_another_topic_and_a_former_one_is_none() {
        let former = FormerTopics::default();
        let begin = || TopicIdentity::new(former.clone(), CancellationToken::new());
        let (old, new) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = begin();
        assert_eq!(first.record_topic_id(Some(old)), Ok(old));
        first.missing();
        assert!(first.record_topic_id(None).is_err() && first.is_missing(), "it is not told that it is the same");
        assert_eq!(first.record_topic_id(Some(old)), Ok(old));
        assert!(!first.is_missing() && !first.is_another() && !first.restart.is_cancelled());
        assert!(first.record_topic_id(Some(new)).is_err() && first.is_another() && first.restart.is_cancelled());
        // From a broker that has heard of nothing.
        let second = begin();
        assert!(second.record_topic_id(Some(old)).is_err());
        assert_eq!(second.record_topic_id(Some(new)), Ok(new));
        assert!(second.record_topic_id(Some(old)).is_err() && !second.is_another() && !second.restart.is_cancelled());
    }

    #[test]
    fn brokers_that_tell_no_id_are_believed_until_one_does() {
        let identity = TopicIdentity::new(FormerTopics::default(), CancellationToken::new());
        assert_eq!(identity.record_topic_id(None), Ok(Uuid::nil()));
        identity.missing();
        assert_eq!(identity.record_topic_id(None), Ok(Uuid::nil()));
        assert!(!identity.is_missing());
    }
}
