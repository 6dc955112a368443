//! Logs and metrics: both are set up once a process. Neither ever holds a message's content.

use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub struct LogOptions {
    /// How logs look; they go to standard error
    #[arg(long, env = "LOG_FORMAT", default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as `info,msg_transfer=debug`
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "DIRECTIVES")]
    pub log_level: String,
}

impl LogOptions {
    /// What is wrong with these settings.
    pub fn problems(&self) -> Vec<String> {
        match EnvFilter::try_new(&self.log_level) {
            Ok(_) => Vec::new(),
            Err(error) => vec![format!("--log-level: {error}")],
        }
    }

    /// Starts logging. A second call in one process (tests) does nothing.
    pub fn start(&self) {
        let filter = EnvFilter::new(&self.log_level);
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let _ = match self.log_format {
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
            LogFormat::Text => builder.try_init(),
        };
    }
}

/// Upper bounds of the buckets of every histogram whose name ends in `_seconds`.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of the buckets of every histogram whose name ends in `_rows`.
const ROWS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0];

/// The process's metrics, in Prometheus' text format by `render`.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
            .expect("the list is not empty")
            .set_buckets_for_metric(Matcher::Suffix("_rows".into()), ROWS)
            .expect("the list is not empty")
            .install_recorder()
            .expect("nobody else installs one")
    })
}
