//! `msg-dev up` runs the whole stack in the foreground until Ctrl-C.
#![allow(clippy::print_stdout, reason = "a command line tool that prints addresses and folders")]

use std::time::Instant;

use msg_stack::process::first_to_die;
use msg_stack::{GatewayPlan, Pipe, Port, Service, Stack, StackError, StopSignals, TransferPlan, pipe};

use crate::cli::UpArgs;

/// The database that is created if the stack runs its own PostgreSQL server.
const DATABASE: &str = "msg";
const GRPC_PORT: u16 = 50051;
/// The exit code by which a shell reports SIGINT: 128 and the number of the signal.
const INTERRUPTED: i32 = 130;

/// Starts everything, waits for Ctrl-C, SIGTERM or the end of a child, and stops everything.
pub(crate) async fn run(args: UpArgs) -> Result<(), StackError> {
    let mut stop = StopSignals::listen()?;
    let mut services = Services::default();
    let stack = tokio::select! {
        stack = Stack::reserve(args.stack.options()) => stack?,
        // No process was started yet. A running fetch cannot be cancelled; the next fetch removes its unfinished
        // folder.
        () = stop.requested() => std::process::exit(INTERRUPTED),
    };
    // From here on a signal must stop the started processes; it also ends the wait for readiness.
    let ran = tokio::select! {
        ran = Box::pin(run_until_a_child_ends(&stack, &args, &mut services)) => ran,
        () = stop.requested() => Ok(()),
    };
    let why = if ran.is_err() { "a process failed: stopping the others" } else { "stopping" };
    println!("{why} (press Ctrl-C again to kill)");
    tokio::select! {
        () = stop_all(&stack, &services) => {}
        // The children are killed when this process ends.
        () = stop.requested() => std::process::exit(INTERRUPTED),
    }
    ran
}

/// The services that were started, in the order in which they are stopped.
#[derive(Default)]
struct Services {
    gateway: Option<Service>,
    transfer: Option<Service>,
    /// Reserved for as long as the services may restart: another process could bind the ports during a restart.
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
        println!("everything is up after {:.1} s", began.elapsed().as_secs_f64());
        print_lines_to_try(&grpc);
    }
    println!("Ctrl-C stops everything and keeps the data");
    let mut watched = stack.processes();
    watched.extend([&services.gateway, &services.transfer].into_iter().flatten().filter_map(Service::process));
    Err(first_to_die(&watched).await)
}

/// Creates the topic if it does not exist, and returns the number of its partitions.
async fn ensure_topic(stack: &Stack, topic: &str, partitions: i32) -> Result<i32, StackError> {
    if let Some(existing) = stack.kafka().partitions(topic).await? {
        if existing != partitions {
            println!("topic {topic} exists already, with {existing} partitions");
        }
        return Ok(existing);
    }
    stack.kafka().create_topic(topic, partitions, &[]).await?;
    Ok(partitions)
}

/// Starts both services and waits until both are ready. The transfer starts first, since it migrates the schema.
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
    println!("port {GRPC_PORT} is in use, so the gateway listens on {}", port.number());
    Ok(port)
}

async fn stop_all(stack: &Stack, services: &Services) {
    // Stop callers before the processes that they use: each can still finish what is in flight.
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
        // Do not print the URL: it may hold a password.
        println!("PostgreSQL    at the given URL");
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
