//! Every budget of the gateway, with its setting, its error text and its metric.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Limit};
use crate::config::Config;
use crate::metrics::{
    BUFFERED_REQUEST_BYTES, CALLS_REJECTED, CONNECTIONS, CONNECTIONS_REFUSED, INFLIGHT_BYTES, INFLIGHT_MSGS,
    OPEN_CALLS, SEND_STREAMS, STORED_WAITERS, UNREAD_RESPONSE_BYTES, WATCHED_INBOXES, WATCHERS,
};
use crate::quota::{Quota, start_counters};

/// How many reads may wait, for each one that may run. More are rejected: their callers would have timed out before
/// they got a permit.
const WAITING_PER_READ: usize = 4;
/// Maximum number of reflection streams: tools for people use them.
const MAX_REFLECTIONS: usize = 32;
/// Maximum number of responses, not written yet, to calls above the limit of open calls, and again to calls without valid
/// credentials.
const MAX_REJECTIONS: usize = 4096;
/// Maximum number of health checks of one connection, if other calls need credentials. A client has one watch.
const MAX_HEALTH_CHECKS: usize = 16;
/// Maximum bytes of partially received health checks, if other calls need credentials. Almost all arrive in one frame.
const MAX_HEALTH_BYTES: usize = 1 << 20;
/// Maximum number of calls that wait for the keys of the token issuer. Meanwhile HTTP/2 holds the window of each, which is
/// 256 KiB.
const MAX_KEY_WAITS: usize = 256;
/// Maximum number of concurrent requests to Kafka. Each blocks a thread, and continues after its caller has
/// disconnected.
const MAX_KAFKA_REQUESTS: usize = 8;

/// The budgets of the gateway, each over all connections.
#[derive(Debug)]
pub(crate) struct Budgets {
    pub(crate) connections: Arc<Budget>,
    /// Open calls: until the last byte of the response is written.
    pub(crate) calls: Arc<Budget>,
    /// Calls above the limit of open calls, whose responses are not written yet.
    pub(crate) rejections: Arc<Budget>,
    /// Calls without valid credentials, whose responses are not written yet. They hold nothing that other calls need.
    pub(crate) refusals: Arc<Budget>,
    /// Health checks and watches, if other calls need credentials: everyone may open them.
    pub(crate) health_checks: Arc<Budget>,
    /// Bytes of partially received health checks, if other calls need credentials.
    pub(crate) health_bytes: Arc<Budget>,
    /// Calls that wait for the keys of the token issuer: their callers are not known yet.
    pub(crate) key_waits: Arc<Budget>,
    pub(crate) reflections: Arc<Budget>,
    /// Bytes of partially received requests.
    pub(crate) partial_requests: Arc<Budget>,
    /// Bytes of responses that are not written yet. Events of watches are in `watch_buffer`.
    pub(crate) responses: Arc<Budget>,
    /// Messages in flight, and their bytes. The record holds the permit, not the call: a caller that sends and cancels
    /// must not exceed the limit.
    pub(crate) in_flight: Arc<Budget>,
    /// Batches whose response may be large, until it is written.
    pub(crate) batches: Arc<Budget>,
    pub(crate) send_streams: Arc<Budget>,
    /// Send streams again, with a limit for each caller and each tenant only.
    pub(crate) send_streams_by_caller: Arc<Budget>,
    pub(crate) send_streams_by_tenant: Arc<Budget>,
    /// Entries of streams, from when they are read until the caller has read their results.
    pub(crate) stream_results: Arc<Budget>,
    /// Bytes of stream requests that wait for capacity, and of failed entries that have to be sent again.
    pub(crate) blocked_requests: Arc<Budget>,
    /// Reads, each from its start until its response is written. A response has up to 4 MiB.
    pub(crate) reads: Arc<Budget>,
    /// GetMsgStatus has a budget of its own. Otherwise other reads would wait for it while Kafka is unavailable.
    pub(crate) statuses: Arc<Budget>,
    /// Requests of GetMsgStatus to Kafka.
    pub(crate) kafka_requests: Arc<Budget>,
    /// Messages whose rows are awaited.
    pub(crate) stored_waiters: Arc<Budget>,
    /// Watch streams. The size of one is its number of inboxes.
    pub(crate) watches: Arc<Budget>,
    /// Watch streams again, with a limit for each caller and each tenant only.
    pub(crate) watches_by_caller: Arc<Budget>,
    pub(crate) watches_by_tenant: Arc<Budget>,
    /// Bytes of events of watches that are not written yet.
    pub(crate) watch_buffer: Arc<Budget>,
    /// Watches that open or catch up, one for each connection.
    pub(crate) catch_ups: Arc<Budget>,
}

impl Budgets {
    /// Creates the budgets. Call it after the metrics recorder is installed.
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let Config { server, send, watch, quota, max_reads, .. } = config;
        start_counters();
        let limit = Limit::of_setting;
        let reads = || {
            Budget::new(limit(*max_reads, "reads are in progress", "MAX_READS"))
                .with_max_queued(max_reads.saturating_mul(WAITING_PER_READ))
        };
        let unread = "bytes of responses are not read by their callers";
        let sent = "bytes of messages are in flight";
        let blocked = "bytes of stream requests wait for capacity or have to be sent again";
        let events = "bytes of events are not read by watchers";
        let catch_ups = "connections are in use by watches that open or catch up";
        Arc::new(Budgets {
            connections: Budget::new(
                limit(server.max_connections, "connections are open", "MAX_CONNECTIONS")
                    .with_immediate_gauge(gauge!(CONNECTIONS)),
            )
            .with_rejections(counter!(CONNECTIONS_REFUSED))
            .into(),
            calls: Budget::new(
                limit(server.max_open_calls, "calls are open", "MAX_OPEN_CALLS").with_gauge(gauge!(OPEN_CALLS)),
            )
            .with_rejections(counter!(CALLS_REJECTED))
            .into(),
            rejections: Budget::new(Limit::new(MAX_REJECTIONS, "rejections are not read by their callers")).into(),
            refusals: Budget::new(Limit::new(MAX_REJECTIONS, "rejections are not read by their callers")).into(),
            health_checks: Budget::new(limit(server.max_connections, "health checks are open", "MAX_CONNECTIONS"))
                .with_limit_per_holder(Limit::new(MAX_HEALTH_CHECKS, "health checks of this connection are open"))
                .with_rejections(counter!(CALLS_REJECTED))
                .into(),
            health_bytes: Budget::new(Limit::new(MAX_HEALTH_BYTES, "bytes of health checks are received partially"))
                .into(),
            key_waits: Budget::new(Limit::new(MAX_KEY_WAITS, "calls wait for the keys of the token issuer"))
                .with_rejections(counter!(CALLS_REJECTED))
                .into(),
            reflections: Budget::new(Limit::new(MAX_REFLECTIONS, "reflection streams are open"))
                .with_rejections(counter!(CALLS_REJECTED))
                .into(),
            partial_requests: partial_requests(server.max_buffered_request_bytes),
            responses: Budget::new(
                limit(server.max_response_bytes, unread, "MAX_RESPONSE_BYTES")
                    .admitting_larger_alone()
                    .with_gauge(gauge!(UNREAD_RESPONSE_BYTES)),
            )
            .into(),
            in_flight: Budget::new(
                limit(send.max_inflight_msgs, "messages are in flight", "MAX_INFLIGHT_MSGS")
                    .admitting_larger_alone()
                    .with_gauge(gauge!(INFLIGHT_MSGS)),
            )
            .with_size(
                limit(send.max_inflight_bytes, sent, "MAX_INFLIGHT_BYTES")
                    .admitting_larger_alone()
                    .with_gauge(gauge!(INFLIGHT_BYTES)),
            )
            .with_share(quota.caller_share)
            .into(),
            batches: Budget::new(limit(send.max_batches, "large batches are in progress", "MAX_BATCHES")).into(),
            send_streams: Budget::new(
                limit(send.max_send_streams, "send streams are open", "MAX_SEND_STREAMS")
                    .with_immediate_gauge(gauge!(SEND_STREAMS)),
            )
            .into(),
            send_streams_by_caller: per_holder(quota.quota_caller_streams, Quota::CallerStreams),
            send_streams_by_tenant: per_holder(quota.quota_tenant_streams, Quota::TenantStreams),
            stream_results: Budget::new(
                limit(send.max_unread_results, "stream results are unread", "MAX_UNREAD_RESULTS")
                    .with_retry("continue with a new stream"),
            )
            .into(),
            blocked_requests: Budget::new(limit(
                server.max_buffered_request_bytes,
                blocked,
                "MAX_BUFFERED_REQUEST_BYTES",
            ))
            .into(),
            reads: reads().into(),
            statuses: reads().into(),
            kafka_requests: Budget::new(Limit::new(MAX_KAFKA_REQUESTS, "requests to Kafka are in progress")).into(),
            stored_waiters: Budget::new(
                limit(watch.max_stored_waiters, "sends wait for STORED", "MAX_STORED_WAITERS")
                    .with_gauge(gauge!(STORED_WAITERS)),
            )
            .into(),
            watches: Budget::new(
                limit(watch.max_watchers, "watch streams are open", "MAX_WATCHERS").with_gauge(gauge!(WATCHERS)),
            )
            .with_size(
                limit(watch.max_watched_inboxes, "inboxes are watched", "MAX_WATCHED_INBOXES")
                    .with_gauge(gauge!(WATCHED_INBOXES)),
            )
            .into(),
            watches_by_caller: per_holder(quota.quota_caller_watches, Quota::CallerWatches),
            watches_by_tenant: per_holder(quota.quota_tenant_watches, Quota::TenantWatches),
            watch_buffer: Budget::new(
                limit(watch.watch_buffer_bytes, events, "WATCH_BUFFER_BYTES").admitting_larger_alone(),
            )
            .into(),
            catch_ups: Budget::new(limit(watch.watch_connections, catch_ups, "WATCH_CONNECTIONS")).into(),
        })
    }

    #[cfg(test)]
    pub(crate) fn of(flags: &[&str]) -> Arc<Self> {
        let words = ["msg-gateway"].iter().chain(flags).map(Into::into);
        let config = msg_common::config::read(words).unwrap_or_else(|_| panic!("the settings are good"));
        Budgets::new(&config)
    }

    /// Sets the gauges every second until `stop`. Setting them with each message would cost more.
    pub(crate) async fn show(self: Arc<Self>, stop: CancellationToken) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = stop.cancelled() => return,
            }
            for budget in [
                &self.connections,
                &self.calls,
                &self.partial_requests,
                &self.responses,
                &self.in_flight,
                &self.send_streams,
                &self.stored_waiters,
                &self.watches,
            ] {
                budget.update_gauges();
            }
        }
    }
}

/// Creates a budget that limits only what each holder may hold; 0 is no limit.
fn per_holder(max: usize, quota: Quota) -> Arc<Budget> {
    Budget::new(Limit::new(usize::MAX, quota.what())).with_max_per_holder(max, quota).into()
}

/// Creates the budget of `max` bytes of partially received requests.
pub fn partial_requests(max: usize) -> Arc<Budget> {
    let what = "bytes of requests are received partially";
    let bytes = Limit::of_setting(max, what, "MAX_BUFFERED_REQUEST_BYTES");
    Budget::new(bytes.with_gauge(gauge!(BUFFERED_REQUEST_BYTES))).into()
}
