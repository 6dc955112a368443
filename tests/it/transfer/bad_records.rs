//! Records that hold no message: kept aside with their bytes, while their neighbours are stored.

use msg_common::proto::Msg;
use uuid::Uuid;

use crate::support::kafka::{Raw, good, msg};
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn bad_records_become_dead_letters_and_their_neighbours_rows() {
    let world = World::new("bad_records").await;
    let writer = world.writer();
    let neighbour = |i: usize| good(&msg("alice", "bob", &i.to_string(), "x"));
    let with = |change: &dyn Fn(&mut Raw)| {
        let mut record = neighbour(0);
        change(&mut record);
        record
    };
    let nul = Msg { send_id: "al\0ice".into(), ..msg("alice", "bob", "nul", "x") };
    let nul_inbox = Msg { recv_id: "bo\0b".into(), ..msg("alice", "bob", "nul", "x") };
    let kindless = Msg { session_type: 0, ..msg("alice", "bob", "kind", "x") };
    let bad = [
        ("UNDECODABLE", with(&|record| record.value = Some(b"\xff\xff nonsense".to_vec()))),
        ("UNDECODABLE", with(&|record| record.value = None)),
        ("UNDECODABLE", with(&|record| record.value = Some(Vec::new()))),
        ("UNDECODABLE", with(&|record| record.version = None)),
        ("UNDECODABLE", with(&|record| record.version = Some("one"))),
        ("INVALID", with(&|record| record.key = None)),
        ("INVALID", with(&|record| record.key = Some(b"carol".to_vec()))),
        ("INVALID", with(&|record| record.key = Some(b"\xff\xfe".to_vec()))),
        ("INVALID", good(&nul)),
        ("INVALID", good(&nul_inbox)),
        ("INVALID", good(&kindless)),
    ];
    // At both ends of the batch and between good ones, all in one partition.
    for (i, (_, record)) in bad.iter().enumerate() {
        writer.put_to(1, record);
        writer.put_to(1, &neighbour(i));
    }
    writer.put_to(1, &bad[0].1);
    writer.flush();
    let transfer = world.running_transfer().await;
    world.all_committed().await;
    assert_eq!(world.rows().await.len(), bad.len());
    world.assert_ordered_without_gaps().await;
    let mut expected: Vec<_> =
        bad.iter().map(|(reason, raw)| ((*reason).to_owned(), raw.key.clone(), raw.value.clone())).collect();
    expected.push(expected[0].clone());
    assert_eq!(world.dead_letters().await, expected);
    assert!(transfer.is_ready().await);
    // Headers are kept too, and the ids where they are known.
    let query = "SELECT headers, recv_id, msg_id FROM dead_letters WHERE key = 'carol'";
    let row = world.database().await.query_one(query, &[]).await.unwrap();
    let headers: Vec<u8> = row.get(0);
    assert!(headers.windows(11).any(|window| window == b"msg-version"));
    let (recv_id, msg_id): (String, Uuid) = (row.get(1), row.get(2));
    assert_eq!((recv_id.as_str(), msg_id), ("bob", msg_common::id::msg_id("alice", "bob", "0")));
}

/// A newer gateway's record is the deployment's fault: its partition waits for a newer transfer, and nothing passes it.
#[tokio::test]
async fn a_record_of_a_newer_version_stops_its_partition_and_no_other() {
    let world = World::new("newer").await;
    let writer = world.writer();
    let to = |i: usize| good(&msg("alice", "bob", &i.to_string(), "x"));
    writer.put_to(2, &to(0));
    writer.put_to(2, &Raw { version: Some("2"), ..to(1) });
    writer.put_to(2, &to(2));
    writer.put_to(3, &good(&msg("alice", "carol", "1", "x")));
    writer.flush();
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.launch().unwrap();
    eventually("it stands still and says why", async || {
        let (status, body) = msg_common::admin::probe(transfer.spec().admin.unwrap(), "/readyz").await?;
        ensure(status == 503 && body.contains("partition 2") && body.contains("version 2"), body)
    })
    .await;
    world.rows_reach(1).await;
    writer.put_to(3, &good(&msg("alice", "carol", "2", "x")));
    writer.put_to(2, &to(3));
    writer.flush();
    eventually("the other partition goes on", async || {
        let committed = world.committed().await;
        ensure(committed[3] == 2, format!("{committed:?}"))
    })
    .await;
    assert!(world.committed().await[2] <= 1, "P5: the newer record was passed");
    let bobs: Vec<_> = world.rows().await.into_iter().filter(|row| row.recv_id == "bob").collect();
    assert!(bobs.len() <= 1, "P3: {bobs:?}");
    assert_eq!(world.dead_letters().await, []);
    assert!(transfer.stop().await.unwrap().success());
}
