//! Hostile or broken callers: each gets a clear error or loses its connection, memory stays bounded, other callers
//! are not affected, and the process keeps running.

mod bodies;
mod floods;
mod headers;
mod idle;
mod memory;
pub(super) mod peer;
mod reads;
mod slow;
mod unread;

use std::time::{Duration, Instant};

use msg_common::proto::Msg;
use msg_stack::ServiceSpec;

use super::calls::{Client, client, send};
use crate::support::WAIT_TIMEOUT;
use crate::support::kafka::msg;
use crate::support::transfer::peak_memory_mib;
use crate::support::world::{Gateway, World};

/// The time limit of an ordinary call during an attack. Alone it needs milliseconds, but all tests share the machine.
const CALL_TIME_LIMIT: Duration = Duration::from_secs(5);

/// A gateway under attack, and an ordinary caller.
struct Attacked {
    world: World,
    gateway: Gateway,
    bystander: Client,
    pid: u32,
    /// The peak memory before the attack, in MiB.
    peak_before: u64,
}

impl Attacked {
    async fn new(name: &str, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Attacked {
        let world = World::new(name).await;
        let gateway = world.gateway("gateway", change);
        gateway.service.start().await.unwrap();
        let bystander = client(&gateway).await;
        send(&bystander, &ordinary_msg()).await.unwrap();
        let pid = gateway.service.process().unwrap().pid();
        let peak_before = peak_memory_mib(&gateway.service);
        Attacked { world, gateway, bystander, pid, peak_before }
    }

    /// Checks that an ordinary call on an existing connection and one on a new connection succeed promptly.
    async fn assert_serves_others(&self) {
        let started = Instant::now();
        let calls = async {
            send(&self.bystander, &ordinary_msg()).await.unwrap();
            send(&client(&self.gateway).await, &ordinary_msg()).await.unwrap();
        };
        tokio::time::timeout(WAIT_TIMEOUT, calls).await.expect("other callers are served");
        assert!(started.elapsed() < CALL_TIME_LIMIT, "two ordinary calls needed {:?}", started.elapsed());
    }

    /// Checks that the same process serves, and that its peak memory has grown by less than this.
    async fn assert_unharmed(&self, mebibytes: u64) {
        self.assert_serves_others().await;
        assert_eq!(self.gateway.service.process().unwrap().pid(), self.pid);
        assert!(self.gateway.service.is_ready().await);
        let growth = peak_memory_mib(&self.gateway.service) - self.peak_before;
        assert!(growth < mebibytes, "grown by {growth} MiB");
        let log = std::fs::read_to_string(self.gateway.service.log()).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// A message without a `client_msg_id`, so each send is a new one.
fn ordinary_msg() -> Msg {
    msg("alice", "bob", "", "hello")
}
