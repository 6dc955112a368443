//! P6 and P1 when the broker dies under load: every outcome reported to a caller is true, and the gateway recovers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use tonic::Code;
use tonic_types::StatusExt;

use super::calls::{Client, assert_not_sent, client, reason, send, wait_gateway_not_ready};
use crate::support::kafka::{msg, msg_id_of};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// The outcomes reported to callers, by `client_msg_id`.
#[derive(Default)]
pub(super) struct Outcomes {
    pub(super) ok: Vec<String>,
    pub(super) not_sent: Vec<String>,
    pub(super) unknown: Vec<String>,
}

impl Outcomes {
    /// Checks that every accepted message is a row, and that no message reported as not sent is a row.
    pub(super) async fn assert_truthful(&self, world: &World) {
        let rows: Vec<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
        let stored: std::collections::BTreeSet<&str> = rows.iter().map(String::as_str).collect();
        assert_eq!(stored.len(), rows.len(), "P2");
        let lost: Vec<_> = self.ok.iter().filter(|id| !stored.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "P1: OK and no row: {lost:?}");
        let wrong: Vec<_> = self.not_sent.iter().filter(|id| stored.contains(id.as_str())).collect();
        assert!(wrong.is_empty(), "P6: NOT_SENT and a row: {wrong:?}");
        let count = self.ok.len() + self.not_sent.len() + self.unknown.len();
        assert!(rows.len() <= self.ok.len() + self.unknown.len() && count > 0, "there are rows that no caller sent");
    }
}

/// Sends one new message after the other until `stop` is set.
async fn keep_sending(client: &Client, sender: usize, stop: &AtomicBool, outcomes: &Mutex<Outcomes>) {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{sender}-{next}");
        next += 1;
        let message = msg(&format!("sender-{sender}"), &format!("inbox-{}", next % 10), &id, "some body");
        let status = match send(client, &message).await {
            Ok(placement) => {
                assert_eq!(placement.msg_id, msg_id_of(&message).to_string());
                outcomes.lock().unwrap().ok.push(id);
                continue;
            }
            Err(status) => status,
        };
        match reason(&status).as_deref() {
            Some("NOT_SENT") => outcomes.lock().unwrap().not_sent.push(id),
            Some("OUTCOME_UNKNOWN") => outcomes.lock().unwrap().unknown.push(id),
            _ => panic!("the gateway is available: {status:?}"),
        }
        // As callers do: wait for the requested delay.
        let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(wait.unwrap_or_default()).await;
    }
}

#[tokio::test]
async fn gateway_reports_true_outcomes_when_the_broker_dies() {
    let (stack, _folder) = own_stack("outage").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "outage", 4);
    world.create(&stack).await;
    let transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_WAIT", "3s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let (stop, outcomes) = (AtomicBool::new(false), Mutex::new(Outcomes::default()));
    let load = join_all((0..40).map(|sender| keep_sending(&client, sender, &stop, &outcomes)));
    let oks = || outcomes.lock().unwrap().ok.len();
    let more_oks = async |what: &str| {
        let minimum = oks() + 500;
        eventually(what, async || ensure(oks() > minimum, oks())).await;
    };
    let faults = async {
        more_oks("messages are accepted").await;
        for crash in [true, false] {
            if crash {
                stack.kafka().kill_broker(1).await.unwrap();
            } else {
                stack.kafka().stop_broker(1).await.unwrap();
            }
            wait_gateway_not_ready(&gateway, &["kafka: "]).await;
            // Once the gateway has detected the outage, sends fail without a wait.
            let started = Instant::now();
            assert_not_sent(send(&client, &msg("a", "b", &format!("rejected-{crash}"), "x")).await, Code::Unavailable);
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
            outcomes.lock().unwrap().not_sent.push(format!("rejected-{crash}"));
            stack.kafka().start().await.unwrap();
            gateway.service.wait_ready(WAIT_TIMEOUT).await.unwrap();
            more_oks("messages are accepted again").await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    join(load, faults).await;
    world.wait_for_all_committed().await;
    let outcomes = outcomes.into_inner().unwrap();
    outcomes.assert_truthful(&world).await;
    assert!(outcomes.not_sent.len() > 2 && !outcomes.unknown.is_empty(), "the faults caused no errors");
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
    assert!(transfer.stop().await.unwrap().success());
    assert!(gateway.service.stop().await.unwrap().success());
    stack.stop().await;
}
