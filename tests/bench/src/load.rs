//! The messages of a measurement: how many, how large, and to which inboxes.

use std::hash::{DefaultHasher, Hasher};

use clap::Args;
use msg_common::limits::DEFAULT_CONTENT_BYTES;

use super::PARTITIONS;

/// The messages to send, and the settings of the services.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Number of messages in each round of batches, streams and drains. Single calls send a part of them
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) messages: usize,
    /// Number of inboxes that the messages are sent to
    #[arg(long, default_value_t = 20_000)]
    pub(crate) inboxes: usize,
    /// Exponent of the Zipf distribution of the messages over the inboxes; 0 for the same number of messages to each.
    /// With 1, half of the messages are to the square root of the number of inboxes
    #[arg(long, default_value_t = 0.0)]
    pub(crate) skew: f64,
    /// Bytes of each message body
    #[arg(long, default_value_t = 256)]
    pub(crate) body: usize,
    /// Number of partitions of the topic
    #[arg(long, default_value_t = PARTITIONS)]
    pub(crate) partitions: i32,
    /// Number of concurrent callers; each waits for its response before it sends again (pipe, send)
    #[arg(long, default_value_t = 256)]
    pub(crate) callers: usize,
    /// Number of rounds, after a warm-up. Each round measures every limit and every system once; a figure is the median of
    /// the rounds
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// Also measure what each guard of the transfer costs, one after the other on the same backlog (drain)
    #[arg(long)]
    pub(crate) variants: bool,
    /// Path of another build's msg-transfer, which is measured last (drain, with --variants)
    #[arg(long, value_name = "FILE", requires = "variants")]
    pub(crate) against: Option<String>,
    /// Also measure other programs, which promise less: consumers in Go, Debezium's JDBC sink, NATS JetStream. Builds
    /// them with the go command, and fetches them with Maven (drain, send)
    #[arg(long)]
    pub(crate) peers: bool,
    /// Additional setting of the services, as NAME=VALUE; repeat the flag for more
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
}

impl Load {
    /// Returns a load without messages for callers that count their own.
    pub(crate) fn of(inboxes: usize, body: usize) -> Load {
        Load {
            messages: 0,
            inboxes,
            skew: 0.0,
            body,
            partitions: PARTITIONS,
            callers: 0,
            rounds: 1,
            variants: false,
            against: None,
            peers: false,
            set: Vec::new(),
        }
    }

    /// Returns the settings of the services: those that the bodies need, and after them those of `--set`.
    pub(crate) fn set(&self) -> Vec<String> {
        let needed = (self.body > DEFAULT_CONTENT_BYTES).then(|| format!("MAX_CONTENT_BYTES={}", self.body));
        needed.into_iter().chain(self.set.iter().cloned()).collect()
    }

    /// Returns a body of random letters, which compresses about as little as text does.
    pub(crate) fn random_body(&self) -> Vec<u8> {
        (0..self.body).map(|_| rand::random_range(b'a'..=b'z')).collect()
    }

    /// Returns how many messages have these bytes in their bodies: at least one, and no more than `most`.
    pub(crate) fn within(&self, bytes: usize, most: usize) -> usize {
        (bytes / self.body.max(1)).clamp(1, most)
    }

    pub(crate) fn inbox(&self, n: usize) -> String {
        format!("inbox-{}", self.inbox_number(n))
    }

    /// Returns the number of message `n`'s inbox. Consecutive messages have different inboxes, in an order that is not
    /// the inboxes'. With a skew, inbox 0 gets the most messages.
    pub(crate) fn inbox_number(&self, n: usize) -> usize {
        if self.skew == 0.0 {
            return n.wrapping_mul(7919) % self.inboxes;
        }
        // Not a random number: each connection of the bare statement computes the inboxes of all messages.
        let mut hasher = DefaultHasher::new();
        hasher.write_usize(n);
        zipf(hasher.finish() as f64 / u64::MAX as f64, self.inboxes, self.skew)
    }
}

/// Returns the inbox below which this share of all messages is, if the inbox with rank x gets messages in proportion to
/// x to the power of `-exponent`: the inverse of the integral over the ranks from 1 on.
fn zipf(share: f64, inboxes: usize, exponent: f64) -> usize {
    let (ranks, power) = (inboxes as f64 + 1.0, 1.0 - exponent);
    let rank = match power.abs() < 1e-9 {
        true => ranks.powf(share),
        false => (1.0 + share * (ranks.powf(power) - 1.0)).powf(1.0 / power),
    };
    (rank as usize).clamp(1, inboxes) - 1
}

fn at_least_one(number: &str) -> Result<usize, String> {
    number.parse().ok().filter(|number| *number > 0).ok_or_else(|| "it has to be a number from 1 on".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(skew: f64) -> Vec<usize> {
        let load = Load { skew, ..Load::of(10_000, 1) };
        let mut counts = vec![0; load.inboxes];
        for n in 0..100_000 {
            counts[load.inbox_number(n)] += 1;
        }
        counts
    }

    #[test]
    fn messages_are_spread_evenly_or_by_rank() {
        assert!(counts(0.0).iter().all(|count| *count == 10));
        for skew in [0.5, 1.0, 1.2] {
            let (counts, top) = (counts(skew), [0, 1, 7, 99].map(|rank| f64::from(rank) + 1.0));
            assert_eq!(counts.iter().sum::<usize>(), 100_000);
            // From rank 1 to rank 100: in proportion to the power, as far as the integral and chance allow.
            let (first, hundredth) = (counts[0] as f64, counts[90..110].iter().sum::<usize>() as f64 / 20.0);
            let expected = top[3].powf(skew);
            assert!((0.4..1.4).contains(&(first / hundredth / expected)), "{skew}: {first} and {hundredth}");
        }
        let half: usize = counts(1.0)[..100].iter().sum();
        assert!((48_000..52_000).contains(&half), "{half}");
    }

    #[test]
    fn large_bodies_make_small_batches_and_raise_the_limit() {
        let load = |body| Load::of(1, body);
        assert_eq!([64, 16 << 10, 1 << 20, 4 << 20].map(|body| load(body).within(2 << 20, 100)), [100, 100, 2, 1]);
        assert_eq!((load(256).set(), load(1 << 20).set()), (Vec::new(), vec!["MAX_CONTENT_BYTES=1048576".to_owned()]));
    }
}
