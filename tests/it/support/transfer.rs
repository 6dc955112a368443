//! Settings for a transfer under test, and its metrics, readiness and memory.

use msg_stack::{Service, ServiceSpec};

use super::{ensure, eventually};

/// Sets the shortest session timeout that the service allows, so that a frozen member is expelled soon.
pub(crate) fn short_session(spec: ServiceSpec) -> ServiceSpec {
    spec.env("SESSION_TIMEOUT", "6s").env("DRAIN_TIMEOUT", "3s")
}

/// Sets small batches, so that a fault hits the middle of the work, and a short session.
pub(crate) fn small_batches(spec: ServiceSpec) -> ServiceSpec {
    short_session(spec).env("BATCH_RECORDS", 50).env("MAX_INFLIGHT_RECORDS", 2000)
}

pub(crate) async fn metric(transfer: &Service, series: &str) -> f64 {
    transfer.metric(series).await.unwrap()
}

/// Waits until the service is not ready, for reasons with all of these texts.
pub(crate) async fn wait_not_ready(transfer: &Service, words: &[&str]) {
    eventually("the service is not ready for this reason", async || {
        let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 503 && words.iter().all(|word| body.contains(word)), body)
    })
    .await;
}

pub(crate) async fn lost_partitions(transfer: &Service) -> f64 {
    metric(transfer, "msg_transfer_rebalances_total{kind=\"lost\"}").await
}

/// The number of lines with this text in the service's log.
pub(crate) fn logged(service: &Service, text: &str) -> usize {
    std::fs::read_to_string(service.log()).unwrap().lines().filter(|line| line.contains(text)).count()
}

/// The service's peak memory, in MiB.
pub(crate) fn peak_memory_mib(service: &Service) -> u64 {
    let peak = service.memory().peak;
    assert!(peak > 0, "{} does not run", service.name());
    peak >> 20
}
