//! Owns logs and metrics, which a process sets up once. Neither contains the content of messages.

mod json;
mod panics;
mod writer;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Args, ValueEnum};
use metrics::{counter, describe_counter};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::json::{JsonLines, Line};
use self::writer::LineWriter;

/// How long the end of the process waits for the log to be written. Without a limit, a standard error that is not read would
/// block it.
const LAST_LINES: Duration = Duration::from_secs(1);

const LOG_LINES_DROPPED: &str = "msg_log_lines_dropped_total";

/// The writer of the log, once logging has started.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    format: LogFormat,
    writer: LineWriter,
}

/// The format of the log's lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line
    Json,
    /// Text for people
    Text,
}

/// Level and format of the log.
#[derive(Args, Clone, Debug)]
pub struct LogOptions {
    /// Format of the log on standard error. Lines that cannot be written are dropped and counted in
    /// msg_log_lines_dropped_total
    #[arg(long, env = "LOG_FORMAT", default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Level of the log, or directives such as `info,msg_transfer=debug`
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "DIRECTIVES")]
    pub log_level: String,
}

impl LogOptions {
    /// Returns one line for each problem of these settings.
    pub fn problems(&self) -> Vec<String> {
        const FORM: &str = "give error, warn, info, debug, trace or off, or directives such as info,msg_transfer=debug";
        // A single word that is no level would be a target, and all other targets would log nothing.
        let no_level = |directive: &&str| !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err();
        if let Some(word) = self.log_level.split(',').map(str::trim).find(no_level) {
            return vec![format!("--log-level: `{word}` is no level; {FORM}")];
        }
        match EnvFilter::try_new(&self.log_level) {
            Ok(_) => Vec::new(),
            Err(error) => vec![format!("--log-level: {error}; {FORM}")],
        }
    }

    /// Starts logging, with panics. A second call in one process (in tests) has no effect.
    pub fn start(&self) {
        let terminal = io::stderr().is_terminal();
        // The log has a descriptor of its own: its thread may block in a write, and must not block other writers.
        let Ok(sink) = io::stderr().as_fd().try_clone_to_owned().map(File::from) else { return };
        let format = self.log_format;
        let Ok(writer) = LineWriter::start(sink, move |dropped| dropped_line(format, dropped)) else { return };
        let Ok(()) = LOG.set(Log { format, writer: writer.clone() }) else { return };
        let layer = match format {
            LogFormat::Json => JsonLines(writer).boxed(),
            LogFormat::Text => {
                let line = move || TextLine(writer.clone());
                tracing_subscriber::fmt::layer()
                    .with_writer(line)
                    .with_ansi(terminal)
                    .log_internal_errors(false)
                    .boxed()
            }
        };
        let filter = EnvFilter::builder().parse_lossy(&self.log_level);
        let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
        panics::install();
    }
}

/// Waits until the log is written, for up to one second. For the end of the process.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.writer.flush(LAST_LINES);
    }
}

/// Returns the line that the writer writes after it dropped lines.
fn dropped_line(format: LogFormat, dropped: u64) -> Vec<u8> {
    let message = "dropped log lines: standard error was closed, full or not read";
    match format {
        LogFormat::Json => {
            let mut line = Line::new("WARN", module_path!());
            line.add("message", &message.into());
            line.add("dropped", &dropped.into());
            line.end()
        }
        LogFormat::Text => format!("WARN {message} dropped={dropped}\n").into_bytes(),
    }
}

/// Queues one line of tracing-subscriber's text formatter, which writes each line in one call.
struct TextLine(LineWriter);

impl Write for TextLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Upper bounds of the buckets of every histogram whose name ends in `_seconds`.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper bounds of the buckets of every histogram whose name ends in `_rows`.
const ROWS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0];

/// Returns the recorder of the process's metrics. The first call installs it.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
            .expect("the list is not empty")
            .set_buckets_for_metric(Matcher::Suffix("_rows".into()), ROWS)
            .expect("the list is not empty")
            .install_recorder()
            .expect("no other code installs a recorder");
        describe_counter!(
            LOG_LINES_DROPPED,
            "Log lines that were dropped because standard error was closed, full, or not read fast enough"
        );
        crate::reload::describe();
        crate::tls::describe();
        crate::kafka::describe();
        handle
    })
}

/// Returns the process's metrics in Prometheus' text format.
pub fn render() -> String {
    let handle = metrics();
    counter!(LOG_LINES_DROPPED).absolute(LOG.get().map_or(0, |log| log.writer.dropped()));
    handle.render()
}
