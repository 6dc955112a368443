//! Everything that happens in a run is chosen here, from one sequence of numbers: made from the seed, and kept, so that a
//! run can be repeated from it, and from parts of it.

/// The sequence.
#[derive(Debug)]
pub(crate) struct Choices {
    tape: Vec<u32>,
    at: usize,
    /// The state of splitmix64; `None`: only the tape counts, and behind its end everything is 0.
    random: Option<u64>,
}

impl Choices {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Choices { tape: Vec::with_capacity(4096), at: 0, random: Some(seed) }
    }

    pub(crate) fn from_tape(tape: Vec<u32>) -> Self {
        Choices { tape, at: 0, random: None }
    }

    /// One of 0..n. 0 is the dullest.
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

    /// True once in so many times; 0 is never.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        n > 0 && (n == 1 || self.choose(n) == n - 1)
    }

    /// A place in the list, as often as its weight says.
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

    /// How many were used, at most as many as there are.
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
    fn the_same_seed_gives_the_same_choices_for_ever() {
        let mut choices = Choices::from_seed(1);
        let first: Vec<u32> = (0..8).map(|_| choices.choose(100)).collect();
        assert_eq!(first, [56, 74, 97, 44, 44, 76, 87, 52]);
        let mut again = Choices::from_tape(choices.into_tape());
        assert_eq!((0..9).map(|_| again.choose(100)).collect::<Vec<_>>(), [56, 74, 97, 44, 44, 76, 87, 52, 0]);
    }
}
