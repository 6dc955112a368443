//! Which assignment a dead letter was written under: epochs are counted from 1 in each life of a process.

use machine::Epoch;

/// An epoch, made unique by the process and its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AssignmentId {
    pub(crate) process: usize,
    pub(crate) life: u32,
    pub(crate) epoch: Epoch,
}
