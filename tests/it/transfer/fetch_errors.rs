//! Records that cannot be fetched: the partition backs off or is halted, is reported with its position, counts as
//! lag, and never skips a record.

use std::path::{Path, PathBuf};

use msg_stack::kafka::rights::login;
use msg_stack::{Operation, Resource, Right, Stack};

use super::commands::run;
use crate::support::kafka::{RecordWriter, msg, record_of};
use crate::support::stack::{own_stack, stack, stack_with_users};
use crate::support::transfer::{logged, metric, wait_not_ready};
use crate::support::world::World;
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

fn put(writer: &RecordWriter, from: usize, count: usize) {
    for i in from..from + count {
        writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
    }
    writer.flush();
}

#[tokio::test]
async fn zstd_topic_is_stored() {
    let world = World::on(stack().await, "zstd", 4);
    let kafka = stack().await.kafka();
    kafka.create_topic("zstd", 4, &[("compression.type", "zstd")]).await.unwrap();
    stack().await.postgres().create_database("zstd").await.unwrap();
    put(&world.writer(), 0, 100);
    let transfer = world.running_transfer().await;
    world.wait_for_rows(100).await;
    world.wait_for_all_committed().await;
    assert!(transfer.stop().await.unwrap().success());
}

const USER: &str = "transfer";

fn right(operation: Operation, resource: &Resource) -> Right {
    Right::new(USER, operation, resource.clone())
}

/// Rights on the topic are revoked under a running transfer, first READ and then all, and granted again.
#[tokio::test]
async fn missing_read_right_is_reported_and_recovers() {
    let (stack, _folder) = stack_with_users("rights", &[USER]).await;
    let world = World::on(&stack, "rights", 4);
    world.create(&stack).await;
    let (topic, hints) = (Resource::Topic("rights".into()), Resource::Topic("rights-hints".into()));
    let describe = [right(Operation::Describe, &topic), right(Operation::DescribeConfigs, &topic)];
    let rest = [right(Operation::Write, &hints), right(Operation::Read, &Resource::Group("rights".into()))];
    let read = vec![right(Operation::Read, &topic)];
    stack.kafka().grant([&describe[..], &rest[..], &read[..]].concat()).await.unwrap();

    let transfer = world.transfer("transfer", |spec| {
        let spec = spec.env("KAFKA_BROKERS", stack.kafka().bootstrap_for_users());
        spec.env("KAFKA_PROPERTIES", login(USER)).env("STALL_TIMEOUT", "10s")
    });
    transfer.start().await.unwrap();
    let writer = world.writer();
    put(&writer, 0, 100);
    world.wait_for_all_committed().await;

    stack.kafka().withdraw(read.clone()).await.unwrap();
    put(&writer, 100, 100);
    let texts = ["fetching:", "rights partition ", "at offset ", "TOPIC_AUTHORIZATION_FAILED", "READ"];
    wait_not_ready(&transfer, &texts).await;
    eventually("the unfetched records count as lag and as stalled", async || {
        let (lag, stalled) = (
            metric(&transfer, "msg_transfer_lag_records").await,
            metric(&transfer, "msg_transfer_stalled_partitions").await,
        );
        ensure(lag == 100.0 && stalled == 4.0, format!("lag {lag}, stalled {stalled}"))
    })
    .await;
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    assert_eq!(report["total"]["lag_records"], 100, "the command and the gauge agree");
    let attempts = metric(&transfer, "msg_transfer_fetch_errors_total{code=\"TOPIC_AUTHORIZATION_FAILED\"}").await;
    assert!((8.0..=40.0).contains(&attempts), "{attempts} attempts to fetch four partitions");
    let lines = logged(&transfer, "fetching failed");
    assert!((4..=20).contains(&lines), "{lines} lines");
    assert!(logged(&transfer, "resolved start offset") <= 8, "attempts are not logged");
    stack.kafka().grant(read.clone()).await.unwrap();
    world.wait_for_rows(200).await;
    transfer.wait_ready(2 * WAIT_TIMEOUT).await.unwrap();

    // Without DESCRIBE the topic's metadata cannot be read either.
    stack.kafka().withdraw([&describe[..], &read[..]].concat()).await.unwrap();
    put(&writer, 200, 100);
    wait_not_ready(&transfer, &["rights", "uthorization", "READ"]).await;
    stack.kafka().grant([&describe[..], &read[..]].concat()).await.unwrap();
    world.wait_for_rows(300).await;
    transfer.wait_ready(2 * WAIT_TIMEOUT).await.unwrap();
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.rows().await.len(), 300, "P1, P2");
    assert!(transfer.stop().await.unwrap().success());
}

/// One byte of "hello" is changed in the broker's log: nothing of its batch or after it is stored until the log is
/// repaired.
#[tokio::test]
async fn damaged_batch_halts_its_partition_until_it_is_repaired() {
    assert_halts_and_recovers("damaged", "_BAD_MSG", |batch| {
        let at = find(batch, b"hello");
        batch[at + 1] = b'a';
    })
    .await;
}

/// The batch has a codec that does not exist, and a correct checksum.
#[tokio::test]
async fn batch_of_an_unknown_codec_halts_its_partition() {
    assert_halts_and_recovers("codec", "_NOT_IMPLEMENTED", |batch| {
        batch[22] = (batch[22] & !7) | 6;
        let sum = crc32c(&batch[21..]).to_be_bytes();
        batch[17..21].copy_from_slice(&sum);
    })
    .await;
}

/// The batch has bytes that its codec cannot decompress, and a correct checksum.
#[tokio::test]
async fn batch_that_cannot_be_decompressed_halts_its_partition() {
    assert_halts_and_recovers("decompressed", "_BAD_COMPRESSION", |batch| {
        batch[22] = (batch[22] & !7) | 2;
        batch[61..].fill(0xff);
        let sum = crc32c(&batch[21..]).to_be_bytes();
        batch[17..21].copy_from_slice(&sum);
    })
    .await;
}

async fn assert_halts_and_recovers(name: &str, code: &str, damage: impl FnOnce(&mut [u8])) {
    let (stack, folder) = own_stack(name).await;
    stack.launch().await.unwrap();
    let world = World::on(&stack, name, 1);
    world.create(&stack).await;
    let writer = world.writer();
    put(&writer, 0, 10);
    writer.put(&record_of(&msg("a", "inbox-0", "hello", "hello")));
    writer.flush();
    put(&writer, 10, 10);
    let log = log_of(&stack, folder.path(), name);
    let intact = change_log(&stack, &log, damage).await;

    let transfer = world.transfer("transfer", |spec| spec.env("STALL_TIMEOUT", "5s"));
    transfer.launch().unwrap();
    let position = format!("{name} partition 0");
    let texts = ["partitions:", &position, "offset 10", code, "msg-transfer resume"];
    wait_not_ready(&transfer, &texts).await;
    world.wait_for_rows(10).await;
    let wait_for_gauges = async |what: &str| {
        eventually(what, async || {
            let gauge = async |name: &str| metric(&transfer, name).await;
            let (lag, halted) =
                (gauge("msg_transfer_lag_records").await, gauge("msg_transfer_halted_partitions").await);
            let stalled = gauge("msg_transfer_stalled_partitions").await;
            ensure((lag, halted, stalled) == (11.0, 1.0, 1.0), format!("lag {lag}, halted {halted}, stalled {stalled}"))
        })
        .await;
    };
    wait_for_gauges("the partition is halted and stalled, and its records are lag").await;
    let report = run(&world, "lag --output json").await.assert_code(0).json();
    assert_eq!(report["total"]["lag_records"], 11);
    // The log is still damaged.
    let errors = format!("msg_transfer_fetch_errors_total{{code=\"{code}\"}}");
    let before = metric(&transfer, &errors).await;
    assert!(before <= 3.0, "{before} attempts");
    run(&world, "resume --topic-partition 0").await.assert_code(0);
    eventually("the fetch is retried, and fails again", async || {
        let errors = metric(&transfer, &errors).await;
        ensure(errors > before, errors)
    })
    .await;
    wait_for_gauges("the partition is halted again").await;
    assert_eq!(world.rows().await.len(), 10, "no record of the damaged batch or after it is stored");

    stack.kafka().stop_broker(1).await.unwrap();
    std::fs::write(&log, intact).unwrap();
    stack.kafka().start_broker(1).await.unwrap();
    eventually("everything is stored", async || {
        run(&world, "resume --topic-partition 0").await;
        let rows = world.rows().await.len();
        ensure(rows == 21, rows)
    })
    .await;
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    world.assert_ordered_without_gaps().await;
    assert!(world.rows().await.iter().any(|row| row.content == b"hello"), "the content is as it was sent");
    assert!(transfer.stop().await.unwrap().success());
}

/// The first segment of partition 0.
fn log_of(stack: &Stack, _folder: &Path, topic: &str) -> PathBuf {
    stack.kafka().data(1).unwrap().join(format!("{topic}-0")).join("00000000000000000000.log")
}

/// Stops the broker, changes the batch that holds "hello" in its log, and starts it again. Returns the intact log.
async fn change_log(stack: &Stack, log: &Path, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    stack.kafka().stop_broker(1).await.unwrap();
    let intact = std::fs::read(log).unwrap();
    let mut changed = intact.clone();
    let mut start = 0;
    loop {
        let length = u32::from_be_bytes(changed[start + 8..start + 12].try_into().unwrap());
        let end = start + 12 + usize::try_from(length).unwrap();
        if changed[start..end].windows(5).any(|part| part == b"hello") {
            change(&mut changed[start..end]);
            break;
        }
        start = end;
    }
    std::fs::write(log, changed).unwrap();
    stack.kafka().start_broker(1).await.unwrap();
    intact
}

/// The last position of these bytes, which is in the content.
fn find(batch: &[u8], text: &[u8]) -> usize {
    batch.windows(text.len()).rposition(|part| part == text).expect("the batch has these bytes")
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    !sum
}
