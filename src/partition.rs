//! Computes the partition of a key, as every Java client does by default, but with a pinned count.

/// The number of a partition of the topic, from 0.
pub type Partition = i32;

/// Returns the partition of `key`: its murmur2 hash without the sign bit, modulo `count`.
///
/// `count` is the pinned count, not the client's view of the topic. After the topic has grown, each client detects the new
/// count at a different time, so two messages to one inbox could be reordered.
pub fn partition_for(key: &[u8], count: Partition) -> Partition {
    let positive = murmur2(key) & 0x7fff_ffff;
    Partition::try_from(positive).expect("31 bits") % count
}

/// MurmurHash2 in 32 bits, as Java clients compute it.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // Kafka hashes the length as a 32-bit number; keys are far shorter.
    let mut h = SEED ^ (data.len() as u32);
    let mut blocks = data.chunks_exact(4);
    for block in &mut blocks {
        let mut k = u32::from_le_bytes(block.try_into().expect("4 bytes"));
        k = k.wrapping_mul(M);
        k ^= k >> R;
        k = k.wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let tail = blocks.remainder();
    for (i, byte) in tail.iter().enumerate() {
        h ^= u32::from(*byte) << (8 * i);
    }
    if !tail.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_that_of_kafkas_java_client() {
        // The vectors of UtilsTest.testMurmur2 in Apache Kafka.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    /// With a count that is a power of 2, the sign mask would have no effect.
    #[test]
    fn partitions_are_those_of_kafkas_java_client() {
        for (key, partition) in [("21", 0), ("foobar", 6), ("abc", 3), ("bob", 6)] {
            assert_eq!(partition_for(key.as_bytes(), 12), partition, "{key}");
        }
    }

    #[test]
    fn partition_is_below_the_count() {
        for i in 0..1000 {
            assert!((0..7).contains(&partition_for(format!("key-{i}").as_bytes(), 7)));
        }
    }
}
