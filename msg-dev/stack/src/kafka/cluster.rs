//! Owns the brokers' processes: their folders, their format and start, and the runs of Kafka's own tools.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError};

use tokio::net::TcpStream;

use super::{Broker, CLUSTER_ID, Cluster, Jvm, READY_WITHIN, admin, secure, settings};
use crate::error::StackError;
use crate::logs;
use crate::process::{Process, Signal, Spec};

impl Cluster {
    fn node(&self, broker: &Broker) -> PathBuf {
        self.folder.join(format!("node-{}", broker.id))
    }

    fn settings(&self, broker: &Broker) -> PathBuf {
        self.node(broker).join("server.properties")
    }

    pub(super) fn data(&self, broker: &Broker) -> PathBuf {
        self.node(broker).join("data")
    }

    fn log(&self, broker: &Broker) -> PathBuf {
        self.logs.join(format!("kafka-{}.log", broker.id))
    }

    /// The users with their passwords.
    pub(super) fn users(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the settings. Every start needs this, since the ports are new. KRaft keeps the voters' ids, not their
    /// addresses.
    pub(super) fn write_settings(&self, broker: &Broker) -> Result<(), StackError> {
        let node = self.node(broker);
        fs::create_dir_all(&node).map_err(StackError::io("create", &node))?;
        let voters: Vec<String> = self.brokers.iter().map(|one| format!("{}@{}", one.id, one.controller)).collect();
        let mut more = settings::users(broker, &self.users());
        if let Some(tls) = &self.tls {
            more.extend(secure::settings(tls, broker, &node, &settings::plain_login(&self.users()))?);
        }
        if let Some(issuer) = &self.tokens {
            more.extend(secure::token_settings(issuer, &node)?);
        }
        more.extend(self.settings.clone());
        let text = settings::server_properties(broker, &voters, &self.data(broker), &more);
        let path = self.settings(broker);
        fs::write(&path, text).map_err(StackError::io("write", path))?;
        let path = node.join("log4j2.xml");
        fs::write(&path, settings::LOG4J).map_err(StackError::io("write", path))
    }

    pub(super) async fn start(&self, broker: &Broker) -> Result<(), StackError> {
        if broker.process().as_ref().is_some_and(|process| process.exit_status().is_none()) {
            return Ok(());
        }
        if !self.data(broker).join("meta.properties").exists() {
            self.format(broker).await?;
        }
        let process = Process::spawn(Spec {
            name: format!("kafka broker {}", broker.id),
            args: self.java_args(self.jvm, broker, "kafka.Kafka", &[&self.settings(broker).display().to_string()]),
            log: self.log(broker),
            ..self.java()
        })?;
        *broker.process() = Some(process);
        Ok(())
    }

    /// Formats the data folder with the cluster's id, once.
    async fn format(&self, broker: &Broker) -> Result<(), StackError> {
        let settings = self.settings(broker).display().to_string();
        let scram = if self.tls.is_some() { secure::format_arguments(&self.users()) } else { Vec::new() };
        let mut args = vec!["format", "-t", CLUSTER_ID, "-c", &settings];
        args.extend(scram.iter().map(String::as_str));
        let process = Process::spawn(Spec {
            name: format!("kafka format of broker {}", broker.id),
            args: self.java_args(Jvm::Small, broker, "kafka.tools.StorageTool", &args),
            log: self.logs.join(format!("kafka-{}-format.log", broker.id)),
            ..self.java()
        })?;
        let status = process.wait().await;
        if status.success() {
            return Ok(());
        }
        Err(StackError::Program { program: process.name().to_owned(), status, output: logs::tail(process.log()) })
    }

    pub(super) async fn tool(&self, broker: &Broker, class: &str, args: &[&str]) -> Result<String, StackError> {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let name = class.rsplit('.').next().unwrap_or(class).to_owned();
        let log = self.logs.join(format!("tool-{}-{name}.log", RUNS.fetch_add(1, Ordering::Relaxed)));
        let args = self.java_args(Jvm::Small, broker, class, args);
        let process = Process::spawn(Spec { name, args, log: log.clone(), ..self.java() })?;
        let status = process.wait().await;
        if status.success() {
            return fs::read_to_string(&log).map_err(StackError::io("read", log));
        }
        Err(StackError::Program { program: process.name().to_owned(), status, output: logs::tail(process.log()) })
    }

    fn java(&self) -> Spec {
        Spec {
            name: String::new(),
            program: self.home.java.clone(),
            args: Vec::new(),
            env: Vec::new(),
            log: PathBuf::new(),
            owner: None,
            stop: Signal::Term,
        }
    }

    fn java_args(&self, jvm: Jvm, broker: &Broker, class: &str, args: &[&str]) -> Vec<std::ffi::OsString> {
        let log4j = self.node(broker).join("log4j2.xml");
        let mut all: Vec<String> = jvm.args().iter().map(|arg| (*arg).to_owned()).collect();
        all.push(format!("-Dlog4j2.configurationFile={}", log4j.display()));
        if self.tokens.is_some() {
            all.extend(secure::token_properties(&self.node(broker)));
        }
        all.extend([
            "-cp".to_owned(),
            // Java itself expands the star.
            format!("{}/*", self.home.jars.display()),
            class.to_owned(),
        ]);
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        all.into_iter().map(Into::into).collect()
    }

    pub(super) async fn wait_ready(&self, broker: &Broker, members: usize) -> Result<(), StackError> {
        let process = broker.process().clone().expect("started just before");
        let addr = broker.client.addr();
        let probe = async || {
            // Probe the bare port first: a client that finds no broker waits longer after each attempt.
            TcpStream::connect(addr).await.is_ok() && admin::sees_brokers(addr.to_string(), addr, members).await
        };
        process.until_ready(READY_WITHIN, probe).await
    }
}

impl Jvm {
    fn args(self) -> &'static [&'static str] {
        match self {
            Jvm::Small => &[
                "-Xmx512m",
                // Use only the quick compiler: a broker starts 0.3 s earlier and leaves more of a small machine to the
                // services.
                "-XX:TieredStopAtLevel=1",
                // Use the serial collector on a small machine: the threads of the parallel collectors would compete for
                // its cores.
                "-XX:+UseSerialGC",
            ],
            // As in kafka-server-start.sh and kafka-run-class.sh.
            Jvm::Usual => &[
                "-Xmx1G",
                "-Xms1G",
                "-server",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=20",
                "-XX:InitiatingHeapOccupancyPercent=35",
                "-XX:+ExplicitGCInvokesConcurrent",
            ],
        }
    }
}
