//! `resume`: it marks the progress rows of the given partitions, and no others.

use super::{migrated, run};
use crate::support::kafka::RawRecord;
use crate::support::world::World;

async fn resumed(world: &World) -> Vec<i32> {
    let query = "SELECT kafka_partition FROM progress WHERE resumed_at > now() - interval '1 minute' ORDER BY 1";
    world.database().await.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn resume_marks_only_the_given_partitions() {
    let world = migrated("resume").await;
    run(&world, "resume").await.assert_code(64);
    let nothing = run(&world, "resume --all").await.assert_code(1);
    assert!(nothing.stderr.contains("no progress row"), "{}", nothing.stderr);
    let broken = RawRecord { key: Some(b"bob".to_vec()), value: Some(b"\xff".to_vec()), version: Some("1") };
    let writer = world.writer();
    for partition in [0, 1, 1, 1] {
        writer.put_to(partition, &broken);
    }
    writer.flush();
    let transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    let report =
        run(&world, "resume --topic-partition 1 --topic-partition 3 --output json").await.assert_code(0).json();
    let resumed_now = [(1, 3), (3, 0)]
        .map(|(partition, letters)| serde_json::json!({"partition": partition, "dead_letters": letters}));
    assert_eq!(report["resumed"], serde_json::json!(resumed_now));
    assert_eq!(resumed(&world).await, [1, 3]);
    // The result names a partition without a progress row, and the others are resumed nevertheless.
    let partly = run(&world, "resume --topic-partition 9 --topic-partition 3 --output json").await.assert_code(1);
    assert_eq!(partly.json()["without_progress"], serde_json::json!([9]));
    assert_eq!(partly.json()["resumed"][0]["partition"], 3);
    // The count of dead letters restarts, and the service's own writes to the row keep the mark.
    writer.put_to(1, &broken);
    writer.flush();
    world.wait_for_all_committed().await;
    assert_eq!(resumed(&world).await, [1, 3]);
    let report = run(&world, "resume --topic-partition 1 --output json").await.assert_code(0).json();
    assert_eq!(report["resumed"][0]["dead_letters"], 1);
    let all = run(&world, "resume --all").await.assert_code(0).stdout;
    assert!(all.contains("resumed"), "{all}");
    assert_eq!(resumed(&world).await, [0, 1, 2, 3]);
    assert!(transfer.stop().await.unwrap().success());
}
