//! Owns the settings with which the two services are started on a stack, the ports that they listen on, and the start of one
//! of each.

use std::path::Path;

use super::error::StackError;
use super::ports::Port;
use super::service::{Service, ServiceSpec};

/// What both services of one pipe agree on.
#[derive(Debug, Clone)]
pub struct Pipe {
    /// `bootstrap.servers`.
    pub kafka: String,
    /// The topic.
    pub topic: String,
    /// The number of partitions, which the gateway pins.
    pub partitions: i32,
    /// The database.
    pub database_url: String,
    /// Accept a topic that can lose messages: one broker has no replicas.
    pub allow_unsafe_topic: bool,
}

/// How a gateway is started, and the ports that are its own across restarts.
#[derive(Debug)]
pub struct GatewayPlan {
    /// The start; more settings can be put on top.
    pub spec: ServiceSpec,
    /// gRPC.
    pub grpc: Port,
    /// `/readyz`, `/metrics`.
    pub admin: Port,
}

/// How a transfer is started, and the port that is its own across restarts.
#[derive(Debug)]
pub struct TransferPlan {
    /// The start; more settings can be put on top.
    pub spec: ServiceSpec,
    /// `/readyz`, `/metrics`.
    pub admin: Port,
}

/// A transfer and a gateway. Dropped, they are killed.
#[derive(Debug)]
pub struct Services {
    /// The transfer.
    pub transfer: Service,
    /// The gateway.
    pub gateway: Service,
    /// Where the gateway serves gRPC.
    pub grpc: String,
    /// Held, or another process could get them while a service is started again.
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

    /// A gateway on this gRPC port.
    pub fn gateway(&self, name: &str, grpc: Port) -> Result<GatewayPlan, StackError> {
        let admin = free_port()?;
        let spec = self
            .common(ServiceSpec::new(name, "msg-gateway").admin(admin.addr()))
            .env("LISTEN", &grpc)
            .env("TOPIC_PARTITIONS", self.partitions);
        Ok(GatewayPlan { spec, grpc, admin })
    }

    /// A transfer.
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

/// Any free port.
pub fn free_port() -> Result<Port, StackError> {
    Port::free().map_err(StackError::io("reserve a port on", "127.0.0.1"))
}
