//! The local stack: a real Kafka and a real PostgreSQL as child processes under one state folder, and the services on
//! top of them. Used by `msg-dev up`, the demo, the lab, the benchmarks and the integration tests.

mod args;
mod error;
pub mod fetch;
pub mod kafka;
pub mod logs;
mod offsets;
mod pins;
pub mod pipe;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod service;
mod state;
pub mod user;

use std::path::{Path, PathBuf};

pub use args::FetchArgs;
pub use error::StackError;
pub use kafka::rights::{Operation, Resource, Right};
pub use kafka::{ClusterOptions, Kafka, TopicSpec};
pub use offsets::Offsets;
pub use pipe::{GatewayPlan, Pipe, Services, TransferPlan};
pub use ports::Port;
pub use postgres::Postgres;
pub use process::{Process, Signal};
pub use proxy::{Proxies, Toxic};
pub use service::{Memory, Service, ServiceSpec};
pub use state::State;

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// Data, settings and logs; one stack at a time holds it.
    pub state: PathBuf,
    /// Begin with an empty state folder.
    pub fresh: bool,
    /// Where what is fetched is kept.
    pub cache: PathBuf,
    /// Brokers to start: 1 or 3.
    pub brokers: usize,
    /// What the brokers have beyond the usual.
    pub cluster: ClusterOptions,
    /// Use the Kafka at this address and start none.
    pub kafka: Option<String>,
    /// Use the PostgreSQL at this URL and start none.
    pub database_url: Option<String>,
}

impl StackOptions {
    /// One broker and one server in this state folder, from the default cache.
    pub fn new(state: impl Into<PathBuf>) -> StackOptions {
        StackOptions {
            state: state.into(),
            fresh: false,
            cache: fetch::default_cache(),
            brokers: 1,
            cluster: ClusterOptions::default(),
            kafka: None,
            database_url: None,
        }
    }
}

/// Kafka and PostgreSQL. When it is dropped, or this process dies in any way, both are killed.
#[derive(Debug)]
pub struct Stack {
    kafka: Kafka,
    postgres: Postgres,
    state: State,
}

impl Stack {
    /// Takes the state folder and the ports, and fetches what is missing. Starts nothing: all addresses are valid, and refuse
    /// connections until the part is started.
    pub async fn reserve(options: StackOptions) -> Result<Stack, StackError> {
        // Files are hashed, and Maven may run for a minute.
        tokio::task::spawn_blocking(move || reserve(&options)).await.expect("reserving a stack does not panic")
    }

    /// [`Stack::reserve`], then [`Stack::launch`].
    pub async fn start(options: StackOptions) -> Result<Stack, StackError> {
        let stack = Stack::reserve(options).await?;
        stack.launch().await?;
        Ok(stack)
    }

    /// Starts what was reserved, both at the same time, and waits until both answer.
    pub async fn launch(&self) -> Result<(), StackError> {
        tokio::try_join!(self.kafka.start(), self.postgres.start())?;
        Ok(())
    }

    /// The Kafka cluster.
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// The PostgreSQL server.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The state folder.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The folder of all log files.
    pub fn logs(&self) -> &Path {
        self.state.logs()
    }

    /// The settings of services on this stack: one broker is accepted as unsafe, as it has no replicas.
    pub fn pipe(&self, topic: &str, partitions: i32, database_url: &str) -> Pipe {
        Pipe {
            kafka: self.kafka.bootstrap().to_owned(),
            topic: topic.to_owned(),
            partitions,
            database_url: database_url.to_owned(),
            allow_unsafe_topic: self.kafka.brokers() < 3,
        }
    }

    /// The processes of Kafka and PostgreSQL that were started.
    pub fn processes(&self) -> Vec<Process> {
        self.kafka.processes().into_iter().chain(self.postgres.process()).collect()
    }

    /// Stops Kafka, then PostgreSQL.
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
            let home = fetch::kafka(&options.cache)?;
            Kafka::reserve(home, &state.folder().join("kafka"), state.logs(), options.brokers, &options.cluster)?
        }
    };
    let postgres = match &options.database_url {
        Some(url) => Postgres::external(url.clone()),
        None => {
            let home = fetch::postgres(&options.cache)?;
            Postgres::reserve(home, &state.folder().join("postgres"), state.logs())?
        }
    };
    Ok(Stack { kafka, postgres, state })
}
