//! Quotas: what one sender, one caller or one tenant may use of this gateway. `rates` limits messages and bytes per
//! second, and budgets with a limit for each holder limit what is open or in flight.

mod account;
mod buckets;
mod rates;

use std::time::Duration;

use metrics::counter;

use crate::metrics::QUOTA_REJECTIONS;
pub(crate) use crate::quota::account::Account;
pub(crate) use crate::quota::rates::Rates;
use crate::status::Failure;

/// A quota, as its setting, the metric and the errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Messages per second of a `send_id`.
    SenderMsgs,
    /// Bytes per second of a `send_id`.
    SenderBytes,
    /// Messages per second of a tenant.
    TenantMsgs,
    /// Bytes per second of a tenant.
    TenantBytes,
    /// Open StreamSendMsg streams of a caller.
    CallerStreams,
    /// Open StreamSendMsg streams of a tenant.
    TenantStreams,
    /// Open WatchMsgs streams of a caller.
    CallerWatches,
    /// Open WatchMsgs streams of a tenant.
    TenantWatches,
    /// What a caller has in flight.
    CallerShare,
}

impl Quota {
    pub(crate) const ALL: [Quota; 9] = [
        Quota::SenderMsgs,
        Quota::SenderBytes,
        Quota::TenantMsgs,
        Quota::TenantBytes,
        Quota::CallerStreams,
        Quota::TenantStreams,
        Quota::CallerWatches,
        Quota::TenantWatches,
        Quota::CallerShare,
    ];

    /// Returns the label of the metric, and the value of `quota` in ErrorInfo.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Quota::SenderMsgs => "sender_msgs",
            Quota::SenderBytes => "sender_bytes",
            Quota::TenantMsgs => "tenant_msgs",
            Quota::TenantBytes => "tenant_bytes",
            Quota::CallerStreams => "caller_streams",
            Quota::TenantStreams => "tenant_streams",
            Quota::CallerWatches => "caller_watches",
            Quota::TenantWatches => "tenant_watches",
            Quota::CallerShare => "caller_share",
        }
    }

    pub(crate) fn setting(self) -> &'static str {
        match self {
            Quota::SenderMsgs => "QUOTA_SENDER_MSGS",
            Quota::SenderBytes => "QUOTA_SENDER_BYTES",
            Quota::TenantMsgs => "QUOTA_TENANT_MSGS",
            Quota::TenantBytes => "QUOTA_TENANT_BYTES",
            Quota::CallerStreams => "QUOTA_CALLER_STREAMS",
            Quota::TenantStreams => "QUOTA_TENANT_STREAMS",
            Quota::CallerWatches => "QUOTA_CALLER_WATCHES",
            Quota::TenantWatches => "QUOTA_TENANT_WATCHES",
            Quota::CallerShare => "CALLER_SHARE",
        }
    }

    /// Returns what is limited, with its verb.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Quota::SenderMsgs => "messages per second of this sender are used up",
            Quota::SenderBytes => "bytes per second of this sender are used up",
            Quota::TenantMsgs => "messages per second of this tenant are used up",
            Quota::TenantBytes => "bytes per second of this tenant are used up",
            Quota::CallerStreams => "send streams of this caller are open",
            Quota::TenantStreams => "send streams of this tenant are open",
            Quota::CallerWatches => "watch streams of this caller are open",
            Quota::TenantWatches => "watch streams of this tenant are open",
            Quota::CallerShare => "messages of this caller are in flight",
        }
    }

    /// Returns the delay before a retry if the time until the quota is free again is not known.
    pub(crate) fn retry_after(self) -> Duration {
        match self {
            // What is in flight is confirmed within milliseconds. A stream may be open for hours.
            Quota::CallerShare => Duration::from_millis(100),
            _ => Duration::from_secs(1),
        }
    }

    /// Counts a rejected call or entry, and returns its error.
    pub(crate) fn exceeded(self, retry_after: Duration, text: String) -> Failure {
        counter!(QUOTA_REJECTIONS, "quota" => self.name()).increment(1);
        Failure::QuotaExceeded { quota: self, retry_after, text }
    }
}

/// Makes every counter of rejections start at 0, so that an alert sees the first one. Call it after the metrics recorder
/// is installed.
pub(crate) fn start_counters() {
    for quota in Quota::ALL {
        counter!(QUOTA_REJECTIONS, "quota" => quota.name()).increment(0);
    }
}
