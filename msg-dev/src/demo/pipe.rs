//! Owns the two services of the demo: their start, the crash in the middle, and how much memory they take.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use msg_stack::service::READY_WITHIN;
use msg_stack::{GatewayPlan, Offsets, Port, Process, Service, Stack, StackError, TransferPlan, pipe};
use serde::Serialize;

use super::check::Crash;
use super::error::DemoError;

/// The topic.
pub(crate) const TOPIC: &str = "msgs";
/// Its partitions.
pub(crate) const PARTITIONS: i32 = 16;
/// The transfer's group.
pub(crate) const GROUP: &str = "msg-transfer";
/// The database.
const DATABASE: &str = "msg";

/// Both services, running. Dropped, they are killed.
pub(crate) struct Pipe {
    pub(crate) gateway: Service,
    pub(crate) transfer: Service,
    /// Where the gateway serves gRPC.
    pub(crate) grpc: String,
    pub(crate) database_url: String,
    /// Held, or somebody else could take them while a service is started again.
    _ports: [Port; 3],
}

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    /// Now.
    pub(crate) resident: u64,
    /// The most since its start.
    pub(crate) peak: u64,
}

impl Pipe {
    /// Makes the topic and the database, and starts both services.
    pub(crate) async fn start(stack: &Stack) -> Result<Pipe, DemoError> {
        let (database_url, ()) = tokio::try_join!(
            stack.postgres().ensure_database(DATABASE),
            stack.kafka().create_topic(TOPIC, PARTITIONS, &[])
        )?;
        let plan = stack.pipe(TOPIC, PARTITIONS, &database_url);
        let TransferPlan { spec, admin: transfer_admin } = plan.transfer("msg-transfer")?;
        // A static member: its successor need not wait until the group has missed the dead one for a session time-out.
        let spec = spec.env("GROUP_ID", GROUP).env("GROUP_INSTANCE_ID", "msg-transfer-1");
        let transfer = Service::new(spec, stack.logs())?;
        let GatewayPlan { spec, grpc, admin } = plan.gateway("msg-gateway", pipe::free_port()?)?;
        let gateway = Service::new(spec, stack.logs())?;
        tokio::try_join!(transfer.start(), gateway.start())?;
        let (address, ports) = (grpc.to_string(), [grpc, admin, transfer_admin]);
        Ok(Pipe { gateway, transfer, grpc: address, database_url, _ports: ports })
    }

    /// Kills the transfer, looks at what it had committed, and starts it again. Gives the crash, how long the new one took
    /// to be ready, and the dead one's memory.
    pub(crate) async fn crash(&self, offsets: &Offsets) -> Result<(Crash, Duration, Memory), DemoError> {
        let memory = memory(&self.transfer);
        self.transfer.kill().await;
        let (at, clock) = (SystemTime::now(), Instant::now());
        // Nobody commits now, so this is what the dead one has left.
        let committed = offsets.committed().await?;
        self.transfer.launch()?;
        self.transfer.wait_ready(READY_WITHIN).await?;
        Ok((Crash { at, committed }, clock.elapsed(), memory))
    }

    /// Ends with an error as soon as one of the processes ends that nobody kills.
    pub(crate) async fn first_to_die(&self, stack: &Stack) -> StackError {
        let mut watched: Vec<Process> = stack.processes();
        watched.extend(self.gateway.process());
        let waits = watched.iter().map(|process| Box::pin(process.wait()));
        let (status, which, _) = futures_util::future::select_all(waits).await;
        watched[which].died(status)
    }

    /// Stops both in their orderly way.
    pub(crate) async fn stop(&self) {
        self.gateway.stop().await;
        self.transfer.stop().await;
    }
}

/// The memory of a service as the system counts it; zeroes when it does not run.
pub(crate) fn memory(service: &Service) -> Memory {
    let status = service.process().map(|process| format!("/proc/{}/status", process.pid()));
    let status = status.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    Memory { resident: field(&status, "VmRSS:"), peak: field(&status, "VmHWM:") }
}

/// A line such as `VmRSS:      1234 kB`, in bytes.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!((field(status, "VmRSS:"), field(status, "VmHWM:")), (1 << 20, 2 << 20));
        assert_eq!(field("", "VmRSS:"), 0);
    }
}
