//! What each holder of a budget may hold: a fixed number, or a share while other holders use the budget too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::budget::limit::{Limit, LimitReached};
use crate::budget::{Amount, Budget, State};
use crate::quota::Quota;

/// How long a holder counts as another user of the budget after its last attempt to acquire.
const RECENT: Duration = Duration::from_secs(10);
/// Percent of the budget that a holder may use while there is no other. The rest is for the first call of another one:
/// what the only holder has acquired is released only when it ends.
const ALONE_PERCENT: usize = 90;

/// While a holder has more than this percent of its share, its releases wake no listener. Otherwise each delivery report
/// would wake a stream at its share for one more record, and Kafka would get each record in a request of its own.
const ROOM_PERCENT: usize = 75;

/// Whom a permit is counted for: a hash of a fixed size, because callers choose the names. Its key is random, so no
/// caller can construct a name with the hash of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holder(u64);

impl Holder {
    pub(crate) fn named(name: &str) -> Self {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Holder(HASHER.hash_one(name))
    }

    pub(crate) fn numbered(number: u64) -> Self {
        Holder(number)
    }
}

/// The limit of each holder.
#[derive(Debug)]
pub(super) enum HolderLimit {
    /// Maximum number of items.
    Items(Limit),
    /// Percent of the capacity that the other holders leave, while there are others.
    Share { percent: usize },
}

/// What the holders hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    amounts: HashMap<Holder, Amount>,
    /// The holder that tried to acquire last, and the last other one. More is not needed to know whether a holder is alone.
    recent: [Option<(Holder, Instant)>; 2],
}

impl Held {
    pub(super) fn of(&self, holder: Holder) -> Amount {
        self.amounts.get(&holder).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, holder: Holder, amount: Amount) {
        // A permit for nothing is never released.
        if amount != Amount::default() {
            *self.amounts.entry(holder).or_default() += amount;
        }
    }

    pub(super) fn remove(&mut self, holder: Holder, amount: Amount) {
        let Entry::Occupied(mut held) = self.amounts.entry(holder) else { return };
        *held.get_mut() -= amount;
        if *held.get() == Amount::default() {
            held.remove();
        }
    }

    /// Notes that a holder tried to acquire.
    fn note(&mut self, holder: Holder, now: Instant) {
        if self.recent[0].is_none_or(|(last, _)| last != holder) {
            self.recent[1] = self.recent[0];
        }
        self.recent[0] = Some((holder, now));
    }

    /// Returns whether another holder holds something, or has lately tried to acquire.
    fn has_others(&self, holder: Holder, now: Instant) -> bool {
        let is_recent = |(other, at): (Holder, Instant)| other != holder && now.duration_since(at) < RECENT;
        let own = usize::from(self.amounts.contains_key(&holder));
        self.amounts.len() > own || self.recent.into_iter().flatten().any(is_recent)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.amounts.is_empty()
    }
}

impl Budget {
    /// Limits the items of each holder. `limit` is 0 if there is no limit.
    pub(crate) fn with_max_per_holder(self, limit: usize, quota: Quota) -> Self {
        if limit == 0 {
            return self;
        }
        let limit = Limit::of_setting(limit, quota.what(), quota.setting()).with_quota(quota);
        Budget { holder_limit: Some(HolderLimit::Items(limit)), ..self }
    }

    /// Limits the items of each holder, with a limit that is no quota.
    pub(crate) fn with_limit_per_holder(self, limit: Limit) -> Self {
        Budget { holder_limit: Some(HolderLimit::Items(limit)), ..self }
    }

    /// Limits each holder to `percent` of the capacity that the others leave, while there are others. A holder of
    /// nothing may acquire anything that fits: otherwise a large amount would be rejected on every retry. 0 is no limit.
    pub(crate) fn with_share(self, percent: usize) -> Self {
        if percent == 0 {
            return self;
        }
        Budget { holder_limit: Some(HolderLimit::Share { percent }), ..self }
    }

    /// Returns the limit that this holder reaches with `amount` more. `used` is the amount of all holders.
    pub(super) fn holder_limit_reached(
        &self,
        held: &mut Held,
        used: Amount,
        holder: Holder,
        amount: Amount,
    ) -> Option<LimitReached> {
        let own = held.of(holder);
        match self.holder_limit.as_ref()? {
            HolderLimit::Items(limit) => {
                (!limit.fits(own.items, amount.items)).then(|| limit.reached(own.items, amount.items))
            }
            HolderLimit::Share { percent } => {
                let now = Instant::now();
                held.note(holder, now);
                if own == Amount::default() {
                    return None;
                }
                let share = self.share(*percent, held, used, holder, now);
                let reached = |max, what| {
                    Limit::of_setting(max, what, Quota::CallerShare.setting()).with_quota(Quota::CallerShare)
                };
                let items = reached(share.items, Quota::CallerShare.what());
                if !items.fits(own.items, amount.items) {
                    return Some(items.reached(own.items, amount.items));
                }
                let size = reached(share.size, "bytes of messages of this caller are in flight");
                (!size.fits(own.size, amount.size)).then(|| size.reached(own.size, amount.size))
            }
        }
    }

    /// Returns the most that a holder may have: a part of what the others leave.
    fn share(&self, percent: usize, held: &Held, used: Amount, holder: Holder, now: Instant) -> Amount {
        let own = held.of(holder);
        let percent = if held.has_others(holder, now) { percent } else { ALONE_PERCENT.max(percent) };
        let of = |max: usize, others: usize| max.saturating_sub(others).saturating_mul(percent) / 100;
        Amount {
            items: of(self.items.max(), used.items - own.items),
            size: self.size.as_ref().map_or(usize::MAX, |size| of(size.max(), used.size - own.size)),
        }
    }

    /// Returns whether what a holder has released leaves enough of its share to wake a listener for.
    pub(super) fn has_room(&self, state: &State, holder: Option<Holder>) -> bool {
        let (Some(holder), Some(HolderLimit::Share { percent })) = (holder, &self.holder_limit) else { return true };
        let own = state.held.of(holder);
        let share = self.share(*percent, &state.held, state.used, holder, Instant::now());
        let is_below = |own: usize, share: usize| own <= share.saturating_mul(ROOM_PERCENT) / 100;
        is_below(own.items, share.items) && is_below(own.size, share.size)
    }
}

#[cfg(test)]
mod tests;
