//! An assignment of a partition to this process, shared by the consumer and the lanes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

/// The number of one assignment of one partition. It is never reused, so records of a previous assignment are
/// recognized.
pub type Epoch = u64;

/// The number of a reference connection; a later connection has a higher number.
pub type ConnectionNumber = u64;

#[derive(Debug)]
pub struct Assignment {
    pub epoch: Epoch,
    read: OnceLock<(Uuid, ConnectionNumber)>,
    fenced: AtomicBool,
}

impl Assignment {
    /// Creates an assignment that is not fenced and whose start offset is not resolved yet.
    pub fn new(epoch: Epoch) -> Self {
        Assignment { epoch, read: OnceLock::new(), fenced: AtomicBool::new(false) }
    }

    /// Returns the ID that distinguishes a topic from a recreated one; nil if the broker returns none. `None` before
    /// the start offset is resolved.
    pub fn topic_id(&self) -> Option<Uuid> {
        self.read.get().map(|(topic_id, _)| *topic_id)
    }

    /// Returns the number of the reference connection that the start offset was read over. `None` before it is
    /// resolved.
    pub fn connection_number(&self) -> Option<ConnectionNumber> {
        self.read.get().map(|(_, connection_number)| *connection_number)
    }

    /// Records that the start offset was resolved. Later calls change nothing.
    pub fn start_read(&self, topic_id: Uuid, connection_number: ConnectionNumber) {
        let _ = self.read.set((topic_id, connection_number));
    }

    /// Fences the assignment: from now on, nothing received under it may be written.
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }
}
