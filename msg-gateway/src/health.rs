//! grpc.health.v1: reports the readiness. It ends its watchers' streams when the gateway drains, because they would
//! keep their connections open.

use msg_common::admin::Readiness;
use msg_common::proto::msg_gateway_server::MsgGatewayServer;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::service::Gateway;

/// The names that are reported: the whole server, and the service.
const NAMES: [&str; 2] = ["", <MsgGatewayServer<Gateway> as NamedService>::NAME];

/// Reports readiness until `drain`, then ends the watchers.
pub(crate) async fn follow(mut reporter: HealthReporter, readiness: Readiness, drain: CancellationToken) {
    let mut ready = readiness.watch();
    loop {
        let now = *ready.borrow_and_update();
        set(&reporter, now).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { return },
            () = drain.cancelled() => break,
        }
    }
    for name in NAMES {
        reporter.clear_service_status(name).await;
    }
}

pub(crate) async fn set(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in NAMES {
        reporter.set_service_status(name, status).await;
    }
}
