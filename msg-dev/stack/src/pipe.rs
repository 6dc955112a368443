//! Owns the settings with which the two services are started on a stack, and the ports that they listen on.

use super::error::StackError;
use super::ports::Port;
use super::service::ServiceSpec;

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

impl Pipe {
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
