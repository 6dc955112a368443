//! P6 and P2 while a broker hangs: the caller is told in time that nobody knows, and sends the same again.

use std::time::{Duration, Instant, SystemTime};

use msg_dev::stack::Signal;
use prost_types::Timestamp;
use tonic::Code;

use super::calls::{assert_failed, client, send, send_within};
use crate::support::eventually;
use crate::support::kafka::{id_of, msg};
use crate::support::stack::own_stack;
use crate::support::world::World;

#[tokio::test]
async fn an_unknown_outcome_is_told_before_the_deadline_and_the_same_again_is_one_row() {
    let (stack, _folder) = own_stack("unknown").await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, "unknown", 4);
    world.create(&stack).await;
    let gateway = world.gateway("gateway", |spec| spec.env("DEADLINE_MARGIN", "300ms").env("MAX_SEND_WAIT", "3s"));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send(&client, &msg("alice", "bob", "before", "x")).await.unwrap();
    assert!(stack.kafka().signal_broker(1, Signal::Stop).unwrap());

    let (first, second) = (msg("alice", "bob", "1", "hello"), msg("alice", "bob", "2", "there"));
    for (message, timeout) in [(&first, Some(Duration::from_millis(1500))), (&second, None)] {
        let (begun, taken) = (Instant::now(), SystemTime::now());
        // At its own deadline the client would make a CANCELLED without details of it.
        let result = match timeout {
            Some(timeout) => send_within(&client, message, timeout).await,
            None => send(&client, message).await,
        };
        let waited = begun.elapsed();
        let details = assert_failed(result, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["msg_id"], id_of(message).to_string());
        let settles_by: Timestamp = metadata["settles_by"].parse().unwrap();
        let settles_in = SystemTime::try_from(settles_by).unwrap().duration_since(taken).unwrap();
        // The delivery time-out and one request more, from when it was taken.
        assert!((38.0..48.0).contains(&settles_in.as_secs_f64()), "{settles_in:?}");
        assert!(waited >= Duration::from_millis(1200), "it gave up early: {waited:?}");
        assert!(details.retry_info().is_none(), "a delay would say that nothing was sent");
    }

    assert!(stack.kafka().signal_broker(1, Signal::Cont).unwrap());
    for message in [&first, &second] {
        // What a caller does: the same again until it is settled.
        let again = async || Ok(send(&client, message).await?);
        let placement = eventually("the outcome is settled", again).await;
        assert_eq!(placement.msg_id, id_of(message).to_string());
    }
    let _transfer = world.running_transfer().await;
    world.all_committed().await;
    assert!(world.ends().await.iter().sum::<i64>() >= 5, "the first tries were sent too, or P2 is not tried here");
    let rows: Vec<_> = world.rows().await.into_iter().map(|row| (row.seq, row.client_msg_id)).collect();
    assert_eq!(rows, [(1, "before".to_owned()), (2, "1".to_owned()), (3, "2".to_owned())]);
    stack.stop().await;
}
