//! msg-transfer alone: records are written straight to the topic, and what becomes of them is looked up.

mod bad_records;
mod duplicates;
mod faults;
mod lifecycle;
mod order;
mod starts;
