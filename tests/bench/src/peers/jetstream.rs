//! NATS JetStream, as a peer of the gateway with Kafka: one server that stores one stream in files.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use msg_stack::pipe::free_port;
use msg_stack::{Port, Service, ServiceSpec, Stack};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{TIME, build, in_go};
use crate::callers::{histogram, msg};
use crate::cost::{Cost, Watched};
use crate::librdkafka::Encoded;
use crate::rounds::Round;
use crate::{Error, Load, TOPIC, until};

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The server's default is below a body of 1 MiB with its record.
const MAX_PAYLOAD: usize = 4 << 20;

/// When the server calls fsync.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Every 2 minutes.
    Default,
    /// Before each ack.
    Always,
}

/// A server, and the program that publishes to it.
pub(crate) struct Server {
    pub(crate) label: &'static str,
    pub(crate) service: Service,
    /// The path of the peers' program.
    pub(crate) program: String,
    folder: PathBuf,
    port: Port,
}

/// The result of a publisher. Its process has ended by then, so it measures its own cost.
#[derive(Deserialize)]
struct Published {
    messages: usize,
    seconds: f64,
    micros: Vec<u64>,
    cpu_micros: f64,
    wakeups: f64,
    memory_bytes: f64,
}

impl Server {
    pub(crate) async fn start(stack: &Stack, sync: Sync) -> Result<Server, Error> {
        let (label, name, setting) = match sync {
            Sync::Default => ("NATS JetStream", "nats-server", ""),
            Sync::Always => ("NATS JetStream, sync always", "nats-server-sync", "sync_interval: always"),
        };
        let (program, server) = (in_go()?, build("github.com/nats-io/nats-server/v2", "nats-server")?);
        let (port, folder) = (free_port()?, stack.state().folder().join(name));
        fs::create_dir_all(&folder)?;
        let config = folder.join("nats.conf");
        let store = folder.display();
        let settings = format!("jetstream {{\n  store_dir: \"{store}\"\n  {setting}\n}}\n");
        fs::write(&config, format!("listen: \"{port}\"\nmax_payload: {MAX_PAYLOAD}\n{settings}"))?;
        let spec = ServiceSpec::new(name, server).arg("--config").arg(config.display().to_string());
        let service = Service::new(spec, stack.logs())?;
        service.launch()?;
        until(name, START_TIMEOUT, async || Ok(TcpStream::connect(port.addr()).await.is_ok())).await?;
        Ok(Server { label, service, program, folder, port })
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.port)
    }

    /// Publishes messages as large as the records of the load. With `wait`, each caller waits for its ack.
    pub(crate) async fn publish(
        &self,
        load: &Load,
        messages: usize,
        callers: usize,
        wait: bool,
    ) -> Result<Round, Error> {
        let record = Encoded::new(msg(load, &Bytes::from(load.random_body()), "peer", 0), 0, load.partitions);
        let payload = self.folder.join("payload");
        fs::write(&payload, record.into_parts().1)?;
        let watched = Watched::services(&[&self.service]);
        let meter = watched.start();
        let mut publisher = self.command("publish", load);
        publisher
            .env("PAYLOAD", payload)
            .env("MESSAGES", messages.to_string())
            .env("CALLERS", callers.to_string())
            .env("SECONDS", TIME.as_secs().to_string())
            .env("WAIT", if wait { "1" } else { "0" });
        let published: Published = serde_json::from_slice(&output(publisher).await?)?;
        let count = published.messages as f64;
        let mut costs = meter.stop(count);
        costs.push(Cost {
            process: "publisher".to_owned(),
            cpu: published.cpu_micros / count,
            wakeups: published.wakeups / count,
            memory: published.memory_bytes,
        });
        let mut latencies = histogram();
        for micros in published.micros {
            latencies.saturating_record(micros);
        }
        Ok(Round { rate: count / published.seconds, latencies, costs })
    }

    /// Copies the topic's records, a subject for each partition.
    pub(crate) async fn copy_topic(&self, stack: &Stack, load: &Load) -> Result<(), Error> {
        let mut copier = self.command("copy", load);
        copier.env("KAFKA_BROKERS", stack.kafka().bootstrap()).env("KAFKA_TOPIC", TOPIC);
        output(copier).await?;
        Ok(())
    }

    fn command(&self, peer: &str, load: &Load) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PEER", peer).env("NATS_URL", self.url()).env("PARTITIONS", load.partitions.to_string());
        command
    }
}

/// Runs a command to its end, and returns its output.
async fn output(mut command: Command) -> Result<Vec<u8>, Error> {
    let output = command.kill_on_drop(true).output().await?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{:?}: {}", command.as_std(), String::from_utf8_lossy(&output.stderr)).into()),
    }
}
