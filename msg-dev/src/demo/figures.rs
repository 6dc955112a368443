//! Owns the measurements of a run, their table and their JSON.

use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use msg_lab::text::grouped;
use msg_lab::{Finding, Verdict};
use msg_stack::Memory;
use serde::Serialize;
use serde_json::json;

use super::services::Crash;

/// The measurements of a run, as they are in the JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    log: String,
    messages: usize,
    messages_of_log: usize,
    sends_ok: usize,
    sends_not_sent: usize,
    sends_unknown: usize,
    dead_letters: usize,
    send_seconds: f64,
    sends_per_second: f64,
    store_seconds: f64,
    rows_per_second: f64,
    send_ms: Spread,
    store_ms: Spread,
    crash_next_row_seconds: Option<f64>,
    crash_ready_seconds: f64,
    caught_up_seconds: f64,
    gateway_memory: Memory,
    transfer_memory: Memory,
}

/// Quantiles of a duration in milliseconds.
#[derive(Debug, Serialize)]
struct Spread {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// The data from which the measurements are computed.
pub(crate) struct Run<'a> {
    pub(crate) log: String,
    pub(crate) messages: usize,
    pub(crate) messages_of_log: usize,
    pub(crate) verdict: &'a Verdict,
    pub(crate) crash: &'a Crash,
    /// From the last OK to the last record stored.
    pub(crate) caught_up: Duration,
    pub(crate) gateway: Memory,
    /// The peak is the maximum over the killed transfer and the restarted one.
    pub(crate) transfer: Memory,
}

impl Figures {
    pub(crate) fn of(run: Run<'_>) -> Figures {
        let Run { verdict, crash, .. } = run;
        let rows = &verdict.rows;
        let sends_ok = verdict.accepted.len();
        let last_row = rows.iter().map(|(_, stored)| *stored).max().unwrap_or(verdict.began);
        let store_seconds = seconds_from(verdict.began, last_row);
        let next_row = rows.iter().map(|(_, stored)| *stored).filter(|stored| *stored > crash.at).min();
        let waits = rows.iter().map(|(sent, stored)| stored.duration_since(*sent).unwrap_or_default());
        Figures {
            log: run.log,
            messages: run.messages,
            messages_of_log: run.messages_of_log,
            sends_ok,
            sends_not_sent: verdict.not_sent,
            sends_unknown: verdict.unknown,
            dead_letters: verdict.dead_letters,
            send_seconds: verdict.sending.as_secs_f64(),
            sends_per_second: sends_ok as f64 / verdict.sending.as_secs_f64(),
            store_seconds,
            rows_per_second: rows.len() as f64 / store_seconds,
            send_ms: Spread::of(verdict.accepted.iter().copied()),
            store_ms: Spread::of(waits),
            crash_next_row_seconds: next_row.map(|next| seconds_from(crash.at, next)),
            crash_ready_seconds: crash.ready.as_secs_f64(),
            caught_up_seconds: run.caught_up.as_secs_f64(),
            gateway_memory: run.gateway,
            transfer_memory: run.transfer,
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let [messages, of_log, oks, not_sent, unknown] =
            [self.messages, self.messages_of_log, self.sends_ok, self.sends_not_sent, self.sends_unknown]
                .map(|count| grouped(count as u64));
        let added = self.messages - self.messages_of_log;
        let rate = |per_second: f64, seconds: f64| format!("{}/s over {seconds:.1} s", grouped(per_second as u64));
        let next_row = match self.crash_next_row_seconds {
            Some(seconds) => format!("the next row after {seconds:.2} s"),
            None => "no record was left to store".to_owned(),
        };
        vec![
            format!("messages      {messages}: {of_log} of the log, {added} added"),
            format!("sends         {oks} OK; repeated after {not_sent} not sent and {unknown} unknown"),
            format!("sent          {}", rate(self.sends_per_second, self.send_seconds)),
            format!(
                "stored        {}, from the first send to the last row",
                rate(self.rows_per_second, self.store_seconds)
            ),
            format!("SendMsg       {}", self.send_ms.line()),
            format!("until stored  {}, with the crash", self.store_ms.line()),
            format!("crash         {next_row}, ready after {:.2} s", self.crash_ready_seconds),
            format!("caught up     {:.2} s after the last OK", self.caught_up_seconds),
            format!(
                "memory        msg-gateway {}, msg-transfer {}",
                memory(self.gateway_memory),
                memory(self.transfer_memory)
            ),
        ]
    }

    /// Returns the measurements and the verdict as JSON.
    pub(crate) fn json(&self, findings: &[&Finding], total: Duration) -> serde_json::Value {
        let promises: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({"promise": finding.promise, "what": finding.what, "checked": finding.checked,
                       "broken": finding.broken, "examples": finding.examples})
            })
            .collect();
        let holds = findings.iter().all(|finding| finding.holds());
        json!({"holds": holds, "total_seconds": total.as_secs_f64(), "figures": self, "promises": promises})
    }
}

fn seconds_from(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64()
}

impl Spread {
    fn of(durations: impl Iterator<Item = Duration>) -> Spread {
        // The histogram counts microseconds, up to an hour.
        let mut micros = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3)
            .expect("3 digits are allowed, and the bounds are in order");
        for duration in durations {
            micros.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        }
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1000.0;
        Spread { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: micros.max() as f64 / 1000.0 }
    }

    fn line(&self) -> String {
        let Spread { p50, p90, p99, max } = self;
        format!("p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
    }
}

fn memory(Memory { resident, peak }: Memory) -> String {
    format!("{} MiB (at most {})", resident >> 20, peak >> 20)
}
