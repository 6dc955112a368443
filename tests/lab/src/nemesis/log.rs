//! Injects faults of the brokers' disks: damages a batch, or removes the end of a log, in every replica.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::broker::in_sync;
use super::injection::{FaultInjection, all_ready};
use crate::error::LabError;
use crate::evidence::Truncation;
use crate::history::Nanos;
use crate::history::now;
use crate::settle::progress;
use crate::topology::{BROKERS, TOPIC};
use crate::world::World;

/// How long to wait until every replica has a batch that no transfer has read.
const FOUND_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// The minimum number of stored records that are lost together with those that are not stored.
const MIN_STORED: i64 = 20;
/// First offset and length, which the length does not count.
const HEAD: usize = 12;

/// Changes one byte of a batch in every replica, before any transfer has read it. Later restores the byte, as an
/// operator would.
pub(super) async fn damage_batch(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let world = injection.world;
    let transfers = world.running_transfers();
    futures_util::future::join_all(transfers.iter().map(|transfer| transfer.stop())).await;
    let found = find_unread(world).await;
    if let Ok(found) = &found {
        injection.target(format!("partition {} offset {}", found.partition, found.offset));
        let (partition, offset) = (format!("partition {}", found.partition), format!("offset {}", found.offset));
        injection.must_report("transfer", &["resume", &partition, &offset]);
        found.flip()?;
    }
    for transfer in transfers {
        transfer.launch()?;
    }
    let found = found?;
    injection.hold().await;
    found.flip()?;
    world.command(&transfers[0], &["resume", "--topic-partition", &found.partition.to_string()]).await?;
    all_ready(world).await
}

/// Removes the end of a partition's log in every replica, with records that no transfer has read: only those may be
/// lost.
pub(super) async fn truncate_log(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let (world, kafka) = (injection.world, injection.world.stack.kafka());
    let transfers = world.running_transfers();
    futures_util::future::join_all(transfers.iter().map(|transfer| transfer.stop())).await;
    let found = find_unread(world).await;
    let stored = progress(world).await?;
    kafka.stop().await;
    let at = now();
    let cut = found.and_then(|found| {
        let stored = stored[usize::try_from(found.partition).expect("it is not negative")];
        truncate(world, found.partition, stored, at)
    });
    injection.fault.broken = now();
    let cut = cut.map(|cut| {
        injection.target(format!("partition {} offsets {} to {}", cut.partition, cut.end, cut.was - 1));
        Truncation { over: now(), ..cut }
    });
    kafka.start().await?;
    in_sync(world).await?;
    for transfer in transfers {
        transfer.launch()?;
    }
    injection.seen.truncation = Some(cut?);
    injection.fault.over = now();
    all_ready(world).await
}

/// Removes the same batches from every replica: some stored ones, and all behind them.
fn truncate(world: &World, partition: i32, stored: i64, at: Nanos) -> Result<Truncation, LabError> {
    let mut folders = Vec::new();
    for broker in 1..=BROKERS {
        let folder = world.stack.kafka().data(broker)?.join(format!("{TOPIC}-{partition}"));
        let batches = batches(&folder, 0).map_err(LabError::io("read", &folder))?;
        folders.push((folder, batches));
    }
    let common = |offset: &i64| folders.iter().all(|(_, batches)| batches.contains_key(offset));
    let end = folders[0].1.range(..stored - MIN_STORED).map(|(offset, _)| *offset).rfind(common);
    let end = end.ok_or_else(|| LabError::Stuck(format!("partition {partition} has too few batches")))?;
    let mut was = end;
    for (folder, batches) in &folders {
        was = was.max(log_end(folder, batches).map_err(LabError::io("read", folder))?);
        cut(folder, batches, end).map_err(LabError::io("cut", folder))?;
    }
    Ok(Truncation { partition, at, over: at, end, was, stored })
}

/// Returns the offset after the last complete batch.
fn log_end(folder: &Path, batches: &Batches) -> io::Result<i64> {
    let Some((offset, batch)) = batches.last_key_value() else {
        return Err(io::Error::other(format!("{} has no batch", folder.display())));
    };
    // The difference between the last and the first offset is 11 bytes behind the head of the batch.
    let mut delta = [0; 4];
    File::open(&batch.path)?.read_exact_at(&mut delta, batch.start + HEAD as u64 + 11)?;
    Ok(offset + i64::from(i32::from_be_bytes(delta)) + 1)
}

/// Removes the batches from `end` on, and the files that index them: Kafka writes those again.
fn cut(folder: &Path, batches: &Batches, end: i64) -> io::Result<()> {
    let first = &batches[&end];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<i64>().ok());
        let (Some(base), Some(kind)) = (stem, path.extension()) else { continue };
        let of_the_segment = path.with_extension("log") == first.path;
        if path == first.path {
            OpenOptions::new().write(true).open(&path)?.set_len(first.start)?;
        } else if base > end || (of_the_segment && kind != "snapshot") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A batch, and where each replica has its last byte.
struct UnreadBatch {
    partition: i32,
    offset: i64,
    bytes: Vec<(PathBuf, u64)>,
}

impl UnreadBatch {
    /// Flips a bit. A second call restores it.
    fn flip(&self) -> Result<(), LabError> {
        for (path, at) in &self.bytes {
            let flip = || -> io::Result<()> {
                let file: File = OpenOptions::new().read(true).write(true).open(path)?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, *at)?;
                file.write_all_at(&[byte[0] ^ 1], *at)
            };
            flip().map_err(LabError::io("change", path))?;
        }
        Ok(())
    }
}

/// Finds the first batch after the committed offset, in the partition with the most records that are not committed.
async fn find_unread(world: &World) -> Result<UnreadBatch, LabError> {
    let finding = async {
        loop {
            if let (Ok(committed), Ok(ends)) = (world.offsets.committed().await, world.offsets.ends().await)
                && let Some((partition, next)) = most_unread(&committed, &ends)
                && let Some(found) = first_batch(world, partition, next)?
            {
                return Ok(found);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| LabError::Stuck("no unread batch is in every replica".into());
    tokio::time::timeout(FOUND_WITHIN, finding).await.map_err(late)?
}

fn most_unread(committed: &[i64], ends: &[i64]) -> Option<(i32, i64)> {
    let unread = (0..).zip(committed.iter().zip(ends)).filter(|(_, (next, end))| end > next);
    unread.max_by_key(|(_, (next, end))| *end - *next).map(|(partition, (next, _))| (partition, *next))
}

fn first_batch(world: &World, partition: i32, from: i64) -> Result<Option<UnreadBatch>, LabError> {
    let mut replicas = Vec::new();
    for broker in 1..=BROKERS {
        let folder = world.stack.kafka().data(broker)?.join(format!("{TOPIC}-{partition}"));
        replicas.push(batches(&folder, from).map_err(LabError::io("read", &folder))?);
    }
    let first = replicas[0].keys().find(|offset| replicas.iter().all(|replica| replica.contains_key(offset)));
    Ok(first.map(|offset| UnreadBatch {
        partition,
        offset: *offset,
        bytes: replicas.iter().map(|replica| (replica[offset].path.clone(), replica[offset].end - 1)).collect(),
    }))
}

type Batches = BTreeMap<i64, Batch>;

/// Where a complete batch is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    path: PathBuf,
    start: u64,
    end: u64,
}

/// Returns the complete batches of a partition's folder from this offset on.
fn batches(folder: &Path, from: i64) -> io::Result<Batches> {
    let mut found = Batches::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "log") {
            let segment = fs::read(&path)?;
            let batches = complete(&segment).filter(|(offset, _)| *offset >= from);
            found.extend(
                batches.map(|(offset, Range { start, end })| (offset, Batch { path: path.clone(), start, end })),
            );
        }
    }
    Ok(found)
}

/// Returns the first offset and the byte range of each complete batch of a segment.
fn complete(segment: &[u8]) -> impl Iterator<Item = (i64, Range<u64>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let head: &[u8; HEAD] = segment.get(start..)?.first_chunk()?;
        let offset = i64::from_be_bytes(*head.first_chunk()?);
        let length = u32::from_be_bytes(*head.last_chunk()?);
        let began = start;
        start += HEAD + usize::try_from(length).ok()?;
        // A batch that is being written is incomplete, and unwritten bytes are 0.
        (length > 0 && start <= segment.len()).then_some((offset, began as u64..start as u64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(offset: i64, size: u8) -> Vec<u8> {
        let mut bytes = offset.to_be_bytes().to_vec();
        bytes.extend(u32::from(size).to_be_bytes());
        bytes.resize(HEAD + usize::from(size), 7);
        bytes
    }

    #[test]
    fn complete_batches_are_found_with_their_ends() {
        let mut segment = [batch(0, 9), batch(5, 30)].concat();
        assert_eq!(complete(&segment).collect::<Vec<_>>(), [(0, 0..21), (5, 21..63)]);
        segment.extend(&batch(9, 20)[..15]);
        assert_eq!(complete(&segment).collect::<Vec<_>>(), [(0, 0..21), (5, 21..63)], "the third is incomplete");
    }

    #[test]
    fn log_is_cut_at_a_batch() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| folder.path().join(name);
        let mut last = batch(9, 20);
        last[HEAD + 11..HEAD + 15].copy_from_slice(&3_u32.to_be_bytes());
        fs::write(file("00.log"), [batch(0, 9), batch(5, 30), last].concat()).expect("own folder");
        for name in ["00.index", "00.timeindex", "05.snapshot", "13.snapshot", "leader-epoch-checkpoint"] {
            fs::write(file(name), "x").expect("own folder");
        }
        let found = batches(folder.path(), 0).expect("own folder");
        assert_eq!(log_end(folder.path(), &found).expect("own folder"), 13);
        cut(folder.path(), &found, 5).expect("own folder");
        assert_eq!(fs::read(file("00.log")).expect("own folder"), batch(0, 9));
        let left = |name: &&str| file(name).exists();
        let names = ["00.index", "00.timeindex", "05.snapshot", "13.snapshot", "leader-epoch-checkpoint"];
        let left: Vec<&str> = names.into_iter().filter(left).collect();
        assert_eq!(left, ["05.snapshot", "leader-epoch-checkpoint"]);
    }

    #[test]
    fn partition_with_most_unread_records_is_chosen() {
        assert_eq!(most_unread(&[3, 3, 9], &[3, 8, 12]), Some((1, 3)));
        assert_eq!(most_unread(&[3], &[3]), None);
    }
}
