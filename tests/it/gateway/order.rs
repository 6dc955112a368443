//! P3 and P4 end to end: the messages of a sender that waits for each OK are stored in the order of its sends.

use futures_util::future::join_all;

use super::calls::{Client, client, send};
use crate::support::kafka::msg;
use crate::support::world::{Gateway, World};

pub(super) async fn two_gateways(world: &World) -> ([Gateway; 2], Vec<Client>) {
    let gateways = ["one", "two"].map(|name| world.gateway(name, |spec| spec));
    let mut clients = Vec::new();
    for gateway in &gateways {
        gateway.service.start().await.unwrap();
        clients.push(client(gateway).await);
    }
    (gateways, clients)
}

#[tokio::test]
async fn each_senders_messages_keep_their_order_in_each_inbox() {
    let world = World::new("send_order").await;
    let _transfer = world.running_transfer().await;
    let (_gateways, clients) = two_gateways(&world).await;
    const SENDERS: usize = 60;
    const EACH: usize = 60;
    const INBOXES: usize = 5;
    // Each sender sends one message after the other, to the inboxes in turn, and alternates between the gateways.
    let send_all = async |sender: usize| {
        for i in 0..EACH {
            let message = msg(&format!("sender-{sender}"), &format!("inbox-{}", i % INBOXES), &i.to_string(), "x");
            send(&clients[(sender + i / INBOXES) % 2], &message).await.unwrap();
        }
    };
    join_all((0..SENDERS).map(send_all)).await;
    world.wait_for_rows((SENDERS * EACH) as i64).await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    assert_eq!(rows.len(), SENDERS * EACH);
    for inbox in 0..INBOXES {
        for sender in 0..SENDERS {
            let (recv_id, send_id) = (format!("inbox-{inbox}"), format!("sender-{sender}"));
            let found: Vec<usize> = rows
                .iter()
                .filter(|row| row.recv_id == recv_id && row.send_id == send_id)
                .map(|row| row.client_msg_id.parse().unwrap())
                .collect();
            let sent: Vec<usize> = (inbox..EACH).step_by(INBOXES).collect();
            assert_eq!(found, sent, "P3: of {send_id} in {recv_id}");
        }
    }
}
