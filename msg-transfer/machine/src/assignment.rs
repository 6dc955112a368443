//! One assignment of one partition to this process, shared by the consumer and the lanes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

/// Which assignment. Never used again: what belongs to a former one is told apart.
pub type Epoch = u64;

/// One of the keeper's connections; a later one has a higher number.
pub type Generation = u64;

/// One assignment.
#[derive(Debug)]
pub struct Assignment {
    /// Which one.
    pub epoch: Epoch,
    read: OnceLock<(Uuid, Generation)>,
    fenced: AtomicBool,
}

impl Assignment {
    /// Not fenced; its start, and so its topic's id, is not known yet.
    pub fn new(epoch: Epoch) -> Self {
        Assignment { epoch, read: OnceLock::new(), fenced: AtomicBool::new(false) }
    }

    /// The id that tells a topic from its successor under the same name; nil where the broker gives none. `None`
    /// before the start is known.
    pub fn topic_id(&self) -> Option<Uuid> {
        self.read.get().map(|(topic_id, _)| *topic_id)
    }

    /// Over which connection the start was read. `None` before it is known.
    pub fn generation(&self) -> Option<Generation> {
        self.read.get().map(|(_, generation)| *generation)
    }

    /// The start was read. Only the first call counts.
    pub fn start_read(&self, topic_id: Uuid, generation: Generation) {
        let _ = self.read.set((topic_id, generation));
    }

    /// From now on, nothing that was received under it may be written.
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether it is over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }
}
