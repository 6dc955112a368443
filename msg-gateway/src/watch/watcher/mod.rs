//! One WatchMsgs stream: `machine` decides which events its caller gets, and has no I/O; `driver` has the I/O and
//! decides nothing.

mod driver;
mod machine;

pub(super) use crate::watch::watcher::driver::Watcher;
