//! A world of a test's own: a topic, a group and a database on a stack, and the services on them.

use std::path::PathBuf;

use msg_common::partition::Partition;
use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use msg_dev::stack::{Pipe, Port, Service, ServiceSpec, Stack, pipe};
use tokio_postgres::Client;
use tonic::transport::Channel;

use super::eventually;
use super::kafka::{self, Writer};
use super::stack::stack;

/// A row of `messages`, as far as the promises speak of it.
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
    /// Held, or somebody else could take the ports while a service is started again.
    ports: std::sync::Mutex<Vec<Port>>,
}

impl World {
    /// On the stack of the run.
    pub(crate) async fn new(name: &str) -> World {
        let stack = stack().await;
        let world = World::on(stack, name, 4);
        world.create(stack).await;
        world
    }

    /// On the stack of the run, and there is no topic for hints.
    pub(crate) async fn without_hints(name: &str) -> World {
        let stack = stack().await;
        let world = World::on(stack, name, 4);
        stack.kafka().create_topic_without_hints(name, world.partitions, &[]).await.unwrap();
        stack.postgres().create_database(name).await.unwrap();
        world
    }

    /// On this stack, of which nothing needs to run yet.
    pub(crate) fn on(stack: &Stack, name: &str, partitions: Partition) -> World {
        let pipe = stack.pipe(name, partitions, &stack.postgres().url(name));
        World { name: name.into(), pipe, logs: stack.logs().into(), partitions, ports: std::sync::Mutex::default() }
    }

    /// The same world, looked at through another server.
    pub(crate) fn on_database(world: &World, url: &str) -> World {
        let pipe = Pipe { database_url: url.to_owned(), ..world.pipe.clone() };
        let (name, logs, partitions) = (world.name.clone(), world.logs.clone(), world.partitions);
        World { name, pipe, logs, partitions, ports: std::sync::Mutex::default() }
    }

    /// Makes the topic and the database.
    pub(crate) async fn create(&self, stack: &Stack) {
        self.create_topic(stack).await;
        stack.postgres().create_database(&self.name).await.unwrap();
    }

    pub(crate) async fn create_topic(&self, stack: &Stack) {
        stack.kafka().create_topic(&self.name, self.partitions, &[]).await.unwrap();
    }

    /// A transfer of this world's; `change` puts further settings on top. Not started.
    pub(crate) fn transfer(&self, name: &str, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Service {
        let plan = self.pipe.transfer(&format!("{}-{name}", self.name)).unwrap();
        self.ports.lock().unwrap().push(plan.admin);
        let spec = plan.spec.env("GROUP_ID", &self.name).env("LOG_FORMAT", "text").env("COMMIT_INTERVAL", "100ms");
        Service::new(change(spec), &self.logs).unwrap()
    }

    /// A transfer with the usual settings, ready.
    pub(crate) async fn running_transfer(&self) -> Service {
        let transfer = self.transfer("transfer", |spec| spec);
        transfer.start().await.unwrap();
        transfer
    }

    /// A gateway of this world's, and where it will listen. Not started.
    pub(crate) fn gateway(&self, name: &str, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Gateway {
        let plan = self.pipe.gateway(&format!("{}-{name}", self.name), pipe::free_port().unwrap()).unwrap();
        let address = plan.grpc.addr().to_string();
        self.ports.lock().unwrap().extend([plan.grpc, plan.admin]);
        let service = Service::new(change(plan.spec.env("LOG_FORMAT", "text")), &self.logs).unwrap();
        Gateway { service, address }
    }

    /// A gateway with the usual settings, ready.
    pub(crate) async fn running_gateway(&self) -> Gateway {
        let gateway = self.gateway("gateway", |spec| spec);
        gateway.service.start().await.unwrap();
        gateway
    }

    pub(crate) fn writer(&self) -> Writer {
        Writer::new(&self.pipe.kafka, &self.name, self.partitions)
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

    /// What the group has committed, by partition; 0 where nothing is.
    pub(crate) async fn committed(&self) -> Vec<i64> {
        let (brokers, name, partitions) = (self.pipe.kafka.clone(), self.name.clone(), self.partitions);
        let asked = tokio::task::spawn_blocking(move || kafka::committed(&brokers, &name, &name, partitions));
        asked.await.unwrap().into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Where each partition ends.
    pub(crate) async fn ends(&self) -> Vec<i64> {
        let (brokers, name, partitions) = (self.pipe.kafka.clone(), self.name.clone(), self.partitions);
        tokio::task::spawn_blocking(move || kafka::ends(&brokers, &name, partitions)).await.unwrap()
    }

    /// Waits until the group has committed everything that the topic holds.
    pub(crate) async fn all_committed(&self) {
        let ends = self.ends().await;
        eventually("everything is committed", async || {
            let committed = self.committed().await;
            super::ensure(committed == ends, format!("committed {committed:?} of {ends:?}"))
        })
        .await;
    }

    /// Waits until there are so many rows.
    pub(crate) async fn rows_reach(&self, count: i64) {
        let database = self.database().await;
        eventually("the rows are there", async || {
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

    /// Reason, key and value of each dead letter, in the order of their places in Kafka.
    pub(crate) async fn dead_letters(&self) -> Vec<(String, Option<Vec<u8>>, Option<Vec<u8>>)> {
        let query = "SELECT reason, key, value FROM dead_letters ORDER BY kafka_partition, kafka_offset";
        let rows = self.database().await.query(query, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    /// P3 and P4 of what is stored: in each inbox `seq` is 1, 2, 3 … and goes with the offset.
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

    /// P5: no committed offset and no progress row is above the first record that is neither stored nor a dead letter.
    pub(crate) async fn assert_offsets_do_not_lead(&self, committed: &[i64]) {
        let query = "SELECT kafka_partition, kafka_offset FROM messages
                     UNION SELECT kafka_partition, kafka_offset FROM dead_letters ORDER BY 1, 2";
        let mut settled = vec![std::collections::BTreeSet::new(); committed.len()];
        for row in self.database().await.query(query, &[]).await.unwrap() {
            settled[usize::try_from(row.get::<_, i32>(0)).unwrap()].insert(row.get::<_, i64>(1));
        }
        let mut claimed: Vec<(usize, i64)> = committed.iter().copied().enumerate().collect();
        for row in self.database().await.query("SELECT kafka_partition, next_offset FROM progress", &[]).await.unwrap()
        {
            claimed.push((usize::try_from(row.get::<_, i32>(0)).unwrap(), row.get(1)));
        }
        for (partition, next) in claimed {
            for offset in 0..next {
                assert!(
                    settled[partition].contains(&offset),
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
    /// Of gRPC.
    pub(crate) address: String,
}

impl Gateway {
    pub(crate) async fn client(&self) -> MsgGatewayClient<Channel> {
        MsgGatewayClient::connect(format!("http://{}", self.address)).await.unwrap()
    }
}
