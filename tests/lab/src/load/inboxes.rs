//! Owns the choice of inboxes: a few are hot, most are not, and some have only one sender.

use rand::RngExt;
use rand::rngs::StdRng;

/// The first inbox that has only one sender; the inboxes below it are shared.
pub(crate) const PRIVATE: u32 = 1_000_000;
/// The number of such inboxes of each sender.
const EACH: u32 = 10;
/// The share of messages that are sent to them.
const TO_PRIVATE: f64 = 0.3;

/// The shared inboxes, numbered from 0, and those of each sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inboxes {
    pub(crate) shared: u32,
}

impl Inboxes {
    pub(crate) fn pick(self, sender: u32, rng: &mut StdRng) -> u32 {
        if rng.random_bool(TO_PRIVATE) {
            return PRIVATE + sender * EACH + rng.random_range(0..EACH);
        }
        // As in Zipf's law: the k-th inbox is picked about 1/k as often as the first.
        let reach = f64::from(self.shared) + 1.0;
        let rank = reach.powf(rng.random::<f64>()) as u32;
        rank.clamp(1, self.shared) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn some_are_hot_and_all_are_hit() {
        let (inboxes, mut rng) = (Inboxes { shared: 50 }, StdRng::seed_from_u64(1));
        let mut hits = [0; 50];
        let mut private = [0; 10];
        for _ in 0..100_000 {
            match inboxes.pick(3, &mut rng) {
                shared if shared < 50 => hits[shared as usize] += 1,
                own => private[(own - PRIVATE - 30) as usize] += 1,
            }
        }
        assert!(hits.iter().chain(&private).all(|hits| *hits > 0), "{hits:?} {private:?}");
        assert!(hits[0] > 10 * hits[20], "{hits:?}");
    }

    #[test]
    fn one_shared_inbox_is_enough() {
        let mut rng = StdRng::seed_from_u64(1);
        assert!((0..100).map(|_| Inboxes { shared: 1 }.pick(0, &mut rng)).all(|inbox| inbox == 0 || inbox >= PRIVATE));
    }
}
