//! `msg-dev up`: the whole stack in the foreground until Ctrl-C, and `msg-dev fetch`.
#![allow(clippy::print_stdout, reason = "a command line tool that tells where things are")]

use std::time::Instant;

use msg_stack::process::first_to_die;
use msg_stack::{FetchArgs, GatewayPlan, Pipe, Port, Service, Stack, StackError, TransferPlan, fetch, pipe};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::UpArgs;

/// The database that is made where the server is ours.
const DATABASE: &str = "msg";
/// The gateway's own default.
const GRPC_PORT: u16 = 50051;
/// As a shell says it: 128 and SIGINT.
const INTERRUPTED: i32 = 130;

/// Fetches and checks both.
pub(crate) async fn fetch(args: FetchArgs) -> Result<(), StackError> {
    let cache = args.folder();
    let (kafka, postgres) = {
        let cache = cache.clone();
        let both = move || (fetch::kafka(&cache), fetch::postgres(&cache));
        tokio::task::spawn_blocking(both).await.expect("fetching does not panic")
    };
    kafka?;
    postgres?;
    println!(
        "Kafka {} and PostgreSQL {} are in {}, and are what is pinned",
        fetch::KAFKA_VERSION,
        fetch::POSTGRES_VERSION,
        cache.display()
    );
    Ok(())
}

/// Starts all, waits for Ctrl-C, SIGTERM or the end of a child, and stops all.
pub(crate) async fn run(args: UpArgs) -> Result<(), StackError> {
    let mut stop = Stop::listen()?;
    let mut services = Services::default();
    let stack = tokio::select! {
        stack = Stack::reserve(args.stack.options()) => stack?,
        // Nothing was started, and a fetch under way cannot be called off: what it leaves, the next one removes.
        () = stop.asked() => std::process::exit(INTERRUPTED),
    };
    // From here on a signal must stop what was started; it also ends the waiting for readiness.
    let ran = tokio::select! {
        ran = Box::pin(run_until_a_child_ends(&stack, &args, &mut services)) => ran,
        () = stop.asked() => Ok(()),
    };
    let why = if ran.is_err() { "something failed: stopping the rest" } else { "stopping" };
    println!("{why} (Ctrl-C again kills)");
    tokio::select! {
        () = stop_all(&stack, &services) => {}
        // The children die with this process.
        () = stop.asked() => std::process::exit(INTERRUPTED),
    }
    ran
}

/// The services that were started, in the order in which they are stopped.
#[derive(Default)]
struct Services {
    gateway: Option<Service>,
    transfer: Option<Service>,
    /// Held, or somebody else could take the ports while a service is started again.
    ports: Vec<Port>,
}

async fn run_until_a_child_ends(stack: &Stack, args: &UpArgs, services: &mut Services) -> Result<(), StackError> {
    let began = Instant::now();
    stack.launch().await?;
    println!("Kafka and PostgreSQL are up after {:.1} s", began.elapsed().as_secs_f64());
    let partitions = ensure_topic(stack, &args.topic, args.partitions).await?;
    let database_url = match stack.postgres().is_ours() {
        true => stack.postgres().ensure_database(DATABASE).await?,
        false => stack.postgres().base_url().to_owned(),
    };
    print_parts(stack, args, partitions, &database_url);
    if !args.no_services {
        let pipe = stack.pipe(&args.topic, partitions, &database_url);
        let grpc = start_services(stack, args, &pipe, services).await?;
        println!("all is up after {:.1} s", began.elapsed().as_secs_f64());
        print_lines_to_try(&grpc);
    }
    println!("Ctrl-C stops everything; the data stays");
    let mut watched = stack.processes();
    watched.extend([&services.gateway, &services.transfer].into_iter().flatten().filter_map(Service::process));
    Err(first_to_die(&watched).await)
}

/// Creates the topic where there is none, and gives the number of its partitions.
async fn ensure_topic(stack: &Stack, topic: &str, partitions: i32) -> Result<i32, StackError> {
    if let Some(there) = stack.kafka().partitions(topic).await? {
        if there != partitions {
            println!("topic {topic} is there already, with {there} partitions");
        }
        return Ok(there);
    }
    stack.kafka().create_topic(topic, partitions, &[]).await?;
    Ok(partitions)
}

/// Starts both and waits until both are ready. The transfer migrates the schema, so it goes first.
async fn start_services(
    stack: &Stack,
    args: &UpArgs,
    pipe: &Pipe,
    services: &mut Services,
) -> Result<String, StackError> {
    let TransferPlan { spec, admin } = pipe.transfer("msg-transfer")?;
    println!("msg-transfer  admin http://{admin}");
    services.ports.push(admin);
    let transfer = services.transfer.insert(Service::new(spec, stack.logs())?);
    transfer.start().await?;

    let GatewayPlan { spec, grpc, admin } = pipe.gateway("msg-gateway", grpc_port(args.gateway_port)?)?;
    let address = grpc.to_string();
    println!("msg-gateway   gRPC {address}, admin http://{admin}");
    services.ports.extend([grpc, admin]);
    let gateway = services.gateway.insert(Service::new(spec, stack.logs())?);
    gateway.start().await?;
    Ok(address)
}

fn grpc_port(wanted: Option<u16>) -> Result<Port, StackError> {
    if let Some(number) = wanted {
        return Port::at(number).map_err(StackError::io("listen on", format!("127.0.0.1:{number}")));
    }
    if let Ok(port) = Port::at(GRPC_PORT) {
        return Ok(port);
    }
    let port = pipe::free_port()?;
    println!("port {GRPC_PORT} is taken, so the gateway listens on {}", port.number());
    Ok(port)
}

async fn stop_all(stack: &Stack, services: &Services) {
    // Senders before what they need: each can still finish what it has taken.
    for service in [&services.gateway, &services.transfer].into_iter().flatten() {
        service.stop().await;
    }
    stack.stop().await;
}

fn print_parts(stack: &Stack, args: &UpArgs, partitions: i32, database_url: &str) {
    println!("Kafka         {} (topic {}, {partitions} partitions)", stack.kafka().bootstrap(), args.topic);
    if stack.postgres().is_ours() {
        println!("PostgreSQL    {database_url}");
    } else {
        // It may hold a password.
        println!("PostgreSQL    as given");
    }
    println!("state         {}", stack.state().folder().display());
    println!("logs          {}", stack.logs().display());
}

fn print_lines_to_try(grpc: &str) {
    println!(
        r#"
try:
  grpcurl -plaintext -d '{{"msg":{{"recv_id":"bob","send_id":"alice","client_msg_id":"1","session_type":"SESSION_TYPE_SINGLE","content_type":"text/plain","content":"aGVsbG8="}}}}' {grpc} msg.v1.MsgGateway/SendMsg
  grpcurl -plaintext -d '{{"recv_id":"bob"}}' {grpc} msg.v1.MsgGateway/PullMsgs
  grpcurl -plaintext -d '{{"recv_ids":["bob"]}}' {grpc} msg.v1.MsgGateway/GetMaxSeqs
"#
    );
}

/// Ctrl-C and SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Stop, StackError> {
        let listen = |kind| signal(kind).map_err(StackError::io("listen for", "signals"));
        Ok(Stop { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
