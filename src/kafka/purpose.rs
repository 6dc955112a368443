//! The purposes of the Kafka clients of both services.

/// The purpose of a client. Each has a `client.id` of its own, so that the brokers' logs, metrics and quotas distinguish
/// the clients of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPurpose {
    /// The gateway's messages.
    Producer,
    /// The gateway's checks of the topic.
    GatewayAdmin,
    /// The gateway's queries about the topic for GetMsgStatus.
    Status,
    /// The gateway's search for the end of a leader's log.
    StatusProbe,
    /// The hints that the gateway reads.
    HintReader,
    /// The gateway's checks of its hint reader.
    HintCheck,
    /// The transfer's member of the group.
    Consumer,
    /// The start offsets that the transfer resolves.
    Lookup,
    /// The transfer's validation of leader epochs.
    EpochProbe,
    /// The lag of the group.
    Lag,
    /// The transfer's checks of the topic.
    TransferAdmin,
    /// The transfer's check whether its consumer is stalled.
    StallCheck,
    /// The hints that the transfer writes.
    HintWriter,
    /// The dead letters that are replayed.
    Replay,
}

impl ClientPurpose {
    /// Returns the service and the name of the purpose.
    fn parts(self) -> (&'static str, &'static str) {
        let (gateway, transfer) = ("msg-gateway", "msg-transfer");
        match self {
            ClientPurpose::Producer => (gateway, "producer"),
            ClientPurpose::GatewayAdmin => (gateway, "admin"),
            ClientPurpose::Status => (gateway, "status"),
            ClientPurpose::StatusProbe => (gateway, "status-probe"),
            ClientPurpose::HintReader => (gateway, "hints"),
            ClientPurpose::HintCheck => (gateway, "hints-check"),
            ClientPurpose::Consumer => (transfer, "consumer"),
            ClientPurpose::Lookup => (transfer, "lookup"),
            ClientPurpose::EpochProbe => (transfer, "epoch-probe"),
            ClientPurpose::Lag => (transfer, "lag"),
            ClientPurpose::TransferAdmin => (transfer, "admin"),
            ClientPurpose::StallCheck => (transfer, "stall-check"),
            ClientPurpose::HintWriter => (transfer, "hints"),
            ClientPurpose::Replay => (transfer, "replay"),
        }
    }

    /// Returns the `client.id`, such as `msg-gateway-producer`. `given` replaces the name of the service.
    pub fn client_id(self, given: Option<&str>) -> String {
        let (service, purpose) = self.parts();
        format!("{}-{purpose}", given.unwrap_or(service))
    }
}
