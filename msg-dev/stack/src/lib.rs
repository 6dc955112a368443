//! The local stack: a real Kafka and a real PostgreSQL as child processes under one state folder, and the services on
//! top of them. `msg-dev up`, the demo, the fault lab, the benchmarks and the integration tests use it.
#![expect(missing_docs, reason = "public only for our own programs: a comment has to add to the name")]

mod args;
mod error;
pub mod kafka;
pub mod logs;
mod offsets;
pub mod pipe;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod service;
mod state;
mod stop;
pub mod user;

use std::path::{Path, PathBuf};

pub use args::FetchArgs;
pub use error::StackError;
pub use kafka::rights::{Operation, Resource, Right};
pub use kafka::{BrokerTls, ClusterOptions, Jvm, Kafka, TokenIssuer, TopicSpec};
pub use offsets::Offsets;
pub use pipe::{GatewayPlan, Pipe, Services, TransferPlan};
pub use ports::Port;
pub use postgres::Postgres;
pub use process::{Process, Signal};
pub use proxy::{Proxies, Toxic};
pub use service::{Memory, Service, ServiceSpec, sum_of};
pub use state::State;
pub use stop::StopSignals;

/// The options of a stack.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// The folder of data, settings and logs; only one stack at a time can use it.
    pub state: PathBuf,
    /// Start with an empty state folder.
    pub fresh: bool,
    /// The folder of fetched files.
    pub cache: PathBuf,
    /// The number of brokers to start: 1 or 3.
    pub brokers: usize,
    /// Additional settings of the brokers.
    pub cluster: ClusterOptions,
    /// Use the Kafka at this address and start no broker.
    pub kafka: Option<String>,
    /// Use the PostgreSQL at this URL and start no server.
    pub database_url: Option<String>,
}

impl StackOptions {
    /// Returns options for one broker and one server in this state folder, with the default cache.
    pub fn new(state: impl Into<PathBuf>) -> StackOptions {
        StackOptions {
            state: state.into(),
            fresh: false,
            cache: msg_fetch::default_cache(),
            brokers: 1,
            cluster: ClusterOptions::default(),
            kafka: None,
            database_url: None,
        }
    }
}

/// Kafka and PostgreSQL. Both are killed when this value is dropped or this process dies in any way.
#[derive(Debug)]
pub struct Stack {
    kafka: Kafka,
    postgres: Postgres,
    state: State,
}

impl Stack {
    /// Locks the state folder, reserves the ports, and fetches missing files. Starts no process: all addresses are
    /// valid, and connections are refused until the process is started.
    pub async fn reserve(options: StackOptions) -> Result<Stack, StackError> {
        // Hashing files blocks, and Maven may run for a minute.
        tokio::task::spawn_blocking(move || reserve(&options)).await.expect("reserving a stack does not panic")
    }

    /// Reserves and starts a stack: calls [`Stack::reserve`], then [`Stack::launch`].
    pub async fn start(options: StackOptions) -> Result<Stack, StackError> {
        let stack = Stack::reserve(options).await?;
        stack.launch().await?;
        Ok(stack)
    }

    /// Starts Kafka and PostgreSQL concurrently, and waits until both respond.
    pub async fn launch(&self) -> Result<(), StackError> {
        tokio::try_join!(self.kafka.start(), self.postgres.start())?;
        Ok(())
    }

    /// Returns the Kafka cluster: own brokers, or those at the address that the options name.
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// Returns the PostgreSQL server: an own one, or the one at the URL that the options name.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// Returns the state folder, which contains the data and the logs.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The folder of all log files.
    pub fn logs(&self) -> &Path {
        self.state.logs()
    }

    /// Returns the settings of services on this stack. With fewer than 3 brokers the services accept an unsafe topic,
    /// since such a topic has no replicas.
    pub fn pipe(&self, topic: &str, partitions: i32, database_url: &str) -> Pipe {
        Pipe {
            kafka: self.kafka.bootstrap().to_owned(),
            topic: topic.to_owned(),
            partitions,
            database_url: database_url.to_owned(),
            allow_unsafe_topic: self.kafka.brokers() < 3,
        }
    }

    /// Returns the started processes of Kafka and PostgreSQL.
    pub fn processes(&self) -> Vec<Process> {
        self.kafka.processes().into_iter().chain(self.postgres.process()).collect()
    }

    /// Stops the own processes gracefully: Kafka first, then PostgreSQL.
    pub async fn stop(&self) {
        self.kafka.stop().await;
        self.postgres.stop().await;
    }
}

fn reserve(options: &StackOptions) -> Result<Stack, StackError> {
    let state = State::open(&options.state, options.fresh)?;
    let kafka = match &options.kafka {
        Some(addr) => Kafka::external(addr.clone()),
        None => {
            let home = msg_fetch::kafka(&options.cache)?;
            Kafka::reserve(home, &state.folder().join("kafka"), state.logs(), options.brokers, &options.cluster)?
        }
    };
    let postgres = match &options.database_url {
        Some(url) => Postgres::external(url.clone()),
        None => {
            let home = msg_fetch::postgres(&options.cache)?;
            Postgres::reserve(home, &state.folder().join("postgres"), state.logs())?
        }
    };
    Ok(Stack { kafka, postgres, state })
}
