//! Owns the settings with which the two services are started on a stack, the ports that they listen on, and the start
//! of one of each.

use std::path::Path;

use super::error::StackError;
use super::ports::Port;
use super::service::{Service, ServiceSpec};

/// The settings that both services of one pipe share.
#[derive(Debug, Clone)]
pub struct Pipe {
    /// The addresses of the brokers, as in `bootstrap.servers`.
    pub kafka: String,
    /// The topic that carries the records.
    pub topic: String,
    /// The number of partitions; the gateway's pinned count.
    pub partitions: i32,
    pub database_url: String,
    /// Accept a topic that can lose messages: with one broker there are no replicas.
    pub allow_unsafe_topic: bool,
}

/// How to start a gateway, and the ports that it keeps across process restarts.
#[derive(Debug)]
pub struct GatewayPlan {
    /// The process to start; the caller can add settings.
    pub spec: ServiceSpec,
    /// The port on which the gateway serves gRPC.
    pub grpc: Port,
    /// The port of `/readyz` and `/metrics`.
    pub admin: Port,
}

/// How to start a transfer, and the port that it keeps across process restarts.
#[derive(Debug)]
pub struct TransferPlan {
    /// The process to start; the caller can add settings.
    pub spec: ServiceSpec,
    /// The port of `/readyz` and `/metrics`.
    pub admin: Port,
}

/// A running transfer and gateway. Dropping this kills both processes.
#[derive(Debug)]
pub struct Services {
    pub transfer: Service,
    pub gateway: Service,
    /// The address at which the gateway serves gRPC.
    pub grpc: String,
    /// Reserved: another process could bind them while a service restarts.
    _ports: [Port; 3],
}

impl Services {
    /// Stops the gateway, then the transfer.
    pub async fn stop(&self) {
        self.gateway.stop().await;
        self.transfer.stop().await;
    }
}

impl Pipe {
    /// Starts one transfer and one gateway, both with these settings added, and waits until both are ready.
    pub async fn start(&self, logs: &Path, settings: &[(&str, &str)]) -> Result<Services, StackError> {
        let TransferPlan { spec: transfer, admin: transfer_admin } = self.transfer("msg-transfer")?;
        let GatewayPlan { spec: gateway, grpc, admin } = self.gateway("msg-gateway", free_port()?)?;
        let service = |spec| {
            let spec = settings.iter().fold(spec, |spec: ServiceSpec, (name, value)| spec.env(name, value));
            Service::new(spec, logs)
        };
        let (transfer, gateway) = (service(transfer)?, service(gateway)?);
        tokio::try_join!(transfer.start(), gateway.start())?;
        Ok(Services { transfer, gateway, grpc: grpc.to_string(), _ports: [grpc, admin, transfer_admin] })
    }

    /// Returns a gateway on this gRPC port, with an admin port of its own.
    pub fn gateway(&self, name: &str, grpc: Port) -> Result<GatewayPlan, StackError> {
        let admin = free_port()?;
        let spec = self
            .common(ServiceSpec::new(name, "msg-gateway").admin(admin.addr()))
            .env("LISTEN", &grpc)
            .env("TOPIC_PARTITIONS", self.partitions);
        Ok(GatewayPlan { spec, grpc, admin })
    }

    /// Returns a transfer with an admin port of its own.
    pub fn transfer(&self, name: &str) -> Result<TransferPlan, StackError> {
        let admin = free_port()?;
        let spec = self.common(ServiceSpec::new(name, "msg-transfer").admin(admin.addr()));
        Ok(TransferPlan { spec, admin })
    }

    fn common(&self, spec: ServiceSpec) -> ServiceSpec {
        let spec = spec
            .env("KAFKA_BROKERS", &self.kafka)
            .env("KAFKA_TOPIC", &self.topic)
            .env("DATABASE_URL", &self.database_url);
        if self.allow_unsafe_topic { spec.env("ALLOW_UNSAFE_TOPIC", true) } else { spec }
    }
}

pub fn free_port() -> Result<Port, StackError> {
    Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"))
}
