//! A world of a test's own: a topic, a consumer group and a database on a stack, and the services that use them.

use std::path::PathBuf;
use std::time::Instant;

use msg_common::partition::Partition;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_stack::{Offsets, Pipe, Port, Service, ServiceSpec, Stack, pipe};
use rdkafka::error::KafkaResult;
use tokio_postgres::Client;
use tonic::transport::Channel;

use super::kafka::RecordWriter;
use super::stack::stack;
use super::{WAIT_TIMEOUT, eventually};

/// A row of `messages`, with the columns that the promises are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) recv_id: String,
    pub(crate) seq: i64,
    pub(crate) send_id: String,
    pub(crate) client_msg_id: String,
    pub(crate) content: Vec<u8>,
    pub(crate) partition: Partition,
    pub(crate) offset: i64,
}

pub(crate) struct World {
    name: String,
    pipe: Pipe,
    logs: PathBuf,
    pub(crate) partitions: Partition,
    /// Reserved as long as the world exists, because another process could get a port while a service restarts.
    ports: std::sync::Mutex<Vec<Port>>,
}

impl World {
    /// Creates a world on the stack of the run.
    pub(crate) async fn new(name: &str) -> World {
        let stack = stack().await;
        let world = World::on(stack, name, 4);
        world.create(stack).await;
        world
    }

    /// Creates a world on the stack of the run, with these settings of its topic and without a database.
    pub(crate) async fn with_topic(name: &str, settings: &[(&str, &str)]) -> World {
        let stack = stack().await;
        let world = World::on(stack, name, 4);
        stack.kafka().create_topic(name, 4, settings).await.unwrap();
        world
    }

    /// Creates a world on the stack of the run, without a hints topic.
    pub(crate) async fn without_hints(name: &str) -> World {
        let stack = stack().await;
        let world = World::on(stack, name, 4);
        stack.kafka().create_topic_without_hints(name, world.partitions, &[]).await.unwrap();
        stack.postgres().create_database(name).await.unwrap();
        world
    }

    /// A world on this stack, which need not run yet. Nothing is created.
    pub(crate) fn on(stack: &Stack, name: &str, partitions: Partition) -> World {
        let pipe = stack.pipe(name, partitions, &stack.postgres().url(name));
        World { name: name.into(), pipe, logs: stack.logs().into(), partitions, ports: std::sync::Mutex::default() }
    }

    /// The same world with another server as its database.
    pub(crate) fn on_database(world: &World, url: &str) -> World {
        let pipe = Pipe { database_url: url.to_owned(), ..world.pipe.clone() };
        let (name, logs, partitions) = (world.name.clone(), world.logs.clone(), world.partitions);
        World { name, pipe, logs, partitions, ports: std::sync::Mutex::default() }
    }

    /// Creates the topic and the database.
    pub(crate) async fn create(&self, stack: &Stack) {
        self.create_topic(stack).await;
        stack.postgres().create_database(&self.name).await.unwrap();
    }

    pub(crate) async fn create_topic(&self, stack: &Stack) {
        stack.kafka().create_topic(&self.name, self.partitions, &[]).await.unwrap();
    }

    /// A transfer of this world, not started. `change` adds settings.
    pub(crate) fn transfer(&self, name: &str, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Service {
        let plan = self.pipe.transfer(&format!("{}-{name}", self.name)).unwrap();
        self.ports.lock().unwrap().push(plan.admin);
        let spec = plan.spec.env("GROUP_ID", &self.name).env("LOG_FORMAT", "text").env("COMMIT_INTERVAL", "100ms");
        Service::new(change(spec), &self.logs).unwrap()
    }

    /// Starts a transfer with the usual settings, and waits until it is ready.
    pub(crate) async fn running_transfer(&self) -> Service {
        let transfer = self.transfer("transfer", |spec| spec);
        transfer.start().await.unwrap();
        transfer
    }

    /// A gateway of this world, not started, and its address. `change` adds settings.
    pub(crate) fn gateway(&self, name: &str, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Gateway {
        let plan = self.pipe.gateway(&format!("{}-{name}", self.name), pipe::free_port().unwrap()).unwrap();
        let address = plan.grpc.addr().to_string();
        self.ports.lock().unwrap().extend([plan.grpc, plan.admin]);
        let service = Service::new(change(plan.spec.env("LOG_FORMAT", "text")), &self.logs).unwrap();
        Gateway { service, address }
    }

    /// Starts a gateway with the usual settings, and waits until it is ready.
    pub(crate) async fn running_gateway(&self) -> Gateway {
        let gateway = self.gateway("gateway", |spec| spec);
        gateway.service.start().await.unwrap();
        gateway
    }

    pub(crate) fn writer(&self) -> RecordWriter {
        RecordWriter::new(&self.pipe.kafka, &self.name, self.partitions)
    }

    pub(crate) fn database_url(&self) -> &str {
        &self.pipe.database_url
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.pipe.kafka
    }

    pub(crate) fn topic(&self) -> &str {
        &self.name
    }

    pub(crate) async fn database(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.pipe.database_url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The group's committed offsets, by partition; 0 if there is none.
    pub(crate) async fn committed_offsets(&self) -> Vec<i64> {
        let offsets = self.offsets(&self.name, self.partitions);
        // A young cluster may not have the coordinator of its first group yet.
        retry("committed offsets", || offsets.committed()).await
    }

    /// The end offset of each partition.
    pub(crate) async fn end_offsets(&self) -> Vec<i64> {
        self.end_offsets_of(&self.name, self.partitions).await
    }

    pub(crate) async fn end_offsets_of(&self, topic: &str, partitions: Partition) -> Vec<i64> {
        let offsets = self.offsets(topic, partitions);
        // A young topic's partition may not have a leader yet.
        retry("end offsets", || offsets.ends()).await
    }

    fn offsets(&self, topic: &str, partitions: Partition) -> Offsets {
        Offsets::new(&self.pipe.kafka, &self.name, topic, partitions).unwrap()
    }

    /// Waits until the group has committed every offset up to the end of the topic.
    pub(crate) async fn wait_for_all_committed(&self) {
        let ends = self.end_offsets().await;
        eventually("all offsets are committed", async || {
            let committed = self.committed_offsets().await;
            super::ensure(committed == ends, format!("committed {committed:?} of {ends:?}"))
        })
        .await;
    }

    /// Waits until the table `messages` has at least `count` rows.
    pub(crate) async fn wait_for_rows(&self, count: i64) {
        let database = self.database().await;
        eventually("the rows are stored", async || {
            let found = count_rows(&database, "messages").await?;
            super::ensure(found >= count, format!("{found} of {count} rows"))
        })
        .await;
    }

    pub(crate) async fn rows(&self) -> Vec<Row> {
        let query = "SELECT recv_id, seq, send_id, client_msg_id, content, kafka_partition, kafka_offset
                     FROM messages ORDER BY recv_id, seq";
        let rows = self.database().await.query(query, &[]).await.unwrap();
        let row = |row: &tokio_postgres::Row| Row {
            recv_id: row.get(0),
            seq: row.get(1),
            send_id: row.get(2),
            client_msg_id: row.get(3),
            content: row.get(4),
            partition: row.get(5),
            offset: row.get(6),
        };
        rows.iter().map(row).collect()
    }

    /// Reason, key and value of each dead letter, in the order of their positions.
    pub(crate) async fn dead_letters(&self) -> Vec<(String, Option<Vec<u8>>, Option<Vec<u8>>)> {
        let query = "SELECT reason, key, value FROM dead_letters ORDER BY kafka_partition, kafka_offset";
        let rows = self.database().await.query(query, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    /// Checks P3 and P4 of all rows: in each inbox, `seq` is 1, 2, 3, … in the order of the offsets.
    pub(crate) async fn assert_ordered_without_gaps(&self) {
        let rows = self.rows().await;
        for inbox in rows.chunk_by(|a, b| a.recv_id == b.recv_id) {
            let seqs: Vec<i64> = inbox.iter().map(|row| row.seq).collect();
            let expected: Vec<i64> = (1..).take(inbox.len()).collect();
            assert_eq!(seqs, expected, "P4: the inbox {} has gaps", inbox[0].recv_id);
            let ordered = inbox.is_sorted_by(|a, b| (a.partition, a.offset) < (b.partition, b.offset));
            assert!(ordered, "P3: the inbox {} is not in the order of Kafka", inbox[0].recv_id);
        }
    }

    /// Checks P5: no committed offset and no progress row is above the first record that is neither stored nor
    /// dead-lettered.
    pub(crate) async fn assert_offsets_do_not_lead(&self, committed: &[i64]) {
        let query = "SELECT kafka_partition, kafka_offset FROM messages
                     UNION SELECT kafka_partition, kafka_offset FROM dead_letters ORDER BY 1, 2";
        let mut completed = vec![std::collections::BTreeSet::new(); committed.len()];
        for row in self.database().await.query(query, &[]).await.unwrap() {
            completed[usize::try_from(row.get::<_, i32>(0)).unwrap()].insert(row.get::<_, i64>(1));
        }
        let mut claimed: Vec<(usize, i64)> = committed.iter().copied().enumerate().collect();
        for row in self.database().await.query("SELECT kafka_partition, next_offset FROM progress", &[]).await.unwrap()
        {
            claimed.push((usize::try_from(row.get::<_, i32>(0)).unwrap(), row.get(1)));
        }
        for (partition, next) in claimed {
            for offset in 0..next {
                assert!(
                    completed[partition].contains(&offset),
                    "P5: {partition}/{offset} is below {next} and not stored"
                );
            }
        }
    }
}

pub(crate) async fn count_rows(database: &Client, table: &str) -> Result<i64, tokio_postgres::Error> {
    Ok(database.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0))
}

pub(crate) struct Gateway {
    pub(crate) service: Service,
    pub(crate) address: String,
}

impl Gateway {
    pub(crate) async fn client(&self) -> MsgGatewayClient<Channel> {
        MsgGatewayClient::connect(format!("http://{}", self.address)).await.unwrap()
    }
}

/// Retries a request until it succeeds.
async fn retry<T, F: Future<Output = KafkaResult<T>>>(what: &str, request: impl Fn() -> F) -> T {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        match request().await {
            Ok(response) => return response,
            Err(error) => assert!(Instant::now() < deadline, "no {what}: {error}"),
        }
    }
}
