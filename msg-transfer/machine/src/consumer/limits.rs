//! The limits on records in flight: when no record is consumed, and when a partition is throttled.

use super::Machine;
use super::event::{Action, RecordRef};
use super::owned::{Owned, ThrottleChange};

impl Machine {
    /// Returns whether further records may be consumed now.
    pub fn wants_records(&mut self) -> bool {
        // Records in blocked inboxes may stay for days: only the rest of the limits has watermarks, or consuming would
        // never resume.
        let (blocked_bytes, blocked_records) = self.blocked_inflight;
        let above = |part: usize, inflight: usize, blocked: usize, limit: usize| {
            inflight >= limit || inflight.saturating_sub(blocked) >= (limit.saturating_sub(blocked) / part).max(1)
        };
        let above = |part: usize| {
            above(part, self.inflight_bytes, blocked_bytes, self.settings.max_inflight_bytes)
                || above(part, self.inflight_records, blocked_records, self.settings.max_inflight_records)
        };
        self.full = if self.full { above(2) } else { above(1) };
        !self.full
    }

    /// Returns the bytes and records in the lanes.
    pub fn inflight(&self) -> (usize, usize) {
        (self.inflight_bytes, self.inflight_records)
    }

    pub(super) fn leave_lane(&mut self, record: &RecordRef) {
        self.inflight_bytes -= record.bytes;
        self.inflight_records -= 1;
        if let Some(owned) = self.current(record.partition, record.epoch) {
            owned.leave_lane(record);
        }
    }

    /// Counts records that enter or leave blocked inboxes.
    pub(super) fn block(&mut self, records: &[RecordRef], count: impl Fn(&mut Owned, &RecordRef)) {
        for record in records {
            if let Some(owned) = self.current(record.partition, record.epoch) {
                count(owned, record);
            }
        }
    }

    /// Recomputes the shares of the partitions that have blocked records, after their number changed.
    pub(super) fn share_blocked(&mut self, actions: &mut Vec<Action>) {
        let before = self.blocked;
        self.blocked = self.owned.values().filter(|owned| owned.is_blocked()).count();
        if (before, self.blocked) == (0, 0) {
            return;
        }
        let sum = |(bytes, records), (more_bytes, more_records)| (bytes + more_bytes, records + more_records);
        self.blocked_inflight = self.owned.values().map(Owned::blocked).fold((0, 0), sum);
        for (partition, owned) in &mut self.owned {
            let partition = *partition;
            match owned.throttle_change(&self.settings, self.blocked) {
                Some(ThrottleChange::Throttle) => actions.push(Action::Throttle { partition }),
                Some(ThrottleChange::Unthrottle) => actions.push(Action::Unthrottle { partition }),
                None => {}
            }
        }
    }

    /// Unthrottles the partitions of these records, which left the lanes, if they are below their share again.
    pub(super) fn unthrottle(&mut self, records: &[RecordRef], actions: &mut Vec<Action>) {
        for some in records.chunk_by(|a, b| (a.partition, a.epoch) == (b.partition, b.epoch)) {
            let partition = some[0].partition;
            let settings = &self.settings;
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            if owned.throttle_change(settings, self.blocked) == Some(ThrottleChange::Unthrottle) {
                actions.push(Action::Unthrottle { partition });
            }
        }
    }
}
