//! Identifies the assignment under which a record became a dead letter. Each process counts its epochs from 1, also
//! after a restart.

use machine::Epoch;

/// An epoch, made unique by its process and by the number of that process's restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AssignmentId {
    pub(crate) process: usize,
    pub(crate) restarts: u32,
    pub(crate) epoch: Epoch,
}
