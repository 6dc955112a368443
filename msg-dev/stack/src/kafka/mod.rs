//! Owns the local Kafka cluster: real KRaft brokers as child processes, each of which can be stopped, killed, frozen and
//! started again on its own address and data.

mod admin;
mod cluster;
pub mod rights;
mod settings;
mod topic;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub use self::topic::TopicSpec;
use super::error::StackError;
use super::fetch::KafkaHome;
use super::ports::Port;
use super::process::{Process, Signal};

/// One broker is up in about 3 s on an idle machine, format included; a machine that compiles at the same time is slow.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// A controlled shutdown takes 0.4 s alone; with three brokers each hands its leaderships over first.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long an address from outside is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// One cluster id for all: two stacks share nothing else.
const CLUSTER_ID: &str = "bXNnLWRldi1jbHVzdGVyMA";

/// The network over which the brokers reach each other, when the cluster has it.
pub const BETWEEN_BROKERS: &str = "BROKERS";

/// What a cluster of ours has beyond the usual.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Networks, in capitals: over each, a broker is reached at an address that is not its own, where somebody (a proxy)
    /// has to pass everything on. [`BETWEEN_BROKERS`] is the brokers' own.
    pub networks: Vec<String>,
    /// Further settings of each broker; a later value counts.
    pub settings: Vec<(String, String)>,
    /// Users that log in with a password, at [`Kafka::bootstrap_for_users`] and over each network but the brokers' own. With any,
    /// an authorizer decides what they may do: nothing until a right is granted ([`Kafka::grant`]). Who connects without a
    /// password may do anything.
    pub users: Vec<String>,
}

/// The way to one broker over one network.
#[derive(Debug)]
pub struct Leg {
    /// Which network.
    pub network: String,
    /// The address that clients of the network are told.
    pub front: Port,
    /// Where the broker listens for them.
    pub behind: Port,
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
    settings: Vec<(String, String)>,
    /// With their passwords.
    users: Mutex<Vec<(String, String)>>,
}

#[derive(Debug)]
struct Broker {
    id: usize,
    client: Port,
    controller: Port,
    legs: Vec<Leg>,
    /// Where users log in, if there are any.
    users: Option<Port>,
    process: Mutex<Option<Process>>,
}

impl Kafka {
    /// Takes the ports and writes the settings of a cluster, and starts nothing: [`Kafka::bootstrap`] is valid, and refuses
    /// connections until [`Kafka::start`]. Data of an earlier run in `folder` is kept.
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
            Ok(Broker { id, client, controller, legs, users, process: Mutex::new(None) })
        };
        let brokers = (1..=brokers).map(broker).collect::<Result<Vec<_>, StackError>>()?;
        let bootstrap = brokers.iter().map(|broker| broker.client.to_string()).collect::<Vec<_>>().join(",");
        let users = options.users.iter().map(|user| (user.clone(), rights::password(user))).collect();
        let (settings, users) = (options.settings.clone(), Mutex::new(users));
        let cluster = Cluster { home, folder: folder.to_owned(), logs: logs.to_owned(), brokers, settings, users };
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

    /// For `bootstrap.servers` of a client that is on this network.
    pub fn bootstrap_over(&self, network: &str) -> String {
        let legs = self.legs().filter(|(_, leg)| leg.network == network);
        legs.map(|(_, leg)| leg.front.to_string()).collect::<Vec<_>>().join(",")
    }

    /// The ways over all networks, each with the number of its broker (from 1).
    pub fn legs(&self) -> impl Iterator<Item = (usize, &Leg)> {
        let brokers = self.cluster.iter().flat_map(|cluster| &cluster.brokers);
        brokers.flat_map(|broker| broker.legs.iter().map(|leg| (broker.id, leg)))
    }

    /// The folder with the data of broker `id` (from 1).
    pub fn data(&self, id: usize) -> Result<PathBuf, StackError> {
        let (cluster, broker) = self.broker(id)?;
        Ok(cluster.data(broker))
    }

    /// Runs one of Kafka's own tools to its end, and gives what it said.
    pub async fn tool(&self, class: &str, args: &[&str]) -> Result<String, StackError> {
        let (cluster, broker) = self.broker(1)?;
        cluster.tool(broker, class, args).await
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
        // A single broker's topic is unsafe in any case, and tests write old records to it.
        let clock = (replication == 3).then_some(("message.timestamp.type", "LogAppendTime"));
        let config = config.into_iter().chain(clock).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
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
