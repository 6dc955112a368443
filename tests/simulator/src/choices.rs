//! The source of all choices of a run: one sequence of numbers. The sequence comes from the seed and is recorded, so
//! that a run can be repeated from all or from parts of its sequence.

#[derive(Debug)]
pub(crate) struct Choices {
    tape: Vec<u32>,
    at: usize,
    /// The state of splitmix64. If `None`, the numbers come only from the tape; after its end every number is 0.
    random: Option<u64>,
}

impl Choices {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Choices { tape: Vec::with_capacity(4096), at: 0, random: Some(seed) }
    }

    pub(crate) fn from_tape(tape: Vec<u32>) -> Self {
        Choices { tape, at: 0, random: None }
    }

    /// Returns one of the numbers 0..n. 0 is the least eventful choice: shrinking prefers it.
    pub(crate) fn choose(&mut self, n: u32) -> u32 {
        if n < 2 {
            return 0;
        }
        let number = match &mut self.random {
            Some(state) => {
                let number = below(splitmix64(state), n);
                self.tape.push(number);
                number
            }
            None => self.tape.get(self.at).map_or(0, |number| number % n),
        };
        self.at += 1;
        number
    }

    pub(crate) fn index(&mut self, n: usize) -> usize {
        self.choose(u32::try_from(n).expect("few")) as usize
    }

    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.index(high - low + 1)
    }

    /// Returns true once in `n` calls on average, or never if `n` is 0.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        n > 0 && (n == 1 || self.choose(n) == n - 1)
    }

    /// Returns an index into `weights`, each with a probability in proportion to its weight.
    pub(crate) fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut number = self.choose(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if number < *weight {
                return index;
            }
            number -= weight;
        }
        0
    }

    /// Returns the numbers that were used, without the unused rest of the tape.
    pub(crate) fn into_tape(mut self) -> Vec<u32> {
        self.tape.truncate(self.at);
        self.tape
    }
}

fn below(random: u64, n: u32) -> u32 {
    u32::try_from(((random >> 32) * u64::from(n)) >> 32).expect("below n")
}

/// Steele, Lea, Flood 2014: "Fast splittable pseudorandom number generators".
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_always_gives_the_same_choices() {
        let mut choices = Choices::from_seed(1);
        let first: Vec<u32> = (0..8).map(|_| choices.choose(100)).collect();
        assert_eq!(first, [56, 74, 97, 44, 44, 76, 87, 52]);
        let mut again = Choices::from_tape(choices.into_tape());
        assert_eq!((0..9).map(|_| again.choose(100)).collect::<Vec<_>>(), [56, 74, 97, 44, 44, 76, 87, 52, 0]);
    }
}
