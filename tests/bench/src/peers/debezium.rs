//! Debezium's JDBC sink in Kafka Connect, as a peer of the transfer. It reads the same topic, and writes a record's value
//! as it is, with its position in Kafka as primary key: no inboxes, no `seq`, no message IDs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use msg_fetch::KafkaHome;
use msg_stack::pipe::free_port;
use msg_stack::{Service, ServiceSpec, Stack, logs};
use tokio_postgres::config::Host;

use super::{FOLDER, TIME, run};
use crate::cost::Watched;
use crate::drain::until_stored;
use crate::rounds::Round;
use crate::{Error, Load, TOPIC, until};

/// Java, Kafka Connect and the connector start within this time, and the group assigns the partitions.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// As many as the transfer has lanes.
const TASKS: usize = 4;
/// The number of the last row shows how many were written, without a query that reads the table.
const TABLE: &str = "CREATE TABLE debezium (n bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME debezium_n), \
                     __connect_topic text, __connect_partition integer, __connect_offset bigint, value bytea NOT NULL, \
                     PRIMARY KEY (__connect_topic, __connect_partition, __connect_offset))";
const COUNT: &str = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM debezium_n";

/// The connector's files.
pub(crate) struct Sink {
    kafka: KafkaHome,
    plugins: PathBuf,
}

impl Sink {
    /// Fetches the connector with Maven.
    pub(crate) fn fetch() -> Result<Sink, Error> {
        let folder = env::current_exe()?.with_file_name("msg-bench-debezium");
        let (pom, out) = (format!("{FOLDER}/debezium/pom.xml"), format!("-Dplugin={}", folder.display()));
        run(Command::new("mvn").args(["-B", "-q", "-f", &pom, &out, "dependency:copy-dependencies"]))?;
        let (archive, plugins) = (folder.join("debezium-connector-jdbc-plugin.tar.gz"), folder.join("plugins"));
        fs::create_dir_all(&plugins)?;
        // Not with Maven: it leaves files in the folder that are named like jars and hold headers of the archive.
        run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&plugins))?;
        Ok(Sink { kafka: msg_fetch::kafka(&msg_fetch::default_cache())?, plugins })
    }

    /// Drains the backlog into a new database of this name.
    pub(crate) async fn drain(&self, stack: &Stack, load: &Load, name: &str) -> Result<Round, Error> {
        let url = stack.postgres().create_database(name).await?;
        let database = stack.postgres().connect(&url).await?;
        database.batch_execute(TABLE).await?;
        let folder = stack.state().folder().join(name);
        fs::create_dir_all(&folder)?;
        let port = free_port()?;
        let worker = self.worker(stack, &folder, &port.to_string())?;
        let sink = sink(&folder, name, &url)?;
        // The path of Java may be relative.
        let mut spec = ServiceSpec::new("debezium", "/usr/bin/env").arg(self.kafka.java.display().to_string());
        // The heap that Kafka Connect's own start script has.
        for arg in ["-Xms256M", "-Xmx2G", "-cp", &format!("{}/*", self.kafka.jars.display())] {
            spec = spec.arg(arg);
        }
        let spec = spec.arg("org.apache.kafka.connect.cli.ConnectStandalone").arg(worker).arg(sink);
        let connect = Service::new(spec, stack.logs())?;
        let process = connect.launch()?;
        let stored = async || {
            if let Some(status) = process.exit_status() {
                return Err(process.died(status).into());
            }
            Ok(database.query_one(COUNT, &[]).await?.get::<_, i64>(0) as f64)
        };
        // The process does not end if its tasks fail. Its log is deleted with the stack.
        let started = until("Debezium's first rows", START_TIMEOUT, async || Ok(stored().await? > 0.0)).await;
        started.map_err(|error| format!("{error}\n{}", logs::tail(connect.log())))?;
        let round = until_stored(&Watched::new(stack, &[&connect]), load.messages, Some(TIME), stored).await?;
        connect.stop().await;
        database.batch_execute("TRUNCATE debezium; CHECKPOINT").await?;
        Ok(round)
    }

    fn worker(&self, stack: &Stack, folder: &Path, listen: &str) -> Result<String, Error> {
        let converter = "org.apache.kafka.connect.converters.ByteArrayConverter";
        write(
            &folder.join("worker.properties"),
            &[
                ("bootstrap.servers", stack.kafka().bootstrap()),
                ("key.converter", converter),
                ("value.converter", converter),
                ("offset.storage.file.filename", &folder.join("offsets").display().to_string()),
                ("plugin.path", &self.plugins.display().to_string()),
                ("listeners", &format!("http://{listen}")),
                ("consumer.max.poll.records", "2000"),
            ],
        )
    }
}

fn sink(folder: &Path, name: &str, url: &str) -> Result<String, Error> {
    let config: tokio_postgres::Config = url.parse()?;
    let (Some(Host::Tcp(host)), Some(port)) = (config.get_hosts().first(), config.get_ports().first()) else {
        return Err("Debezium needs a database with a TCP port".into());
    };
    let database = config.get_dbname().unwrap_or_default();
    write(
        &folder.join("sink.properties"),
        &[
            ("name", name),
            ("connector.class", "io.debezium.connector.jdbc.JdbcSinkConnector"),
            ("tasks.max", &TASKS.to_string()),
            ("topics", TOPIC),
            ("connection.url", &format!("jdbc:postgresql://{host}:{port}/{database}")),
            ("connection.username", config.get_user().unwrap_or_default()),
            ("connection.password", &String::from_utf8_lossy(config.get_password().unwrap_or_default())),
            ("insert.mode", "upsert"),
            ("primary.key.mode", "kafka"),
            ("schema.evolution", "none"),
            ("collection.name.format", "debezium"),
            ("batch.size", "2000"),
            // The sink needs a field for each column.
            ("transforms", "hoist"),
            ("transforms.hoist.type", "org.apache.kafka.connect.transforms.HoistField$Value"),
            ("transforms.hoist.field", "value"),
        ],
    )
}

/// Writes a file of properties, and returns its path.
fn write(path: &Path, properties: &[(&str, &str)]) -> Result<String, Error> {
    let lines: String = properties.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    fs::write(path, lines)?;
    Ok(path.display().to_string())
}
