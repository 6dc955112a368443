//! Settings of quotas, and of the share that one caller may have in flight.

use std::time::Duration;

use clap::Args;
use msg_common::config::{number_problem, parse_bytes, parse_duration, time_problem};

use crate::config::auth::AuthOptions;

/// What one sender, caller or tenant may use of this gateway.
#[derive(Args, Clone, Debug)]
pub struct QuotaOptions {
    /// Maximum number of messages per second of one sender (`send_id`); 0 is no limit. Above it, its messages fail with
    /// RESOURCE_EXHAUSTED. Each gateway counts for itself, which holds for all quotas
    #[arg(long, env = "QUOTA_SENDER_MSGS", default_value_t = 0, value_name = "N")]
    pub quota_sender_msgs: usize,
    /// Maximum bytes per second of the messages of one sender, as they are encoded in the request; 0 is no limit
    #[arg(long, env = "QUOTA_SENDER_BYTES", default_value = "0", value_parser = parse_bytes, value_name = "SIZE")]
    pub quota_sender_bytes: usize,
    /// Maximum number of messages per second of one tenant, over all its senders; 0 is no limit. Tenant quotas need
    /// --auth-tenant-claim
    #[arg(long, env = "QUOTA_TENANT_MSGS", default_value_t = 0, value_name = "N")]
    pub quota_tenant_msgs: usize,
    /// Maximum bytes per second of the messages of one tenant; 0 is no limit
    #[arg(long, env = "QUOTA_TENANT_BYTES", default_value = "0", value_parser = parse_bytes, value_name = "SIZE")]
    pub quota_tenant_bytes: usize,
    /// Burst of a sender or tenant, as a time: after a pause of this time or longer, it may send in one burst what its
    /// rate allows in this time
    #[arg(long, env = "QUOTA_BURST", default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub quota_burst: Duration,
    /// Maximum number of senders, and again of tenants, whose use is remembered, with about 150 bytes each. Above it,
    /// the one that has not sent for the longest time is forgotten and may send its burst again
    #[arg(long, env = "QUOTA_BUCKETS", default_value_t = 100_000, value_name = "N")]
    pub quota_buckets: usize,
    /// Maximum number of open StreamSendMsg streams of one caller; 0 is no limit. A caller is the subject of its token
    /// or certificate; with --auth-mode none, each connection. Above it, new streams fail with RESOURCE_EXHAUSTED
    #[arg(long, env = "QUOTA_CALLER_STREAMS", default_value_t = 0, value_name = "N")]
    pub quota_caller_streams: usize,
    /// Maximum number of open StreamSendMsg streams of one tenant; 0 is no limit
    #[arg(long, env = "QUOTA_TENANT_STREAMS", default_value_t = 0, value_name = "N")]
    pub quota_tenant_streams: usize,
    /// Maximum number of open WatchMsgs streams of one caller; 0 is no limit. Above it, new streams fail with
    /// RESOURCE_EXHAUSTED
    #[arg(long, env = "QUOTA_CALLER_WATCHES", default_value_t = 0, value_name = "N")]
    pub quota_caller_watches: usize,
    /// Maximum number of open WatchMsgs streams of one tenant; 0 is no limit
    #[arg(long, env = "QUOTA_TENANT_WATCHES", default_value_t = 0, value_name = "N")]
    pub quota_tenant_watches: usize,
    /// Percent of --max-inflight-msgs and --max-inflight-bytes that one caller may have in flight, of what other callers
    /// leave, while others send; 0 is no limit. A caller alone may have 90 %. Above it, its sends fail or wait as at
    /// --max-inflight-msgs
    #[arg(long, env = "CALLER_SHARE", default_value_t = 0, value_name = "PERCENT")]
    pub caller_share: usize,
}

impl QuotaOptions {
    pub(super) fn problems(&self, auth: &AuthOptions) -> Vec<String> {
        // Above what any gateway can do in a second, and above its connections.
        const MOST: usize = 10_000_000;
        const MAX_BYTES: usize = 1 << 40;
        let of_tenants = [
            ("--quota-tenant-msgs", self.quota_tenant_msgs, MOST),
            ("--quota-tenant-bytes", self.quota_tenant_bytes, MAX_BYTES),
            ("--quota-tenant-streams", self.quota_tenant_streams, MOST),
            ("--quota-tenant-watches", self.quota_tenant_watches, MOST),
        ];
        let of_all = [
            ("--quota-sender-msgs", self.quota_sender_msgs, MOST),
            ("--quota-sender-bytes", self.quota_sender_bytes, MAX_BYTES),
            ("--quota-caller-streams", self.quota_caller_streams, MOST),
            ("--quota-caller-watches", self.quota_caller_watches, MOST),
            ("--caller-share", self.caller_share, 100),
        ];
        let all = of_tenants.into_iter().chain(of_all);
        let mut problems: Vec<_> =
            all.filter_map(|(flag, value, max)| number_problem(flag, value, &(0..=max))).collect();
        problems.extend(number_problem("--quota-buckets", self.quota_buckets, &(1..=MOST)));
        let bursts = Duration::from_millis(1)..=Duration::from_secs(3600);
        problems.extend(time_problem("--quota-burst", self.quota_burst, &bursts));
        if auth.auth_tenant_claim.is_none() {
            // An operator who gives a quota expects that it limits something.
            let unused = of_tenants.into_iter().filter(|(_, value, _)| *value > 0);
            problems.extend(unused.map(|(flag, ..)| format!("{flag} has no effect without --auth-tenant-claim")));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        auth: AuthOptions,
        #[command(flatten)]
        quota: QuotaOptions,
    }

    fn problems(words: &str) -> Vec<String> {
        let words = std::iter::once("x").chain(words.split_whitespace());
        let Settings { auth, quota } = Settings::try_parse_from(words).expect("they have the right form");
        quota.problems(&auth)
    }

    #[test]
    fn quota_of_tenants_needs_their_claim() {
        assert_eq!(problems(""), Vec::<String>::new());
        assert_eq!(
            problems("--quota-tenant-msgs 5 --quota-tenant-bytes 0 --quota-tenant-watches 5"),
            ["--quota-tenant-msgs", "--quota-tenant-watches"]
                .map(|flag| format!("{flag} has no effect without --auth-tenant-claim"))
        );
        let good = "--quota-tenant-msgs 5 --auth-tenant-claim org --quota-sender-bytes 1MiB --caller-share 100";
        assert_eq!(problems(good), Vec::<String>::new());
    }

    #[test]
    fn quotas_have_ranges() {
        for bad in ["--caller-share 101", "--quota-buckets 0", "--quota-burst 0s", "--quota-sender-msgs 10000001"] {
            let flag = bad.split(' ').next().expect("it has a flag");
            let problems = problems(bad);
            assert!(problems.len() == 1 && problems[0].starts_with(flag), "{bad}: {problems:?}");
        }
    }
}
