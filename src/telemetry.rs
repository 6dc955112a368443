//! Owns the log, the audit log and the metrics, which a process sets up once. None of them has content of messages.

mod file;
mod json;
mod panics;
mod writer;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Args, ValueEnum};
use metrics::{counter, describe_counter};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, FilterFn, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::file::AppendedFile;
use self::json::{JsonLines, Line};
use self::writer::LineWriter;
use crate::audit;

/// How long the end of the process waits for the log to be written. Without a limit, a standard error that is not read would
/// block it.
const LAST_LINES: Duration = Duration::from_secs(1);

const LOG_LINES_DROPPED: &str = "msg_log_lines_dropped_total";
const AUDIT_LINES_DROPPED: &str = "msg_audit_lines_dropped_total";

/// The writers of the logs, once logging has started.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    format: LogFormat,
    writer: LineWriter,
    audit: LineWriter,
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
    /// File that the audit log is appended to, as JSON lines: refused callers, and commands of operators. Without it,
    /// these lines are in the log, at every level, with the target `audit`. Lines that cannot be written are dropped and
    /// counted in msg_audit_lines_dropped_total
    #[arg(long, env = "AUDIT_LOG_FILE", value_name = "FILE")]
    pub audit_log_file: Option<PathBuf>,
}

impl LogOptions {
    /// Returns one line for each problem of these settings.
    pub fn problems(&self) -> Vec<String> {
        let audit = self.audit_log_file.as_deref().and_then(audit_file_problem);
        self.level_problem().into_iter().chain(audit).collect()
    }

    fn level_problem(&self) -> Option<String> {
        const FORM: &str = "give error, warn, info, debug, trace or off, or directives such as info,msg_transfer=debug";
        // A single word that is no level would be a target, and all other targets would log nothing.
        let no_level = |directive: &&str| !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err();
        if let Some(word) = self.log_level.split(',').map(str::trim).find(no_level) {
            return Some(format!("--log-level: `{word}` is no level; {FORM}"));
        }
        let error = EnvFilter::try_new(&self.log_level).err()?;
        Some(format!("--log-level: {error}; {FORM}"))
    }

    /// Starts logging, with panics. A second call in one process (in tests) has no effect.
    pub fn start(&self) {
        let terminal = io::stderr().is_terminal();
        // The log has a descriptor of its own: its thread may block in a write, and must not block other writers.
        let Ok(sink) = io::stderr().as_fd().try_clone_to_owned().map(File::from) else { return };
        let format = self.log_format;
        let notice = move |dropped| dropped_line(format, module_path!(), LOG_DROPPED, dropped);
        let Ok(writer) = LineWriter::start(sink, notice) else { return };
        let (audit_format, audit) = match self.audit_log_file.as_deref().and_then(audit_writer) {
            Some(audit) => (LogFormat::Json, audit),
            None => (format, writer.for_callers()),
        };
        let Ok(()) = LOG.set(Log { format, writer: writer.clone(), audit: audit.clone() }) else { return };
        let level = EnvFilter::builder().parse_lossy(&self.log_level);
        let allowed = FilterFn::new(may_be_logged).with_max_level_hint(LevelFilter::TRACE);
        let log = lines(format, writer, terminal).with_filter(level.and(allowed));
        let audited = Targets::new().with_target(audit::TARGET, LevelFilter::INFO);
        let audit = lines(audit_format, audit, terminal).with_filter(audited);
        let _ = tracing_subscriber::registry().with(log).with(audit).try_init();
        panics::install();
    }
}

/// Returns the layer that writes each event as a line.
fn lines<S>(format: LogFormat, writer: LineWriter, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Json => JsonLines(writer).boxed(),
        LogFormat::Text => {
            let line = move || TextLine(writer.clone());
            let text = tracing_subscriber::fmt::layer().with_writer(line).with_ansi(terminal);
            text.log_internal_errors(false).boxed()
        }
    }
}

/// Returns whether the log may have lines of this origin. The audit log has lines of its own. The driver of PostgreSQL logs
/// the parameters of each statement, which are messages.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let has_content = metadata.target() == "tokio_postgres::query" && *metadata.level() > Level::INFO;
    metadata.target() != audit::TARGET && !has_content
}

fn audit_file_problem(path: &Path) -> Option<String> {
    let error = AppendedFile::open(path).err()?;
    let shown = path.display();
    Some(format!("--audit-log-file: cannot append to {shown}: {error}; give a file that this process may write"))
}

/// Returns the writer of the audit log's file. `None` if the file cannot be used any more: its lines are in the log then.
fn audit_writer(path: &Path) -> Option<LineWriter> {
    let notice = |dropped| dropped_line(LogFormat::Json, audit::TARGET, AUDIT_DROPPED, dropped);
    let writer = AppendedFile::open(path).and_then(|file| LineWriter::start(file, notice));
    writer.ok()
}

/// Waits until the logs are written, for up to one second each. For the end of the process.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.writer.flush(LAST_LINES);
        log.audit.flush(LAST_LINES);
    }
}

const LOG_DROPPED: &str = "dropped log lines: standard error was closed, full or not read";
const AUDIT_DROPPED: &str = "dropped audit lines: the file could not be written fast enough";

/// Returns the line that a writer writes after it dropped lines.
fn dropped_line(format: LogFormat, target: &str, message: &str, dropped: u64) -> Vec<u8> {
    match format {
        LogFormat::Json => {
            let mut line = Line::new("WARN", target);
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
        describe_counter!(
            AUDIT_LINES_DROPPED,
            "Lines of the audit log that were dropped because its file or standard error could not be written fast enough"
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
    counter!(AUDIT_LINES_DROPPED).absolute(LOG.get().map_or(0, |log| log.audit.dropped()));
    handle.render()
}
