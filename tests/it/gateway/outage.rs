//! P6 and P1 when the broker dies under load: every answer is true, and the gateway notices and comes back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use tonic::Code;
use tonic_types::StatusExt;

use super::calls::{Client, assert_not_sent, client, reason, says_not_ready, send};
use crate::support::kafka::{id_of, msg};
use crate::support::stack::own_stack;
use crate::support::world::World;
use crate::support::{PATIENCE, ensure, eventually};

/// What callers were told, by `client_msg_id`.
#[derive(Default)]
pub(super) struct Told {
    pub(super) ok: Vec<String>,
    pub(super) not_sent: Vec<String>,
    pub(super) unknown: Vec<String>,
}

impl Told {
    /// Every OK is a row, and nothing that was not sent is one.
    pub(super) async fn assert_true(&self, world: &World) {
        let rows: Vec<String> = world.rows().await.into_iter().map(|row| row.client_msg_id).collect();
        let stored: std::collections::BTreeSet<&str> = rows.iter().map(String::as_str).collect();
        assert_eq!(stored.len(), rows.len(), "P2");
        let lost: Vec<_> = self.ok.iter().filter(|id| !stored.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "P1: OK and no row: {lost:?}");
        let lies: Vec<_> = self.not_sent.iter().filter(|id| stored.contains(id.as_str())).collect();
        assert!(lies.is_empty(), "P6: NOT_SENT and a row: {lies:?}");
        let told = self.ok.len() + self.not_sent.len() + self.unknown.len();
        assert!(rows.len() <= self.ok.len() + self.unknown.len() && told > 0, "a row that nobody sent");
    }
}

/// One message after the other, a new one each time, until told to stop.
async fn keep_sending(client: &Client, sender: usize, stop: &AtomicBool, told: &Mutex<Told>) {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{sender}-{next}");
        next += 1;
        let message = msg(&format!("sender-{sender}"), &format!("inbox-{}", next % 10), &id, "some body");
        let status = match send(client, &message).await {
            Ok(placement) => {
                assert_eq!(placement.msg_id, id_of(&message).to_string());
                told.lock().unwrap().ok.push(id);
                continue;
            }
            Err(status) => status,
        };
        match reason(&status).as_deref() {
            Some("NOT_SENT") => told.lock().unwrap().not_sent.push(id),
            Some("OUTCOME_UNKNOWN") => told.lock().unwrap().unknown.push(id),
            _ => panic!("the gateway is there: {status:?}"),
        }
        // As a caller does that is told to wait.
        let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        tokio::time::sleep(wait.unwrap_or_default()).await;
    }
}

#[tokio::test]
async fn when_the_broker_dies_every_answer_is_true() {
    let (stack, _folder) = own_stack("outage").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "outage", 4);
    world.create(&stack).await;
    let transfer = world.running_transfer().await;
    let gateway = world.gateway("gateway", |spec| spec.env("MAX_SEND_WAIT", "3s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    let (stop, told) = (AtomicBool::new(false), Mutex::new(Told::default()));
    let load = join_all((0..40).map(|sender| keep_sending(&client, sender, &stop, &told)));
    let oks = || told.lock().unwrap().ok.len();
    let more_oks = async |what: &str| {
        let least = oks() + 500;
        eventually(what, async || ensure(oks() > least, oks())).await;
    };
    let faults = async {
        more_oks("messages are taken").await;
        for crash in [true, false] {
            if crash {
                stack.kafka().kill_broker(1).await.unwrap();
            } else {
                stack.kafka().stop_broker(1).await.unwrap();
            }
            says_not_ready(&gateway, &["kafka: "]).await;
            // Once it knows, nobody has to wait for the same again.
            let begun = Instant::now();
            assert_not_sent(send(&client, &msg("a", "b", &format!("refused-{crash}"), "x")).await, Code::Unavailable);
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            told.lock().unwrap().not_sent.push(format!("refused-{crash}"));
            stack.kafka().start().await.unwrap();
            gateway.service.wait_ready(PATIENCE).await.unwrap();
            more_oks("messages are taken again").await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    join(load, faults).await;
    world.all_committed().await;
    let told = told.into_inner().unwrap();
    told.assert_true(&world).await;
    assert!(told.not_sent.len() > 2 && !told.unknown.is_empty(), "the faults were not felt");
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
    assert!(transfer.stop().await.unwrap().success());
    assert!(gateway.service.stop().await.unwrap().success());
    stack.stop().await;
}
