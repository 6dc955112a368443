//! Owns the local Kafka cluster: real KRaft brokers as child processes. Each can be stopped, killed, frozen and started
//! again on the same address and data.

mod admin;
mod cluster;
pub mod rights;
mod secure;
mod settings;
mod topic;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use self::secure::SecurePorts;
pub use self::secure::{BrokerTls, TokenIssuer};
pub use self::topic::TopicSpec;
use super::error::StackError;
use super::ports::Port;
use super::process::{Process, Signal};
use msg_fetch::KafkaHome;

/// A broker starts and formats its folder in about 3 s on an idle machine; a machine that compiles meanwhile is slower.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// A controlled shutdown needs 0.4 s alone; with three brokers each moves its leaderships to the others first.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for a cluster at a given address.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// All stacks use the same cluster id: two stacks never share a network.
const CLUSTER_ID: &str = "bXNnLWRldi1jbHVzdGVyMA";

/// The network between the brokers, if the cluster has one.
pub const BETWEEN_BROKERS: &str = "BROKERS";

/// Additional options of a cluster that runs as children of this process.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// How the brokers' Java runs.
    pub jvm: Jvm,
    /// The names of networks, in capitals. Over each, a broker has an additional address; the caller must run a proxy
    /// there that forwards to the broker. [`BETWEEN_BROKERS`] is the network of the brokers.
    pub networks: Vec<String>,
    /// Additional settings of each broker; a later value replaces an earlier one.
    pub settings: Vec<(String, String)>,
    /// Users that log in with a password, at [`Kafka::bootstrap_for_users`] and over every network except the brokers'
    /// own. If there are users, an authorizer decides what they may do: nothing until a right is granted
    /// ([`Kafka::grant`]). A client without a password may do everything.
    pub users: Vec<String>,
    /// The certificates of two further listeners for the users, both with TLS: [`Kafka::bootstrap_with_login`] and
    /// [`Kafka::bootstrap_with_certificate`]. The networks on which users log in have TLS too.
    pub tls: Option<BrokerTls>,
    /// The issuer of tokens that the users may log in with too, at [`Kafka::bootstrap_with_login`]. Needs `tls`.
    pub tokens: Option<TokenIssuer>,
}

/// How the Java of a broker runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Jvm {
    /// With the quick compiler alone, the serial collector and a small heap: for tests, which start many brokers.
    #[default]
    Small,
    /// With both compilers, the collector and the heap that Kafka's own start script sets: for measurements.
    Usual,
}

/// The addresses of one broker on one network.
#[derive(Debug)]
pub struct Leg {
    /// The name of the network.
    pub network: String,
    /// The address that the broker advertises to clients of the network.
    pub front: Port,
    /// The address where the broker listens for these clients.
    pub behind: Port,
}

/// A Kafka cluster: children of this process, or a cluster at a given address.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    cluster: Option<Cluster>,
    /// The number of brokers of a cluster at a given address, once [`Kafka::start`] has read it.
    members: OnceLock<usize>,
}

#[derive(Debug)]
struct Cluster {
    home: KafkaHome,
    folder: PathBuf,
    logs: PathBuf,
    brokers: Vec<Broker>,
    settings: Vec<(String, String)>,
    jvm: Jvm,
    /// The users with their passwords.
    users: Mutex<Vec<(String, String)>>,
    tls: Option<BrokerTls>,
    tokens: Option<TokenIssuer>,
}

#[derive(Debug)]
struct Broker {
    id: usize,
    client: Port,
    controller: Port,
    legs: Vec<Leg>,
    /// The port where users log in, if there are users.
    users: Option<Port>,
    /// The ports with TLS, if there are certificates.
    secure: Option<SecurePorts>,
    process: Mutex<Option<Process>>,
}

impl Kafka {
    /// Reserves the ports and writes the settings of a cluster, and starts no process: [`Kafka::bootstrap`] is valid,
    /// and connections are refused until [`Kafka::start`]. The data of an earlier run in `folder` stays.
    pub fn reserve(
        home: KafkaHome,
        folder: &Path,
        logs: &Path,
        brokers: usize,
        options: &ClusterOptions,
    ) -> Result<Kafka, StackError> {
        if brokers != 1 && brokers != 3 {
            return Err(StackError::Setting(format!("a cluster has 1 or 3 brokers, not {brokers}")));
        }
        check_count(folder, brokers)?;
        let port = || Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"));
        let leg = |network: &String| Ok(Leg { network: network.clone(), front: port()?, behind: port()? });
        let legs = || options.networks.iter().map(leg).collect::<Result<Vec<_>, StackError>>();
        let broker = |id| {
            let (client, controller, legs) = (port()?, port()?, legs()?);
            let users = if options.users.is_empty() { None } else { Some(port()?) };
            let secure = options.tls.as_ref().map(|_| SecurePorts::free()).transpose();
            let secure = secure.map_err(StackError::io("reserve a port on", "127.0.0.1"))?;
            Ok(Broker { id, client, controller, legs, users, secure, process: Mutex::new(None) })
        };
        let brokers = (1..=brokers).map(broker).collect::<Result<Vec<_>, StackError>>()?;
        let bootstrap = brokers.iter().map(|broker| broker.client.to_string()).collect::<Vec<_>>().join(",");
        let users = options.users.iter().map(|user| (user.clone(), rights::password(user))).collect();
        let (settings, users) = (options.settings.clone(), Mutex::new(users));
        let (folder, logs) = (folder.to_owned(), logs.to_owned());
        let (tls, tokens) = (options.tls.clone(), options.tokens.clone());
        let cluster = Cluster { home, folder, logs, brokers, settings, jvm: options.jvm, users, tls, tokens };
        for broker in &cluster.brokers {
            cluster.write_settings(broker)?;
        }
        Ok(Kafka { bootstrap, cluster: Some(cluster), members: OnceLock::new() })
    }

    /// Uses a cluster at this address; it is no child of this process.
    pub fn external(bootstrap: impl Into<String>) -> Kafka {
        Kafka { bootstrap: bootstrap.into(), cluster: None, members: OnceLock::new() }
    }

    /// The value of `bootstrap.servers`: all brokers, `host:port` with commas.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The value of `bootstrap.servers` for a client on this network.
    pub fn bootstrap_over(&self, network: &str) -> String {
        let legs = self.legs().filter(|(_, leg)| leg.network == network);
        legs.map(|(_, leg)| leg.front.to_string()).collect::<Vec<_>>().join(",")
    }

    /// The addresses on all networks, each with the number of its broker (from 1).
    pub fn legs(&self) -> impl Iterator<Item = (usize, &Leg)> {
        let brokers = self.cluster.iter().flat_map(|cluster| &cluster.brokers);
        brokers.flat_map(|broker| broker.legs.iter().map(|leg| (broker.id, leg)))
    }

    /// The folder with the data of broker `id` (from 1).
    pub fn data(&self, id: usize) -> Result<PathBuf, StackError> {
        let (cluster, broker) = self.broker(id)?;
        Ok(cluster.data(broker))
    }

    /// Runs one of Kafka's own tools to its end, and returns its output.
    pub async fn tool(&self, class: &str, args: &[&str]) -> Result<String, StackError> {
        let (cluster, broker) = self.broker(1)?;
        cluster.tool(broker, class, args).await
    }

    /// The number of brokers. For a cluster at a given address it is 0 until [`Kafka::start`].
    pub fn brokers(&self) -> usize {
        let members = || self.members.get().copied().unwrap_or(0);
        self.cluster.as_ref().map_or_else(members, |cluster| cluster.brokers.len())
    }

    /// Whether the brokers are children of this process.
    pub fn is_ours(&self) -> bool {
        self.cluster.is_some()
    }

    /// The process of broker `id` (from 1), if it was started.
    pub fn process(&self, id: usize) -> Option<Process> {
        self.broker(id).ok()?.1.process().clone()
    }

    /// All broker processes that were started.
    pub fn processes(&self) -> Vec<Process> {
        (1..=self.brokers()).filter_map(|id| self.process(id)).collect()
    }

    /// Starts the brokers that do not run, and waits until all of them respond to a client.
    pub async fn start(&self) -> Result<(), StackError> {
        let Some(cluster) = &self.cluster else {
            let members = admin::wait_for_any_broker(&self.bootstrap, RESPONSE_TIMEOUT).await?;
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

    /// Starts broker `id` (from 1), and waits until it responds to a client and is part of the cluster.
    pub async fn start_broker(&self, id: usize) -> Result<(), StackError> {
        let (cluster, broker) = self.broker(id)?;
        cluster.start(broker).await?;
        cluster.wait_ready(broker, 1).await
    }

    /// Stops broker `id` gracefully: it moves its leaderships to the other brokers first.
    pub async fn stop_broker(&self, id: usize) -> Result<(), StackError> {
        let process = self.broker(id)?.1.process().clone();
        if let Some(process) = process {
            process.stop(STOP_WITHIN).await;
        }
        Ok(())
    }

    /// Kills broker `id` with SIGKILL, as a crash would.
    pub async fn kill_broker(&self, id: usize) -> Result<(), StackError> {
        let process = self.broker(id)?.1.process().clone();
        if let Some(process) = process {
            process.kill().await;
        }
        Ok(())
    }

    /// Sends a signal to broker `id`: `Stop` freezes it, `Cont` resumes it. Returns false if the broker does not run.
    pub fn signal_broker(&self, id: usize, signal: Signal) -> Result<bool, StackError> {
        Ok(self.broker(id)?.1.process().as_ref().is_some_and(|process| process.signal(signal)))
    }

    /// Stops all brokers concurrently. In sequence, the last ones would lose the controllers' majority and wait for it.
    pub async fn stop(&self) {
        let processes = self.processes();
        futures_util::future::join_all(processes.iter().map(|process| process.stop(STOP_WITHIN))).await;
    }

    /// Returns a topic with the settings that the services require: three replicas, two of them in sync (one each with
    /// fewer brokers), a retention of a week, and records of up to 2 MiB.
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
        // The topic of a single broker is unsafe in any case, and tests write records with old timestamps to it.
        let clock = (replication == 3).then_some(("message.timestamp.type", "LogAppendTime"));
        let config = config.into_iter().chain(clock).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        TopicSpec { name: name.to_owned(), partitions, replication, config }
    }

    /// Returns the hints topic of this topic, with the name that the services expect.
    pub fn hints_topic(&self, name: &str) -> TopicSpec {
        let main = self.topic(name, 1);
        let config = [("cleanup.policy", "delete"), ("retention.ms", "600000"), ("segment.ms", "600000")];
        let config = config.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        TopicSpec { name: format!("{name}-hints"), config, ..main }
    }

    /// Creates [`Kafka::topic`] with the additional settings `config`, and its hints topic if it does not exist. Waits
    /// until every partition has a leader.
    pub async fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) -> Result<(), StackError> {
        self.create_topic_without_hints(name, partitions, config).await?;
        let hints = self.hints_topic(name);
        if self.partitions(&hints.name).await?.is_none() {
            self.create(&hints).await?;
        }
        Ok(())
    }

    /// Creates [`Kafka::topic`] with the additional settings `config`, and no hints topic.
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

    /// Returns the number of partitions of a topic, or none if the topic does not exist.
    pub async fn partitions(&self, topic: &str) -> Result<Option<i32>, StackError> {
        admin::partitions(&self.bootstrap, topic).await
    }

    /// Deletes a topic, or returns an error if it does not exist.
    pub async fn delete_topic(&self, name: &str) -> Result<(), StackError> {
        admin::delete(&self.bootstrap, name).await
    }

    fn broker(&self, id: usize) -> Result<(&Cluster, &Broker), StackError> {
        let missing = || StackError::Setting("this Kafka is not a child of this process".to_owned());
        let cluster = self.cluster.as_ref().ok_or_else(missing)?;
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

/// Rejects a folder of a cluster with another number of brokers: formatting fixes the members of the quorum.
fn check_count(folder: &Path, brokers: usize) -> Result<(), StackError> {
    let found = (1..=3).filter(|id| folder.join(format!("node-{id}/data/meta.properties")).exists()).count();
    if found == 0 || found == brokers {
        return Ok(());
    }
    Err(StackError::Setting(format!(
        "{} contains the data of a cluster of {found}, not of {brokers}: choose another state folder or remove this one",
        folder.display()
    )))
}
