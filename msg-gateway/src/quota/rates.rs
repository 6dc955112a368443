//! Limits the messages and bytes per second of each sender and of each tenant.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;
use msg_common::proto::Msg;
use prost::Message;

use crate::budget::Holder;
use crate::config::QuotaOptions;
use crate::metrics::QUOTA_BUCKETS_FORGOTTEN;
use crate::quota::buckets::{Buckets, Shortage, Unit};
use crate::quota::{Account, Quota};
use crate::status::Failure;

/// The shortest delay before a retry. After a shorter one, a busy bucket has enough for only a few messages.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// The buckets of all senders and tenants, under one lock: so a message is taken out of all its buckets or out of none.
pub(crate) struct Rates {
    /// `None` without any rate.
    tables: Option<Mutex<Tables>>,
    counts_bytes: bool,
}

struct Tables {
    senders: Buckets,
    tenants: Buckets,
}

impl Rates {
    /// Creates the buckets. Call it after the metrics recorder is installed.
    pub(crate) fn new(options: &QuotaOptions) -> Self {
        let QuotaOptions { quota_burst: burst, quota_buckets: max, .. } = *options;
        let [of_senders, of_tenants] = ["senders", "tenants"].map(|table| {
            let forgotten = counter!(QUOTA_BUCKETS_FORGOTTEN, "table" => table);
            forgotten.increment(0);
            forgotten
        });
        let tables = Tables {
            senders: Buckets::new(options.quota_sender_msgs, options.quota_sender_bytes, burst, max, of_senders),
            tenants: Buckets::new(options.quota_tenant_msgs, options.quota_tenant_bytes, burst, max, of_tenants),
        };
        let counts_bytes = tables.senders.limits_bytes() || tables.tenants.limits_bytes();
        let limits_anything = tables.senders.limits_anything() || tables.tenants.limits_anything();
        Rates { tables: limits_anything.then(|| Mutex::new(tables)), counts_bytes }
    }

    /// Takes a message out of the buckets of its sender and of its caller's tenant. If one of them has too little,
    /// nothing is taken, and the error has the time until it has enough.
    pub(crate) fn take(&self, msg: &Msg, account: Account) -> Result<(), Failure> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let bytes = if self.counts_bytes { msg.encoded_len() } else { 0 };
        let sender = Holder::named(&msg.send_id);
        let taken = tables.lock().unwrap_or_else(PoisonError::into_inner).take(sender, account.tenant, bytes);
        taken.map_err(|(quota, shortage)| {
            let text = format!("{}; retry after the delay, or raise {}", quota.what(), quota.setting());
            quota.exceeded(shortage.wait.max(MIN_DELAY), text)
        })
    }
}

impl Tables {
    fn take(&mut self, sender: Holder, tenant: Option<Holder>, bytes: usize) -> Result<(), (Quota, Shortage)> {
        let now = Instant::now();
        let of_sender = self.senders.check(sender, bytes, now).err().map(|shortage| (sender_quota(shortage), shortage));
        let of_tenant = tenant.and_then(|tenant| self.tenants.check(tenant, bytes, now).err());
        let of_tenant = of_tenant.map(|shortage| (tenant_quota(shortage), shortage));
        if let Some(longest) = of_sender.into_iter().chain(of_tenant).max_by_key(|(_, shortage)| shortage.wait) {
            return Err(longest);
        }
        self.senders.take(sender, bytes, now);
        if let Some(tenant) = tenant {
            self.tenants.take(tenant, bytes, now);
        }
        Ok(())
    }
}

fn sender_quota(shortage: Shortage) -> Quota {
    match shortage.unit {
        Unit::Msgs => Quota::SenderMsgs,
        Unit::Bytes => Quota::SenderBytes,
    }
}

fn tenant_quota(shortage: Shortage) -> Quota {
    match shortage.unit {
        Unit::Msgs => Quota::TenantMsgs,
        Unit::Bytes => Quota::TenantBytes,
    }
}
