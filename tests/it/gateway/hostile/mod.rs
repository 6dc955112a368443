//! Callers that mean harm, or are broken: each gets a clear answer or the end of its connection, the memory stays bounded, nobody
//! else notices, and the process goes on.

mod bodies;
mod floods;
mod headers;
mod idle;
mod memory;
mod peer;
mod reads;
mod slow;
mod unread;

use std::time::{Duration, Instant};

use msg_common::proto::Msg;
use msg_dev::stack::ServiceSpec;

use super::calls::{Client, client, send};
use crate::support::PATIENCE;
use crate::support::kafka::msg;
use crate::support::transfer::peak_memory;
use crate::support::world::{Gateway, World};

/// How long an ordinary call may take while somebody else does harm. It takes milliseconds alone; here all tests share the machine.
const PROMPTLY: Duration = Duration::from_secs(5);

/// A gateway that is attacked, and somebody who uses it as it is meant.
struct Attacked {
    world: World,
    gateway: Gateway,
    bystander: Client,
    pid: u32,
    /// The most memory that it had before, in MiB.
    before: u64,
}

impl Attacked {
    async fn new(name: &str, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Attacked {
        let world = World::new(name).await;
        let gateway = world.gateway("gateway", change);
        gateway.service.start().await.unwrap();
        let bystander = client(&gateway).await;
        send(&bystander, &innocent()).await.unwrap();
        let pid = gateway.service.process().unwrap().pid();
        let before = peak_memory(&gateway.service);
        Attacked { world, gateway, bystander, pid, before }
    }

    /// An ordinary call on a connection that was there before, and one on a new connection, are served at once.
    async fn serves_others(&self) {
        let begun = Instant::now();
        let calls = async {
            send(&self.bystander, &innocent()).await.unwrap();
            send(&client(&self.gateway).await, &innocent()).await.unwrap();
        };
        tokio::time::timeout(PATIENCE, calls).await.expect("others are served");
        assert!(begun.elapsed() < PROMPTLY, "two ordinary calls took {:?}", begun.elapsed());
    }

    /// The same process serves, and has at no time had so many MiB more than before.
    async fn is_unharmed(&self, mebibytes: u64) {
        self.serves_others().await;
        assert_eq!(self.gateway.service.process().unwrap().pid(), self.pid);
        assert!(self.gateway.service.is_ready().await);
        let more = peak_memory(&self.gateway.service) - self.before;
        assert!(more < mebibytes, "{more} MiB more");
        let log = std::fs::read_to_string(self.gateway.service.log()).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Without a `client_msg_id`: each time another message.
fn innocent() -> Msg {
    msg("alice", "bob", "", "hello")
}
