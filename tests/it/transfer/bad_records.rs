//! Records that hold no valid message: they are dead-lettered with their bytes, and their neighbours are stored.

use msg_common::proto::Msg;
use uuid::Uuid;

use crate::support::admin::delete_records;
use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::transfer::wait_not_ready;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn bad_records_are_dead_lettered_and_neighbours_stored() {
    let world = World::new("bad_records").await;
    let writer = world.writer();
    let neighbour = |i: usize| record_of(&msg("alice", "bob", &i.to_string(), "x"));
    let changed = |change: &dyn Fn(&mut RawRecord)| {
        let mut record = neighbour(0);
        change(&mut record);
        record
    };
    let nul = Msg { send_id: "al\0ice".into(), ..msg("alice", "bob", "nul", "x") };
    let nul_inbox = Msg { recv_id: "bo\0b".into(), ..msg("alice", "bob", "nul", "x") };
    let without_session_type = Msg { session_type: 0, ..msg("alice", "bob", "kind", "x") };
    let bad = [
        ("UNDECODABLE", changed(&|record| record.value = Some(b"\xff\xff nonsense".to_vec()))),
        ("UNDECODABLE", changed(&|record| record.value = None)),
        ("UNDECODABLE", changed(&|record| record.value = Some(Vec::new()))),
        ("UNDECODABLE", changed(&|record| record.version = None)),
        ("UNDECODABLE", changed(&|record| record.version = Some("one"))),
        ("INVALID", changed(&|record| record.key = None)),
        ("INVALID", changed(&|record| record.key = Some(Vec::new()))),
        ("INVALID", changed(&|record| record.key = Some(b"carol".to_vec()))),
        ("INVALID", changed(&|record| record.key = Some(b"\xff\xfe".to_vec()))),
        ("INVALID", record_of(&nul)),
        ("INVALID", record_of(&nul_inbox)),
        ("INVALID", record_of(&without_session_type)),
    ];
    // At both ends of the batch and between good records, all in one partition.
    for (i, (_, record)) in bad.iter().enumerate() {
        writer.put_to(1, record);
        writer.put_to(1, &neighbour(i));
    }
    writer.put_to(1, &bad[0].1);
    writer.flush();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), bad.len());
    world.assert_ordered_without_gaps().await;
    let mut expected: Vec<_> =
        bad.iter().map(|(reason, raw)| ((*reason).to_owned(), raw.key.clone(), raw.value.clone())).collect();
    expected.push(expected[0].clone());
    assert_eq!(world.dead_letters().await, expected);
    assert!(transfer.is_ready().await);
    // Headers are kept too, and the IDs if they are known.
    let query = "SELECT headers, recv_id, msg_id FROM dead_letters WHERE key = 'carol'";
    let row = world.database().await.query_one(query, &[]).await.unwrap();
    let headers: Vec<u8> = row.get(0);
    assert!(headers.windows(11).any(|window| window == b"msg-version"));
    let (recv_id, msg_id): (String, Uuid) = (row.get(1), row.get(2));
    assert_eq!((recv_id.as_str(), msg_id), ("bob", msg_common::id::msg_id("alice", "bob", "0")));
}

/// Kafka's header names are bytes, though client libraries expect text. A record with any name is accepted, and a
/// dead letter keeps it.
#[tokio::test]
async fn header_names_that_are_not_utf8_are_accepted_and_kept() {
    let world = World::new("headers").await;
    let writer = world.writer();
    let name = b"\xff\xfe-name";
    writer.put_with_header(1, &record_of(&msg("alice", "bob", "1", "x")), name, b"\xff");
    writer.put_with_header(
        1,
        &RawRecord { value: Some(b"nonsense".to_vec()), ..record_of(&msg("a", "bob", "2", "x")) },
        name,
        b"",
    );
    writer.put_to(1, &record_of(&msg("alice", "bob", "3", "x")));
    writer.flush();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let stored: Vec<_> = world.rows().await.into_iter().map(|row| (row.seq, row.client_msg_id)).collect();
    assert_eq!(stored, [(1, "1".to_owned()), (2, "3".to_owned())]);
    let row = world.database().await.query_one("SELECT reason, headers FROM dead_letters", &[]).await.unwrap();
    let (reason, headers): (String, Vec<u8>) = (row.get(0), row.get(1));
    assert_eq!(reason, "UNDECODABLE");
    assert!(headers.windows(name.len()).any(|window| window == name));
    assert!(transfer.stop().await.unwrap().success());
}

/// A record of a newer gateway is the deployment's fault: its partition is halted until a newer transfer runs, and no
/// offset passes the record.
#[tokio::test]
async fn record_of_a_newer_version_halts_its_partition_alone() {
    let world = World::new("newer").await;
    let writer = world.writer();
    let bobs_record = |i: usize| record_of(&msg("alice", "bob", &i.to_string(), "x"));
    writer.put_to(2, &bobs_record(0));
    writer.put_to(2, &RawRecord { version: Some("2"), ..bobs_record(1) });
    writer.put_to(2, &bobs_record(2));
    writer.put_to(3, &record_of(&msg("alice", "carol", "1", "x")));
    writer.flush();
    let transfer = world.transfer("transfer", |spec| spec);
    transfer.launch().unwrap();
    wait_not_ready(&transfer, &["partition 2", "version 2"]).await;
    world.wait_for_rows(1).await;
    writer.put_to(3, &record_of(&msg("alice", "carol", "2", "x")));
    writer.put_to(2, &bobs_record(3));
    writer.flush();
    eventually("the other partition continues", async || {
        let committed = world.committed_offsets().await;
        ensure(committed[3] == 2, format!("{committed:?}"))
    })
    .await;
    assert!(world.committed_offsets().await[2] <= 1, "P5: an offset passed the newer record");
    let bobs: Vec<_> = world.rows().await.into_iter().filter(|row| row.recv_id == "bob").collect();
    assert!(bobs.len() <= 1, "P3: {bobs:?}");
    assert_eq!(world.dead_letters().await, []);
    assert!(transfer.stop().await.unwrap().success());
    // A restart does not skip the record either. Only a newer build or an operator who deletes it resumes the
    // partition.
    transfer.launch().unwrap();
    wait_not_ready(&transfer, &["partition 2", "version 2"]).await;
    assert!(world.committed_offsets().await[2] <= 1, "P5: an offset passed the newer record");
    assert!(transfer.stop().await.unwrap().success());
    delete_records(world.brokers(), world.topic(), 2, 2).await;
    let accepting = world.transfer("accepting", |spec| spec.arg("--start-at-oldest"));
    accepting.start().await.unwrap();
    world.wait_for_all_committed().await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    let bobs: Vec<_> = rows.iter().filter(|row| row.recv_id == "bob" && row.offset > 1).collect();
    assert_eq!(bobs.len(), 2, "the records after it are stored");
}
