//! The ID of the topic. If the topic is recreated, its ID is new and its offsets start at 0.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The IDs of the topics that had the name before, as far as this process knows. A broker that is isolated from the
/// controllers still returns them.
#[derive(Clone, Default)]
pub(crate) struct PreviousTopics(Arc<Mutex<HashSet<Uuid>>>);

/// The topic that the Kafka clients were created for.
#[derive(Clone)]
pub(crate) struct TopicIdentity {
    previous: PreviousTopics,
    state: Arc<Mutex<State>>,
    /// Cancelled when it is detected that the topic was recreated.
    restart: CancellationToken,
}

#[derive(Default)]
struct State {
    known: Option<Uuid>,
    is_another: bool,
    /// A broker reported that the topic does not exist, and no broker has returned its ID since.
    is_missing: bool,
}

impl TopicIdentity {
    /// Creates an identity whose ID is not known yet.
    pub(crate) fn new(previous: PreviousTopics, restart: CancellationToken) -> Self {
        TopicIdentity { previous, state: Arc::default(), restart }
    }

    /// Records the ID that a broker returned, `None` if the broker is too old for IDs. Fails if it is not the topic's
    /// current ID.
    pub(crate) fn record_topic_id(&self, id: Option<Uuid>) -> Result<Uuid, &'static str> {
        let mut state = self.state();
        let mut previous = self.previous.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = match (id, state.known) {
            (None, None) => Uuid::nil(),
            (None, Some(_)) => return Err("only some of the brokers return the topic's ID; it will be read again"),
            (Some(id), _) if previous.contains(&id) => {
                return Err("a broker returned the ID of a deleted topic; it will be read again");
            }
            (Some(id), None) => *state.known.insert(id),
            (Some(id), Some(known)) if id == known => id,
            (Some(_), Some(known)) => {
                tracing::warn!(previous_topic_id = %known, "detected that the topic was recreated");
                previous.insert(known);
                state.is_another = true;
                self.restart.cancel();
                return Err("the topic was recreated; the Kafka clients are restarted");
            }
        };
        state.is_missing = false;
        Ok(id)
    }

    /// Records that a broker reported that the topic does not exist.
    pub(crate) fn missing(&self) {
        self.state().is_missing = true;
    }

    pub(crate) fn is_another(&self) -> bool {
        self.state().is_another
    }

    pub(crate) fn is_missing(&self) -> bool {
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
    fn new_topic_id_restarts_clients_and_previous_id_is_rejected() {
        let previous = PreviousTopics::default();
        let start = || TopicIdentity::new(previous.clone(), CancellationToken::new());
        let (old, new) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = start();
        assert_eq!(first.record_topic_id(Some(old)), Ok(old));
        first.missing();
        assert!(first.record_topic_id(None).is_err() && first.is_missing(), "without an ID it may be another topic");
        assert_eq!(first.record_topic_id(Some(old)), Ok(old));
        assert!(!first.is_missing() && !first.is_another() && !first.restart.is_cancelled());
        assert!(first.record_topic_id(Some(new)).is_err() && first.is_another() && first.restart.is_cancelled());
        // The broker is isolated from the controllers.
        let second = start();
        assert!(second.record_topic_id(Some(old)).is_err());
        assert_eq!(second.record_topic_id(Some(new)), Ok(new));
        assert!(second.record_topic_id(Some(old)).is_err() && !second.is_another() && !second.restart.is_cancelled());
    }

    #[test]
    fn brokers_without_topic_ids_are_accepted() {
        let identity = TopicIdentity::new(PreviousTopics::default(), CancellationToken::new());
        assert_eq!(identity.record_topic_id(None), Ok(Uuid::nil()));
        identity.missing();
        assert_eq!(identity.record_topic_id(None), Ok(Uuid::nil()));
        assert!(!identity.is_missing());
    }
}
