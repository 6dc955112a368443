//! Whom a call is counted for: its caller, and the caller's tenant.

use std::sync::Arc;

use crate::auth::rules::Caller;
use crate::budget::{Budget, Holder, LimitReached, Permit};
use crate::incoming::Lifetime;

/// Whom a call is counted for. The sender is not here: each message has its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// The subject of the caller or, if callers are not asked who they are, its connection.
    pub(crate) caller: Holder,
    /// `None` if the caller's token names no tenant.
    pub(crate) tenant: Option<Holder>,
}

impl Account {
    pub(crate) fn of(caller: &Caller, connection: &Lifetime) -> Self {
        let of_connection = || Holder::numbered(connection.number());
        Account {
            caller: caller.subject().map_or_else(of_connection, Holder::named),
            tenant: caller.tenant().map(Holder::named),
        }
    }

    /// Acquires one item of each budget, for the caller and for its tenant.
    pub(crate) fn acquire_one(
        self,
        by_caller: &Arc<Budget>,
        by_tenant: &Arc<Budget>,
    ) -> Result<Vec<Permit>, LimitReached> {
        let mut permits = vec![by_caller.try_acquire_for(self.caller, 1)?];
        if let Some(tenant) = self.tenant {
            permits.push(by_tenant.try_acquire_for(tenant, 1)?);
        }
        Ok(permits)
    }
}
