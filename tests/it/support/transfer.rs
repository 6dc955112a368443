//! What a test asks a running transfer: its metrics, its reasons, its memory.

use msg_dev::stack::{Service, ServiceSpec};

use super::{ensure, eventually};

/// The shortest session that the service allows: a silent member is expelled soon.
pub(crate) fn short_session(spec: ServiceSpec) -> ServiceSpec {
    spec.env("SESSION_TIMEOUT", "6s").env("DRAIN_TIMEOUT", "3s")
}

/// Small batches, so that what a test does finds them in the middle; and a short session.
pub(crate) fn small_batches(spec: ServiceSpec) -> ServiceSpec {
    short_session(spec).env("BATCH_RECORDS", 50).env("MAX_INFLIGHT_RECORDS", 2000)
}

/// The sum over all series that begin like this; 0 where there is none yet.
pub(crate) async fn metric(transfer: &Service, series: &str) -> f64 {
    let metrics = transfer.metrics().await.unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until it is not ready and names all of these.
pub(crate) async fn not_ready_because(transfer: &Service, words: &[&str]) {
    eventually("it says why it is not ready", async || {
        let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 503 && words.iter().all(|word| body.contains(word)), body)
    })
    .await;
}

/// Partitions that the group took away without asking.
pub(crate) async fn lost(transfer: &Service) -> f64 {
    metric(transfer, "msg_transfer_rebalances_total{kind=\"lost\"}").await
}

/// The most memory that it has had, in MiB.
pub(crate) fn peak_memory(transfer: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", transfer.process().unwrap().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
