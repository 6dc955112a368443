//! Owns what is under test: three brokers, PostgreSQL, two gateways, up to eight transfers, and the load's processes;
//! their addresses, and how each is restarted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use msg_stack::kafka::BETWEEN_BROKERS;
use msg_stack::{
    ClusterOptions, Offsets, Port, Postgres, Proxies, Service, ServiceSpec, Stack, StackError, StackOptions, pipe,
};

use super::accounts::{Accounts, GATEWAY, TRANSFER, USERS, kafka_rights};
use super::args::LabArgs;
use super::disk::Disk;
use super::error::LabError;
use super::kind::Needs;
use super::loads::Loads;
use super::secure::Identities;
use super::topology::{BROKERS, DATABASE, GATEWAYS, GROUP, PARTITIONS, TOPIC, TRANSFERS};

/// How long the group waits for a silent transfer. The default of 30 s would be the cost of every crash. With 6 s a
/// session would end before the group has a new coordinator: another broker needs about 5 s after the death of the old
/// one.
const SESSION_TIMEOUT: &str = "10s";

/// The networks with a proxy. A service with a network of its own can be isolated alone.
const KAFKA_NETWORKS: [&str; 4] = ["GATEWAYS", "TRANSFERS", "TRANSFER1", BETWEEN_BROKERS];
const POSTGRES_NETWORKS: [&str; 3] = ["gateways-postgres", "transfers-postgres", "transfer1-postgres"];

/// Everything that runs. All processes are killed when this value is dropped.
pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) proxies: Option<Proxies>,
    pub(crate) gateways: Vec<Node>,
    pub(crate) transfers: Vec<Node>,
    pub(crate) loads: Loads,
    /// How many of the transfers run, counted from the first.
    pub(crate) scale: AtomicUsize,
    pub(crate) offsets: Offsets,
    /// The topic's current number of partitions.
    pub(crate) partitions: AtomicI32,
    pub(crate) database_url: String,
    /// A second server, which the services know as their second host. It runs only while a fault makes it a standby.
    pub(crate) standby: Option<Postgres>,
    /// The users of the services, if they log in.
    pub(crate) accounts: Option<Accounts>,
    /// The certificates and the token, if all connections of services and callers have TLS.
    pub(crate) identities: Option<Identities>,
    pub(crate) postgres_disk: Option<Disk>,
    pub(crate) broker_disk: Option<Disk>,
    /// The addresses of the gateways for callers, in front of the proxies if there are any.
    pub(crate) fronts: Vec<Port>,
    /// The folder with another build's programs.
    pub(crate) other: Option<PathBuf>,
}

/// A service that is restarted on the same ports.
pub(crate) struct Node {
    name: String,
    /// The program and settings for the next start.
    spec: Mutex<ServiceSpec>,
    service: Mutex<Arc<Service>>,
    logs: PathBuf,
    /// Whether the service should run: if it ends meanwhile, the lab did not cause that.
    wanted: AtomicBool,
    _ports: Vec<Port>,
}

impl Node {
    fn new(spec: ServiceSpec, logs: PathBuf, ports: Vec<Port>) -> Result<Node, StackError> {
        let service = Mutex::new(Arc::new(Service::new(spec.clone(), &logs)?));
        Ok(Node {
            name: spec.name.clone(),
            spec: Mutex::new(spec),
            service,
            logs,
            wanted: AtomicBool::new(false),
            _ports: ports,
        })
    }

    /// The service as it was started last.
    pub(crate) fn service(&self) -> Arc<Service> {
        Arc::clone(&self.service.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Starts the service, and waits until it is ready.
    pub(crate) async fn start(&self) -> Result<(), StackError> {
        self.wanted.store(true, Ordering::Relaxed);
        self.service().start().await
    }

    /// Starts the service, and does not wait.
    pub(crate) fn launch(&self) -> Result<(), StackError> {
        self.wanted.store(true, Ordering::Relaxed);
        self.service().launch().map(|_| ())
    }

    pub(crate) async fn kill(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        self.service().kill().await;
    }

    /// Sends SIGTERM and waits. Returns whether the service ended before its deadline with exit code 0.
    pub(crate) async fn stop(&self) -> bool {
        self.wanted.store(false, Ordering::Relaxed);
        self.service().stop().await.is_none_or(|status| status.success())
    }

    /// Returns the program and settings for the next start.
    pub(crate) fn spec(&self) -> ServiceSpec {
        self.spec.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets a setting for all later starts.
    pub(crate) fn set(&self, name: &str, value: impl ToString) -> Result<(), StackError> {
        let mut spec = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
        *spec = spec.clone().env(name, value);
        drop(spec);
        self.change(|spec| spec)
    }

    /// Changes program and settings for the next start.
    pub(crate) fn change(&self, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Result<(), StackError> {
        let spec = self.spec.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let service = Service::new(change(spec), &self.logs)?;
        *self.service.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(service);
        Ok(())
    }
}

impl World {
    /// Starts Kafka, PostgreSQL and the services, and no load.
    pub(crate) async fn start(args: &LabArgs, needs: Needs, folder: PathBuf) -> Result<World, LabError> {
        let networks = if needs.proxies { KAFKA_NETWORKS.map(str::to_owned).to_vec() } else { Vec::new() };
        // A follower that does not follow is out of sync after this long. Kafka's default of 30 s is longer than most
        // faults.
        let settings = vec![("replica.lag.time.max.ms".to_owned(), "8000".to_owned())];
        if needs.secure && !args.secure {
            return Err(LabError::Setting("rotate-certificates needs --secure".into()));
        }
        let identities = match args.secure {
            true => Some(Identities::new(folder.join("identities"))?),
            false => None,
        };
        // A login over TLS needs a user too.
        let has_accounts = needs.accounts || args.secure;
        let users = if has_accounts { USERS.map(str::to_owned).to_vec() } else { Vec::new() };
        let options = StackOptions {
            cache: args.fetch.folder(),
            brokers: BROKERS,
            cluster: ClusterOptions {
                networks,
                settings,
                users,
                tls: identities.as_ref().map(Identities::brokers),
                ..ClusterOptions::default()
            },
            fresh: true,
            ..StackOptions::new(&folder)
        };
        let stack = Stack::reserve(options).await?;
        let (mut postgres_disk, mut broker_disk) = (None, None);
        if needs.disks {
            postgres_disk = Some(Disk::mount(&folder.join("postgres"), 24 << 30)?);
            broker_disk = Some(Disk::mount(&stack.kafka().data(BROKERS)?, 16 << 30)?);
        }
        let proxies = match needs.proxies {
            true => Some(Proxies::start(args.toxiproxy()?, stack.logs()).await?),
            false => None,
        };
        if let Some(proxies) = &proxies {
            for (broker, leg) in stack.kafka().legs() {
                let name = format!("{}-{broker}", leg.network);
                proxies.add(&name, leg.front.addr(), leg.behind.addr()).await?;
            }
        }
        stack.launch().await?;
        stack.kafka().create_topic(TOPIC, PARTITIONS, &[]).await?;
        let database_url = stack.postgres().ensure_database(DATABASE).await?;
        if let Some(identities) = &identities {
            identities.write()?;
            identities.install(stack.postgres()).await?;
        }
        let accounts = match has_accounts {
            true => Some(Accounts::new(folder.join("accounts"), identities.as_ref().map(Identities::ca_file))?),
            false => None,
        };
        if let Some(accounts) = &accounts {
            accounts.create_roles(stack.postgres(), &stack.postgres().connect(&database_url).await?).await?;
            stack.kafka().grant(USERS.iter().flat_map(|user| kafka_rights(user)).collect()).await?;
        }
        let standby = match needs.standby {
            true => Some(stack.postgres().second_server(&folder.join("standby"))?),
            false => None,
        };
        let offsets = Offsets::new(stack.kafka().bootstrap(), GROUP, TOPIC, PARTITIONS)?;
        let mut world = World {
            stack,
            proxies,
            gateways: Vec::new(),
            transfers: Vec::new(),
            loads: Loads::new(folder.join("history"))?,
            scale: AtomicUsize::new(args.transfers),
            offsets,
            partitions: AtomicI32::new(PARTITIONS),
            database_url,
            standby,
            accounts,
            identities,
            postgres_disk,
            broker_disk,
            fronts: Vec::new(),
            other: args.other.as_ref().map(std::path::absolute).transpose().map_err(LabError::io("find", "--other"))?,
        };
        world.add_services(args).await?;
        Box::pin(world.launch_services()).await?;
        Ok(world)
    }

    async fn add_services(&mut self, args: &LabArgs) -> Result<(), LabError> {
        let logs = self.stack.logs().to_owned();
        let mut postgres = Vec::new();
        for network in POSTGRES_NETWORKS {
            let port = pipe::free_port()?;
            let mut host = self.stack.postgres().host();
            if let Some(proxies) = &self.proxies {
                let server = host.parse().map_err(|_| LabError::Setting(format!("{host} is no address")))?;
                proxies.add(network, port.addr(), server).await?;
                host = port.to_string();
            }
            let more = self.standby.as_ref().map_or_else(String::new, |standby| format!(",{}", standby.host()));
            let writable = self.standby.as_ref().map(|_| "target_session_attrs=read-write".to_owned());
            let verified = self.identities.as_ref().map(Identities::url_parameters);
            let parameters: Vec<String> = writable.into_iter().chain(verified).collect();
            let parameters = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
            postgres.push((format!("{host}{more}/{DATABASE}{parameters}"), port));
        }
        let kafka = |network: &str| match (&self.proxies, &self.identities, &self.accounts) {
            (Some(_), ..) => self.stack.kafka().bootstrap_over(network),
            (None, Some(_), _) => self.stack.kafka().bootstrap_with_login(),
            (None, None, Some(_)) => self.stack.kafka().bootstrap_for_users(),
            (None, None, None) => self.stack.kafka().bootstrap().to_owned(),
        };
        let kafka = [kafka("GATEWAYS"), kafka("TRANSFERS"), kafka("TRANSFER1")];
        let mut login = |spec: ServiceSpec, user, network: usize| {
            let (url, spec) = (&postgres[network].0, spec.env("KAFKA_BROKERS", &kafka[network]));
            match &mut self.accounts {
                Some(accounts) => accounts.configure(spec, user, POSTGRES_NETWORKS[network], url),
                None => Ok(spec.env("DATABASE_URL", format!("postgres://postgres@{url}"))),
            }
        };
        for number in 1..=GATEWAYS {
            let plan = self.stack.pipe(TOPIC, PARTITIONS, &self.database_url);
            let plan = plan.gateway(&format!("gateway-{number}"), pipe::free_port()?)?;
            let spec = login(plan.spec, GATEWAY, 0)?.env("LOG_FORMAT", "text");
            // Without a hint, a watch finds new rows within 5 s. The checker requires that.
            let spec = spec.env("WATCH_POLL_INTERVAL", "5s");
            let spec = match &self.identities {
                Some(identities) => identities.configure_gateway(spec),
                None => spec,
            };
            let spec = args.gateway_env.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
            let front = match &self.proxies {
                Some(proxies) => {
                    let front = pipe::free_port()?;
                    proxies.add(&format!("clients-gateway-{number}"), front.addr(), plan.grpc.addr()).await?;
                    self.gateways.push(Node::new(spec, logs.clone(), vec![plan.grpc, plan.admin])?);
                    front
                }
                None => {
                    self.gateways.push(Node::new(spec, logs.clone(), vec![plan.admin])?);
                    plan.grpc
                }
            };
            self.fronts.push(front);
        }
        for number in 1..=TRANSFERS {
            let network = if number == 1 { 2 } else { 1 };
            let plan =
                self.stack.pipe(TOPIC, PARTITIONS, &self.database_url).transfer(&format!("transfer-{number}"))?;
            let spec = login(plan.spec, TRANSFER, network)?.env("GROUP_ID", GROUP).env("LOG_FORMAT", "text");
            let spec = spec.env("SESSION_TIMEOUT", SESSION_TIMEOUT).env("DRAIN_TIMEOUT", "3s");
            let spec = args.transfer_env.iter().fold(spec, |spec, (name, value)| spec.env(name, value));
            let mut ports = vec![plan.admin];
            if number == TRANSFERS {
                ports.extend(postgres.drain(..).map(|(_, port)| port));
                self.transfers.push(Node::new(spec, logs.clone(), ports)?);
                break;
            }
            self.transfers.push(Node::new(spec, logs.clone(), ports)?);
        }
        Ok(())
    }

    async fn launch_services(&self) -> Result<(), LabError> {
        // Wait for the first one: it migrates the schema.
        self.transfers[0].start().await?;
        if self.accounts.is_some() {
            Accounts::grant_tables(&self.database().await?).await?;
        }
        let others = self.transfers[1..self.scale.load(Ordering::Relaxed)].iter();
        futures_util::future::try_join_all(others.chain(&self.gateways).map(Node::start)).await?;
        Ok(())
    }

    /// Returns the transfers that should run.
    pub(crate) fn running_transfers(&self) -> &[Node] {
        &self.transfers[..self.scale.load(Ordering::Relaxed)]
    }

    /// Runs the first `count` transfers from now on, and stops the others gracefully.
    pub(crate) async fn scale_to(&self, count: usize) -> Result<(), StackError> {
        let before = self.scale.swap(count, Ordering::Relaxed);
        let (fewer, more) = (before.min(count), before.max(count));
        let changed = &self.transfers[fewer..more];
        if count > before {
            futures_util::future::try_join_all(changed.iter().map(Node::start)).await?;
        } else {
            futures_util::future::join_all(changed.iter().map(Node::stop)).await;
        }
        Ok(())
    }

    /// Runs a command of a service to its end, with the settings of that service.
    pub(crate) async fn command(&self, node: &Node, args: &[&str]) -> Result<(), LabError> {
        let mut spec = args.iter().fold(node.spec(), |spec, arg| spec.arg(*arg));
        (spec.name, spec.admin) = (args.join("-"), None);
        spec.env.retain(|(name, _)| name != "ADMIN_LISTEN");
        let service = Service::new(spec, self.stack.logs())?;
        service.launch()?;
        let status = service.wait().await?;
        match status.success() {
            true => Ok(()),
            false => Err(LabError::Setting(format!("{} ended with {status}", service.name()))),
        }
    }

    /// Returns the addresses of the gateways for callers.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.fronts.iter().map(ToString::to_string).collect()
    }

    /// Opens a new connection to the database that uses no proxy.
    pub(crate) async fn database(&self) -> Result<tokio_postgres::Client, StackError> {
        self.stack.postgres().connect(&self.database_url).await
    }
}
