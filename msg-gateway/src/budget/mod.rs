//! The one limiter of the gateway: a [`Budget`] has a maximum and hands out [`Permit`]s, which release their share when
//! they are dropped. All budgets, with their settings, texts and metrics, are listed in [`Budgets`].
//!
//! The counts and the queue are under one mutex. So the check and the increment are one step, a permit for items and
//! their size is acquired as a whole or not at all, and no failed attempt is ever counted. It is locked for a few
//! instructions: an acquire and its release cost as many atomic operations as two counters would.
//!
//! There are two ways to wait for capacity:
//! - [`Budget::acquire`] queues. Released capacity is granted in the order of the queue, and `try_acquire` does not
//!   overtake it. So a large page gets its bytes although small responses need capacity all the time.
//! - [`Budget::wait_for_capacity`] only notifies. Send streams use it: if they queued, released capacity would always
//!   go to them, and SendMsg would be rejected for as long as any stream waits.
//!
//! Some budgets also limit what each caller or tenant holds ([`Budget::try_acquire_for`]).

mod budgets;
mod holders;
mod limit;

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use metrics::Counter;
use tokio::sync::{Notify, oneshot};

pub(crate) use crate::budget::budgets::Budgets;
pub use crate::budget::budgets::partial_requests;
pub(crate) use crate::budget::holders::Holder;
use crate::budget::holders::{Held, HolderLimit};
pub(crate) use crate::budget::limit::Limit;
pub use crate::budget::limit::LimitReached;

/// Items, and their size. What an item is, and the unit of its size, depends on the budget. In a budget of bytes the
/// items are the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Number of items, or of bytes in a budget of bytes.
    pub items: usize,
    /// Size of all of them. 0 in a budget that limits only items.
    pub size: usize,
}

/// A maximum of items, and for some budgets of their size, that all operations of one kind share.
#[derive(Debug)]
pub struct Budget {
    items: Limit,
    size: Option<Limit>,
    /// The limit of each holder. Without one, permits have no holder.
    holder_limit: Option<HolderLimit>,
    /// With this many operations in the queue, [`Budget::acquire_by`] fails immediately.
    max_queued: usize,
    /// Counts the operations that fail at the limit.
    rejections: Counter,
    state: Mutex<State>,
    /// Wakes one listener of [`Budget::wait_for_capacity`] for each release that leaves it room.
    released: Notify,
}

#[derive(Debug, Default)]
struct State {
    used: Amount,
    held: Held,
    /// The waiting operations by ticket, which is the order of arrival.
    queue: BTreeMap<u64, Queued>,
    next_ticket: u64,
    /// The number of [`CapacityWait`]s. Without any, a release notifies nothing.
    listeners: usize,
}

#[derive(Debug)]
struct Queued {
    amount: Amount,
    grant: oneshot::Sender<Permit>,
}

/// One operation's share of a budget, released when it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    amount: Amount,
    /// Whom it is counted for, if the budget limits each holder.
    holder: Option<Holder>,
}

impl Budget {
    /// Creates a budget that limits items only.
    pub(crate) fn new(items: Limit) -> Self {
        Budget {
            items,
            size: None,
            holder_limit: None,
            max_queued: usize::MAX,
            rejections: Counter::noop(),
            state: Mutex::default(),
            released: Notify::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn of_items(max: usize) -> Arc<Self> {
        Budget::new(Limit::new(max, "are held")).into()
    }

    /// Also limits the size of all items.
    pub(crate) fn with_size(self, size: Limit) -> Self {
        Budget { size: Some(size), ..self }
    }

    pub(crate) fn with_max_queued(self, max_queued: usize) -> Self {
        Budget { max_queued, ..self }
    }

    /// Counts the operations that fail at the limit.
    pub(crate) fn with_rejections(self, rejections: Counter) -> Self {
        Budget { rejections, ..self }
    }

    /// Returns the amount of all permits.
    pub fn used(&self) -> Amount {
        self.lock().used
    }

    /// Returns an empty permit, which can grow.
    pub(crate) fn empty(self: &Arc<Self>) -> Permit {
        self.permit(Amount::default(), None)
    }

    /// Acquires a permit for the whole amount, or fails immediately.
    pub(crate) fn try_acquire(self: &Arc<Self>, amount: impl Into<Amount>) -> Result<Permit, LimitReached> {
        self.try_acquire_as(None, amount.into())
    }

    /// Acquires a permit as [`Budget::try_acquire`] does, within the limit of its holder.
    pub(crate) fn try_acquire_for(
        self: &Arc<Self>,
        holder: Holder,
        amount: impl Into<Amount>,
    ) -> Result<Permit, LimitReached> {
        self.try_acquire_as(self.holder_limit.as_ref().map(|_| holder), amount.into())
    }

    fn try_acquire_as(self: &Arc<Self>, holder: Option<Holder>, amount: Amount) -> Result<Permit, LimitReached> {
        let acquired = self.acquire_now(&mut self.lock(), amount, holder);
        acquired.inspect_err(|_| self.rejections.increment(1))
    }

    /// Acquires a permit, or waits in the queue for it. An amount that never fits waits without limit.
    pub(crate) async fn acquire(self: &Arc<Self>, amount: impl Into<Amount>) -> Permit {
        let amount = amount.into();
        let ticket = {
            let mut state = self.lock();
            match self.acquire_now(&mut state, amount, None) {
                Ok(permit) => return permit,
                Err(_) => self.queue(&mut state, amount),
            }
        };
        ticket.granted().await
    }

    /// Acquires a permit as [`Budget::acquire`] does, or fails at `by`, or immediately if the queue is full.
    pub(crate) async fn acquire_by(
        self: &Arc<Self>,
        amount: impl Into<Amount>,
        by: Instant,
    ) -> Result<Permit, LimitReached> {
        let amount = amount.into();
        let (ticket, reached) = {
            let mut state = self.lock();
            match self.acquire_now(&mut state, amount, None) {
                Ok(permit) => return Ok(permit),
                Err(reached) if state.queue.len() < self.max_queued => (Some(self.queue(&mut state, amount)), reached),
                Err(reached) => (None, reached),
            }
        };
        let permit = match ticket {
            Some(ticket) => tokio::time::timeout_at(by.into(), ticket.granted()).await.ok(),
            None => None,
        };
        permit.ok_or(reached).inspect_err(|_| self.rejections.increment(1))
    }

    /// Registers a listener, which is notified of permits that are released from now on. Try to acquire between this
    /// and [`CapacityWait::released`]: permits that were released before this call notify no listener.
    pub(crate) fn wait_for_capacity(self: &Arc<Self>) -> CapacityWait {
        self.lock().listeners += 1;
        CapacityWait { budget: self.clone() }
    }

    /// Returns why an operation that needs `amount` fails at the limit.
    pub(crate) fn reached(&self, amount: impl Into<Amount>) -> LimitReached {
        let (used, amount) = (self.used(), amount.into());
        self.limit_reached(used, amount).unwrap_or_else(|| self.items.reached(used.items, amount.items))
    }

    pub(crate) fn update_gauges(&self) {
        let state = self.lock();
        self.show(state.used, true);
    }

    fn acquire_now(
        self: &Arc<Self>,
        state: &mut State,
        amount: Amount,
        holder: Option<Holder>,
    ) -> Result<Permit, LimitReached> {
        let of_holder =
            holder.and_then(|holder| self.holder_limit_reached(&mut state.held, state.used, holder, amount));
        // If both are reached, the limit of the holder says more: others may still acquire.
        match of_holder.or_else(|| self.limit_reached(state.used, amount)) {
            None if state.queue.is_empty() || amount == Amount::default() => {
                state.used += amount;
                holder.into_iter().for_each(|holder| state.held.add(holder, amount));
                self.show(state.used, false);
                Ok(self.permit(amount, holder))
            }
            None => Err(self.items.reached(state.used.items, amount.items)),
            Some(reached) => Err(reached),
        }
    }

    fn permit(self: &Arc<Self>, amount: Amount, holder: Option<Holder>) -> Permit {
        Permit { budget: self.clone(), amount, holder }
    }

    fn limit_reached(&self, used: Amount, amount: Amount) -> Option<LimitReached> {
        if !self.items.fits(used.items, amount.items) {
            return Some(self.items.reached(used.items, amount.items));
        }
        let size = self.size.as_ref().filter(|size| !size.fits(used.size, amount.size))?;
        Some(size.reached(used.size, amount.size))
    }

    fn queue<'a>(self: &'a Arc<Self>, state: &mut State, amount: Amount) -> Ticket<'a> {
        let (grant, permit) = oneshot::channel();
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.queue.insert(number, Queued { amount, grant });
        Ticket { budget: self, number, permit }
    }

    fn release(self: &Arc<Self>, amount: Amount, holder: Option<Holder>) {
        let mut state = self.lock();
        let was_full = self.limit_reached(state.used, Amount { items: 1, size: 1 }).is_some();
        state.used -= amount;
        holder.into_iter().for_each(|holder| state.held.remove(holder, amount));
        let wakes = state.listeners > 0 && (was_full || self.has_room(&state, holder));
        self.grant(state);
        if wakes {
            self.released.notify_one();
        }
    }

    /// Gives capacity to the queue, in order, while its first one fits.
    fn grant(self: &Arc<Self>, mut guard: MutexGuard<'_, State>) {
        let state = &mut *guard;
        let mut granted = Vec::new();
        while let Some(first) = state.queue.first_entry()
            && self.limit_reached(state.used, first.get().amount).is_none()
        {
            let queued = first.remove();
            state.used += queued.amount;
            granted.push(queued);
        }
        self.show(state.used, false);
        drop(guard);
        for Queued { amount, grant } in granted {
            // If the operation was cancelled in this moment, `send` returns the permit, and it is dropped here.
            let _ = grant.send(self.permit(amount, None));
        }
    }

    /// Sets the gauges: all of them, or only those that are set with each change.
    fn show(&self, used: Amount, all: bool) {
        self.items.show(used.items, all);
        if let Some(size) = &self.size {
            size.show(used.size, all);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Splits off a part, which is released on its own.
    pub(crate) fn split(&mut self, amount: impl Into<Amount>) -> Permit {
        let amount = amount.into();
        self.amount -= amount;
        self.budget.permit(amount, self.holder)
    }

    /// Adds another permit of the same budget and holder.
    pub(crate) fn merge(&mut self, mut other: Permit) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget), "permits of two budgets");
        debug_assert_eq!(self.holder, other.holder, "permits of two holders");
        self.amount += std::mem::take(&mut other.amount);
    }

    /// Changes the number of items. If they do not fit, the permit stays as it is.
    pub(crate) fn try_resize(&mut self, items: usize) -> Result<(), LimitReached> {
        // Do not lock if the amount does not change: most requests arrive in one chunk, and never hold any bytes.
        if items > self.amount.items {
            let more = self.budget.try_acquire_as(self.holder, (items - self.amount.items).into())?;
            self.merge(more);
        }
        self.shrink(items);
        Ok(())
    }

    /// Releases the items beyond `items`.
    pub(crate) fn shrink(&mut self, items: usize) {
        drop(self.split(self.amount.items.saturating_sub(items)));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.amount != Amount::default() {
            self.budget.release(self.amount, self.holder);
        }
    }
}

/// An acquire that is in the queue. It leaves the queue when this is dropped.
struct Ticket<'a> {
    budget: &'a Arc<Budget>,
    number: u64,
    /// A permit that was granted, and not received, is dropped with it.
    permit: oneshot::Receiver<Permit>,
}

impl Ticket<'_> {
    async fn granted(mut self) -> Permit {
        (&mut self.permit).await.expect("the queue keeps the sender until it grants the permit")
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        if state.queue.remove(&self.number).is_some() {
            // The next one may fit where this one did not.
            self.budget.grant(state);
        }
    }
}

/// Waits for capacity outside of the queue.
#[derive(Debug)]
pub(crate) struct CapacityWait {
    budget: Arc<Budget>,
}

impl CapacityWait {
    /// Waits until a permit is released. Each release wakes one listener, in order.
    pub(crate) async fn released(&self) {
        self.budget.released.notified().await;
    }
}

impl Drop for CapacityWait {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.listeners -= 1;
        // The listener that was woken may leave capacity for the next one.
        let has_listener = state.listeners > 0;
        drop(state);
        if has_listener {
            self.budget.released.notify_one();
        }
    }
}

impl From<usize> for Amount {
    fn from(items: usize) -> Self {
        Amount { items, size: 0 }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.items += other.items;
        self.size += other.size;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        self.items -= other.items;
        self.size -= other.size;
    }
}

#[cfg(test)]
mod tests;
