//! Owns the local Kafka cluster: real KRaft brokers as child processes, each of which can be stopped, killed, frozen and
//! started again on its own address and data.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

use super::error::StackError;
use super::fetch::KafkaHome;
use super::kafka_admin as admin;
use super::logs;
use super::ports::Port;
use super::process::{Process, Signal, Spec};

/// One broker is up in about 3 s on an idle machine, format included; a machine that compiles at the same time is slow.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// A controlled shutdown takes 0.4 s alone; with three brokers each hands its leaderships over first.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long an address from outside is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// One cluster id for all: two stacks share nothing else.
const CLUSTER_ID: &str = "bXNnLWRldi1jbHVzdGVyMA";

/// A topic to create.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: i32,
    /// How many replicas each has.
    pub replication: i32,
    /// Its settings.
    pub config: Vec<(String, String)>,
}

/// A Kafka cluster: ours, or one at an address that was given.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    cluster: Option<Cluster>,
    /// How many brokers somebody else's cluster has, once it was asked.
    members: OnceLock<usize>,
}

#[derive(Debug)]
struct Cluster {
    home: KafkaHome,
    folder: PathBuf,
    logs: PathBuf,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    id: usize,
    client: Port,
    controller: Port,
    process: Mutex<Option<Process>>,
}

impl Kafka {
    /// Takes the ports and writes the settings of a cluster, and starts nothing: [`Kafka::bootstrap`] is valid, and refuses
    /// connections until [`Kafka::start`]. Data of an earlier run in `folder` is kept.
    pub fn reserve(home: KafkaHome, folder: &Path, logs: &Path, brokers: usize) -> Result<Kafka, StackError> {
        if brokers != 1 && brokers != 3 {
            return Err(StackError::Setting(format!("a cluster has 1 or 3 brokers, not {brokers}")));
        }
        check_count(folder, brokers)?;
        let port = || Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"));
        let brokers = (1..=brokers)
            .map(|id| Ok(Broker { id, client: port()?, controller: port()?, process: Mutex::new(None) }))
            .collect::<Result<Vec<_>, StackError>>()?;
        let bootstrap = brokers.iter().map(|broker| broker.client.to_string()).collect::<Vec<_>>().join(",");
        let cluster = Cluster { home, folder: folder.to_owned(), logs: logs.to_owned(), brokers };
        for broker in &cluster.brokers {
            cluster.write_settings(broker)?;
        }
        Ok(Kafka { bootstrap, cluster: Some(cluster), members: OnceLock::new() })
    }

    /// A cluster that somebody else runs.
    pub fn external(bootstrap: impl Into<String>) -> Kafka {
        Kafka { bootstrap: bootstrap.into(), cluster: None, members: OnceLock::new() }
    }

    /// For `bootstrap.servers`: all brokers, `host:port` with commas.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The number of brokers; of somebody else's cluster it is known (else 0) once [`Kafka::start`] has asked.
    pub fn brokers(&self) -> usize {
        let asked = || self.members.get().copied().unwrap_or(0);
        self.cluster.as_ref().map_or_else(asked, |cluster| cluster.brokers.len())
    }

    /// Whether the cluster is made of children of ours.
    pub fn is_ours(&self) -> bool {
        self.cluster.is_some()
    }

    /// Where clients reach broker `id` (from 1).
    pub fn broker_addr(&self, id: usize) -> Result<SocketAddr, StackError> {
        Ok(self.broker(id)?.1.client.addr())
    }

    /// The process of broker `id` (from 1), if it was started.
    pub fn process(&self, id: usize) -> Option<Process> {
        self.broker(id).ok()?.1.process().clone()
    }

    /// All broker processes that were started.
    pub fn processes(&self) -> Vec<Process> {
        (1..=self.brokers()).filter_map(|id| self.process(id)).collect()
    }

    /// Starts the brokers that do not run and waits until all answer a client.
    pub async fn start(&self) -> Result<(), StackError> {
        let Some(cluster) = &self.cluster else {
            let members = admin::wait_for_any_broker(&self.bootstrap, ANSWER_WITHIN).await?;
            self.members.get_or_init(|| members);
            return Ok(());
        };
        let starts = cluster.brokers.iter().map(|broker| cluster.start(broker));
        futures_util::future::try_join_all(starts).await?;
        for broker in &cluster.brokers {
            cluster.wait_ready(broker, cluster.brokers.len()).await?;
        }
        Ok(())
    }

    /// Starts broker `id` (from 1) and waits until it answers a client and is part of the cluster.
    pub async fn start_broker(&self, id: usize) -> Result<(), StackError> {
        let (cluster, broker) = self.broker(id)?;
        cluster.start(broker).await?;
        cluster.wait_ready(broker, 1).await
    }

    /// Stops broker `id` in its orderly way: its leaderships go to others first.
    pub async fn stop_broker(&self, id: usize) -> Result<(), StackError> {
        let process = self.broker(id)?.1.process().clone();
        if let Some(process) = process {
            process.stop(STOP_WITHIN).await;
        }
        Ok(())
    }

    /// Kills broker `id` with SIGKILL: a crash.
    pub async fn kill_broker(&self, id: usize) -> Result<(), StackError> {
        let process = self.broker(id)?.1.process().clone();
        if let Some(process) = process {
            process.kill().await;
        }
        Ok(())
    }

    /// Sends a signal to broker `id`: `Stop` freezes it, `Cont` lets it go on. False when it does not run.
    pub fn signal_broker(&self, id: usize, signal: Signal) -> Result<bool, StackError> {
        Ok(self.broker(id)?.1.process().as_ref().is_some_and(|process| process.signal(signal)))
    }

    /// Stops all brokers at once. (One after the other, the last ones would lose the controllers' majority and wait for it.)
    pub async fn stop(&self) {
        let processes = self.processes();
        futures_util::future::join_all(processes.iter().map(|process| process.stop(STOP_WITHIN))).await;
    }

    /// A topic with the settings that the services ask for: three replicas of which two must be in sync (one with fewer
    /// brokers), nothing deleted for a week, records of up to 2 MiB.
    pub fn topic(&self, name: &str, partitions: i32) -> TopicSpec {
        let replication = if self.brokers() < 3 { 1 } else { 3 };
        let in_sync = if replication == 1 { "1" } else { "2" };
        let config = [
            ("min.insync.replicas", in_sync),
            ("max.message.bytes", "2097152"),
            ("cleanup.policy", "delete"),
            ("retention.ms", "604800000"),
            ("unclean.leader.election.enable", "false"),
        ];
        let config = config.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        TopicSpec { name: name.to_owned(), partitions, replication, config }
    }

    /// The topic in which the transfers tell the gateways what they have stored; named as the services expect it.
    pub fn hints_topic(&self, name: &str) -> TopicSpec {
        let main = self.topic(name, 1);
        let config = [("cleanup.policy", "delete"), ("retention.ms", "600000"), ("segment.ms", "600000")];
        let config = config.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        TopicSpec { name: format!("{name}-hints"), config, ..main }
    }

    /// Creates [`Kafka::topic`] with `config` on top, and its hints topic where there is none; waits until every partition
    /// has a leader.
    pub async fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) -> Result<(), StackError> {
        self.create_topic_without_hints(name, partitions, config).await?;
        let hints = self.hints_topic(name);
        if self.partitions(&hints.name).await?.is_none() {
            self.create(&hints).await?;
        }
        Ok(())
    }

    /// The same, and no hints topic.
    pub async fn create_topic_without_hints(
        &self,
        name: &str,
        partitions: i32,
        config: &[(&str, &str)],
    ) -> Result<(), StackError> {
        let mut spec = self.topic(name, partitions);
        for (key, value) in config {
            spec.config.retain(|(known, _)| known != key);
            spec.config.push(((*key).to_owned(), (*value).to_owned()));
        }
        self.create(&spec).await
    }

    /// Creates a topic as described and waits until every partition has a leader.
    pub async fn create(&self, spec: &TopicSpec) -> Result<(), StackError> {
        admin::create(&self.bootstrap, spec).await
    }

    /// The number of partitions of a topic; none when there is no such topic.
    pub async fn partitions(&self, topic: &str) -> Result<Option<i32>, StackError> {
        admin::partitions(&self.bootstrap, topic).await
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: &str) -> Result<(), StackError> {
        admin::delete(&self.bootstrap, name).await
    }

    fn broker(&self, id: usize) -> Result<(&Cluster, &Broker), StackError> {
        let cluster = self.cluster.as_ref().ok_or_else(|| StackError::Setting("this Kafka is not ours".to_owned()))?;
        let broker = id.checked_sub(1).and_then(|index| cluster.brokers.get(index));
        let broker = broker.ok_or_else(|| StackError::Setting(format!("there is no broker {id}")))?;
        Ok((cluster, broker))
    }
}

impl Broker {
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    fn node(&self, broker: &Broker) -> PathBuf {
        self.folder.join(format!("node-{}", broker.id))
    }

    fn settings(&self, broker: &Broker) -> PathBuf {
        self.node(broker).join("server.properties")
    }

    fn data(&self, broker: &Broker) -> PathBuf {
        self.node(broker).join("data")
    }

    fn log(&self, broker: &Broker) -> PathBuf {
        self.logs.join(format!("kafka-{}.log", broker.id))
    }

    /// Written anew at every start, since the ports are others. KRaft keeps the voters' ids, not their addresses.
    fn write_settings(&self, broker: &Broker) -> Result<(), StackError> {
        let node = self.node(broker);
        fs::create_dir_all(&node).map_err(StackError::io("create", &node))?;
        let voters: Vec<String> = self.brokers.iter().map(|one| format!("{}@{}", one.id, one.controller)).collect();
        let text = server_properties(broker, &voters, &self.data(broker));
        let path = self.settings(broker);
        fs::write(&path, text).map_err(StackError::io("write", path))?;
        let path = node.join("log4j2.xml");
        fs::write(&path, LOG4J).map_err(StackError::io("write", path))
    }

    async fn start(&self, broker: &Broker) -> Result<(), StackError> {
        if broker.process().as_ref().is_some_and(|process| process.exit_status().is_none()) {
            return Ok(());
        }
        if !self.data(broker).join("meta.properties").exists() {
            self.format(broker).await?;
        }
        let process = Process::spawn(Spec {
            name: format!("kafka broker {}", broker.id),
            args: self.java_args(broker, "kafka.Kafka", &[&self.settings(broker).display().to_string()]),
            log: self.log(broker),
            ..self.java()
        })?;
        *broker.process() = Some(process);
        Ok(())
    }

    /// Gives the data folder its identity, once.
    async fn format(&self, broker: &Broker) -> Result<(), StackError> {
        let settings = self.settings(broker).display().to_string();
        let process = Process::spawn(Spec {
            name: format!("kafka format of broker {}", broker.id),
            args: self.java_args(broker, "kafka.tools.StorageTool", &["format", "-t", CLUSTER_ID, "-c", &settings]),
            log: self.logs.join(format!("kafka-{}-format.log", broker.id)),
            ..self.java()
        })?;
        let status = process.wait().await;
        if status.success() {
            return Ok(());
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

    fn java_args(&self, broker: &Broker, class: &str, args: &[&str]) -> Vec<std::ffi::OsString> {
        let log4j = self.node(broker).join("log4j2.xml");
        let mut all = vec![
            "-Xmx512m".to_owned(),
            // Only the quick compiler: a broker is up 0.3 s earlier and leaves more of a small machine to the services.
            "-XX:TieredStopAtLevel=1".to_owned(),
            // A small heap on a small machine: the parallel collectors' threads would compete with everything else.
            "-XX:+UseSerialGC".to_owned(),
            format!("-Dlog4j2.configurationFile={}", log4j.display()),
            "-cp".to_owned(),
            // Java itself expands the star.
            format!("{}/*", self.home.jars.display()),
            class.to_owned(),
        ];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        all.into_iter().map(Into::into).collect()
    }

    async fn wait_ready(&self, broker: &Broker, members: usize) -> Result<(), StackError> {
        let process = broker.process().clone().expect("started just before");
        let addr = broker.client.addr();
        let probe = async || {
            // A client that finds nobody waits longer and longer before it looks again, so first the bare port.
            TcpStream::connect(addr).await.is_ok() && admin::sees_brokers(addr.to_string(), addr, members).await
        };
        process.until_ready(READY_WITHIN, probe).await
    }
}

/// Refuses a folder that was made with another number of brokers: the quorum is fixed when it is formatted.
fn check_count(folder: &Path, brokers: usize) -> Result<(), StackError> {
    let found = (1..=3).filter(|id| folder.join(format!("node-{id}/data/meta.properties")).exists()).count();
    if found == 0 || found == brokers {
        return Ok(());
    }
    Err(StackError::Setting(format!(
        "{} holds the data of a cluster of {found}, not of {brokers}: choose another state folder or remove this one",
        folder.display()
    )))
}

/// Warnings and what `Kafka` itself says at start and stop, to standard output, which is the broker's log file.
const LOG4J: &str = r#"<Configuration status="WARN" shutdownHook="disable">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"#;

fn server_properties(broker: &Broker, voters: &[String], data: &Path) -> String {
    let (replicas, in_sync) = if voters.len() == 1 { (1, 1) } else { (3, 2) };
    let Broker { id, client, controller, .. } = broker;
    let settings: [(&str, String); 23] = [
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", id.to_string()),
        ("controller.quorum.voters", voters.join(",")),
        ("listeners", format!("PLAINTEXT://{client},CONTROLLER://{controller}")),
        ("advertised.listeners", format!("PLAINTEXT://{client}")),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
        ("log.dirs", data.display().to_string()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("default.replication.factor", replicas.to_string()),
        ("min.insync.replicas", in_sync.to_string()),
        ("offsets.topic.replication.factor", replicas.to_string()),
        // Fewer than Kafka's 50, which take over a second to create when the first group joins.
        ("offsets.topic.num.partitions", "8".to_owned()),
        ("transaction.state.log.replication.factor", replicas.to_string()),
        ("transaction.state.log.min.isr", in_sync.to_string()),
        ("transaction.state.log.num.partitions", "8".to_owned()),
        ("share.coordinator.state.topic.replication.factor", replicas.to_string()),
        ("share.coordinator.state.topic.min.isr", in_sync.to_string()),
        // Kafka's 3 s wait for more members would be in every test that starts a consumer.
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        // Tests use short sessions to see a dead consumer expelled soon.
        ("group.min.session.timeout.ms", "1000".to_owned()),
        // A broker that was killed is let in again only when its predecessor's session is over: Kafka's 9 s would be in
        // every test of a crash.
        ("broker.session.timeout.ms", "3000".to_owned()),
        ("broker.heartbeat.interval.ms", "500".to_owned()),
    ];
    settings.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}
