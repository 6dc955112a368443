//! Owns the services as child processes: the search for their programs, their settings, and the check of readiness.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::StackError;
use super::process::{Process, Signal, Spec, proc_field};

/// The time until `/readyz` responds 200: preflight, migrations and the group's first assignment.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// Both services drain before deadlines of their own, which are shorter.
pub const STOP_WITHIN: Duration = Duration::from_secs(40);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// The value when it was read.
    pub resident: u64,
    /// The maximum since the process started.
    pub peak: u64,
}

/// A service to start: its program, arguments and settings.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// The name in messages and of the log file; two services of one program need two names.
    pub name: String,
    /// The name of the program: `msg-gateway`.
    pub binary: String,
    /// The arguments, if the program runs a subcommand.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The address of `/readyz` and `/metrics`; none for a subcommand without them.
    pub admin: Option<SocketAddr>,
}

impl ServiceSpec {
    pub fn new(name: impl Into<String>, binary: impl Into<String>) -> ServiceSpec {
        ServiceSpec { name: name.into(), binary: binary.into(), args: Vec::new(), env: Vec::new(), admin: None }
    }

    /// Adds a setting, or replaces the setting of the same name.
    #[allow(clippy::needless_pass_by_value, reason = "numbers and literals are given by value")]
    pub fn env(mut self, name: &str, value: impl ToString) -> ServiceSpec {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds an argument to the program's command line.
    pub fn arg(mut self, arg: impl Into<String>) -> ServiceSpec {
        self.args.push(arg.into());
        self
    }

    /// Sets the admin port (`ADMIN_LISTEN`), which also reports readiness.
    pub fn admin(mut self, addr: SocketAddr) -> ServiceSpec {
        self.admin = Some(addr);
        self.env("ADMIN_LISTEN", addr)
    }
}

/// A service that runs or not. It can be started again with the same settings.
#[derive(Debug)]
pub struct Service {
    spec: ServiceSpec,
    program: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Service {
    /// Finds the program and starts no process. The log file is `NAME.log` in `logs`.
    pub fn new(spec: ServiceSpec, logs: &Path) -> Result<Service, StackError> {
        let program = find_binary(&spec.binary)?;
        let log = logs.join(format!("{}.log", spec.name));
        Ok(Service { spec, program, log, process: Mutex::new(None) })
    }

    /// Starts the service and waits until it is ready.
    pub async fn start(&self) -> Result<(), StackError> {
        self.launch()?;
        self.wait_ready(READY_WITHIN).await
    }

    /// Starts the service if it does not run, and does not wait.
    pub fn launch(&self) -> Result<Process, StackError> {
        let mut current = self.current();
        if let Some(process) = current.as_ref().filter(|process| process.exit_status().is_none()) {
            return Ok(process.clone());
        }
        let process = Process::spawn(Spec {
            name: self.spec.name.clone(),
            program: self.program.clone(),
            args: self.spec.args.iter().map(Into::into).collect(),
            env: self.spec.env.clone(),
            log: self.log.clone(),
            owner: None,
            stop: Signal::Term,
        })?;
        *current = Some(process.clone());
        Ok(process)
    }

    /// Waits until `/readyz` responds 200. If the process ends, the error has the end of its log.
    pub async fn wait_ready(&self, within: Duration) -> Result<(), StackError> {
        let process = self.running()?;
        process.until_ready(within, async || self.is_ready().await).await
    }

    /// Whether `/readyz` responds 200 now. A service without an admin port is ready when it runs.
    pub async fn is_ready(&self) -> bool {
        match self.spec.admin {
            Some(_) => self.readiness().await.is_some_and(|(ready, _)| ready),
            None => self.process().is_some_and(|process| process.exit_status().is_none()),
        }
    }

    /// Whether `/readyz` responds 200 now, and the text of the response; none if there is no response.
    pub async fn readiness(&self) -> Option<(bool, String)> {
        let (status, text) = http_get(self.spec.admin?, "/readyz").await.ok()?;
        Some((status == 200, text))
    }

    pub async fn metrics(&self) -> Result<String, StackError> {
        let admin = self.spec.admin.ok_or_else(|| StackError::Setting(format!("{} has no admin port", self.name())))?;
        let (_, body) = http_get(admin, "/metrics").await.map_err(StackError::io("get /metrics of", self.name()))?;
        Ok(body)
    }

    /// Returns the sum of all series that begin with this text: a name, or a name and its first labels; 0 if there is none yet.
    pub async fn metric(&self, series: &str) -> Result<f64, StackError> {
        Ok(sum_of(&self.metrics().await?, series).unwrap_or(0.0))
    }

    /// Returns the name in messages and of the log file.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// Returns the path of the log file, to which every start appends.
    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn process(&self) -> Option<Process> {
        self.current().clone()
    }

    /// Reads the memory of the process from the system; zeroes if it does not run.
    pub fn memory(&self) -> Memory {
        let status = self.process().map(|process| format!("/proc/{}/status", process.pid()));
        let status = status.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let bytes = |name| proc_field(&status, name) << 10;
        Memory { resident: bytes("VmRSS:"), peak: bytes("VmHWM:") }
    }

    /// Sends a signal; returns false if the service does not run.
    pub fn signal(&self, signal: Signal) -> bool {
        self.process().is_some_and(|process| process.signal(signal))
    }

    /// Sends SIGTERM and waits; sends SIGKILL after [`STOP_WITHIN`]. Returns none if the service was never started.
    pub async fn stop(&self) -> Option<ExitStatus> {
        Some(self.process()?.stop(STOP_WITHIN).await)
    }

    /// Sends SIGKILL, as a crash would, and waits. Returns none if the service was never started.
    pub async fn kill(&self) -> Option<ExitStatus> {
        Some(self.process()?.kill().await)
    }

    pub async fn wait(&self) -> Result<ExitStatus, StackError> {
        Ok(self.running()?.wait().await)
    }

    fn running(&self) -> Result<Process, StackError> {
        self.process().ok_or_else(|| StackError::Setting(format!("{} was not started", self.name())))
    }

    fn current(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds a program of this workspace: in `MSG_BIN_DIR`, else in the folder of the running program, or in the folder
/// above (a test runs from `deps`). Returns an absolute path unchanged.
pub fn find_binary(name: &str) -> Result<PathBuf, StackError> {
    if Path::new(name).is_absolute() {
        return Ok(name.into());
    }
    let mut folders = Vec::new();
    if let Some(folder) = env::var_os("MSG_BIN_DIR").filter(|folder| !folder.is_empty()) {
        folders.push(PathBuf::from(folder));
    } else {
        let exe = env::current_exe().map_err(StackError::io("find", "the running program"))?;
        folders.extend(exe.ancestors().skip(1).take(2).map(Path::to_owned));
    }
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    let Some(found) = found else {
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        return Err(StackError::Setting(format!(
            "{name} is not in {}; build it with: cargo build --release (or name its folder in MSG_BIN_DIR)",
            folders.join(" or ")
        )));
    };
    // Return an absolute path: the child runs in another folder.
    found.canonicalize().map_err(StackError::io("resolve", found))
}

/// Returns the sum of all series in the text of `/metrics` that begin with this text: a name, or a name and its first labels.
pub fn sum_of(metrics: &str, series: &str) -> Option<f64> {
    let value = |line: &str| -> Option<f64> {
        line.strip_prefix(series)?.starts_with([' ', '{', ',']).then_some(())?;
        line.rsplit(' ').next()?.parse().ok()
    };
    metrics.lines().filter_map(value).reduce(|sum, value| sum + value)
}

/// Sends a GET request to an admin port, and returns status and body.
pub async fn http_get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    http(addr, "GET", path, "").await
}

/// A minimal HTTP client, enough for an admin port. Returns status and body.
pub(super) async fn http(addr: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await?;
        parse_response(&String::from_utf8_lossy(&response))
    };
    tokio::time::timeout(REQUEST_TIMEOUT, exchange).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// Returns status and body of a complete response. Joins a body that was sent in chunks.
fn parse_response(response: &str) -> std::io::Result<(u16, String)> {
    let bad = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Ok((status, body.to_owned()));
    }
    let mut joined = String::new();
    let mut rest = body;
    loop {
        let (length, after) = rest.split_once("\r\n").ok_or_else(bad)?;
        let length = usize::from_str_radix(length, 16).map_err(|_| bad())?;
        if length == 0 {
            return Ok((status, joined));
        }
        joined.push_str(after.get(..length).ok_or_else(bad)?);
        rest = after.get(length + 2..).ok_or_else(bad)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_other_metrics_are_not_added() {
        let metrics = "# TYPE a counter\na_bytes 7\na{kind=\"x\",partition=\"1\"} 3\na{kind=\"y\"} 2\nb 1\n";
        assert_eq!(sum_of(metrics, "a"), Some(5.0));
        assert_eq!(sum_of(metrics, "a{kind=\"x\""), Some(3.0));
        assert_eq!((sum_of(metrics, "a_bytes"), sum_of(metrics, "a_byte")), (Some(7.0), None));
    }

    #[test]
    fn response_is_parsed_with_and_without_chunks() {
        let plain = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";
        assert_eq!(parse_response(plain).expect("valid"), (503, "no".to_owned()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(parse_response(chunked).expect("valid"), (200, "abc".to_owned()));
        parse_response("HTTP/1.1").expect_err("truncated");
    }

    #[test]
    fn later_setting_replaces_an_earlier_one() {
        let spec = ServiceSpec::new("a", "b").env("X", 1).env("X", 2);
        assert_eq!(spec.env, [("X".to_owned(), "2".to_owned())]);
    }
}
