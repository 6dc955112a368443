//! Whether the database is still the one that the starts were read from.
//!
//! A database that fails over, or is put back to an earlier point, may lose rows whose COMMIT was answered; it breaks
//! every connection then. While the connection lives that a start was read over, the server is the same, and what was
//! stored since is there. Once it is gone, starts have to be read again before anything more is stored or committed.

use crate::Generation;

/// What the keeper is asked, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The progress rows.
    Load,
    /// Whether the connection of this generation still lives.
    IsAlive(Generation),
    /// Whether nothing happened to the connection.
    Check,
    /// To write progress rows whose starts were read over connections of these generations.
    Save(Vec<Generation>),
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Make a connection, tell `connected`, and go on as with `Send`.
    Connect,
    /// Send it over the connection, and tell `answered`.
    Send,
    /// Answer at once: yes or no.
    Answer(bool),
}

/// Counts the connections.
#[derive(Debug, Default)]
pub struct Keeper {
    connected: bool,
    generation: Generation,
    /// It went while a start was read, and those that were read before have not been told.
    lost: bool,
}

impl Keeper {
    /// The connection of now, or of last.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How to answer.
    pub fn next(&mut self, ask: &Ask) -> Next {
        match ask {
            Ask::Load if !self.connected => Next::Connect,
            Ask::IsAlive(generation) if *generation != self.generation || !self.connected => Next::Answer(false),
            Ask::Check if self.lost || !self.connected => Next::Answer(!std::mem::take(&mut self.lost)),
            Ask::Save(generations) if !self.connected || generations.iter().any(|g| *g != self.generation) => {
                Next::Answer(false)
            }
            _ => Next::Send,
        }
    }

    /// There is a new connection.
    pub fn connected(&mut self) {
        self.connected = true;
        self.generation += 1;
    }

    /// The connection gave an answer; or it did not, and is gone.
    pub fn answered(&mut self, ask: &Ask, ok: bool) {
        if !ok {
            self.connected = false;
            // The others tell whoever asks.
            self.lost |= *ask == Ask::Load;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> Keeper {
        let mut keeper = Keeper::default();
        assert_eq!(keeper.next(&Ask::Load), Next::Connect);
        keeper.connected();
        keeper.answered(&Ask::Load, true);
        keeper
    }

    #[test]
    fn only_the_connection_of_the_starts_counts() {
        let mut keeper = connected();
        assert_eq!(keeper.next(&Ask::IsAlive(1)), Next::Send);
        assert_eq!(keeper.next(&Ask::Save(vec![1])), Next::Send);
        keeper.answered(&Ask::Check, false);
        assert_eq!(keeper.next(&Ask::IsAlive(1)), Next::Answer(false));
        assert_eq!(keeper.next(&Ask::Load), Next::Connect);
        keeper.connected();
        assert_eq!(keeper.next(&Ask::IsAlive(1)), Next::Answer(false));
        assert_eq!(keeper.next(&Ask::Save(vec![2, 1])), Next::Answer(false));
        assert_eq!(keeper.next(&Ask::Save(vec![2])), Next::Send);
    }

    #[test]
    fn what_was_lost_while_a_start_was_read_is_told_once() {
        let mut keeper = connected();
        keeper.answered(&Ask::Load, false);
        assert_eq!(keeper.next(&Ask::Load), Next::Connect);
        keeper.connected();
        keeper.answered(&Ask::Load, true);
        assert_eq!(keeper.next(&Ask::Check), Next::Answer(false), "also when there is a new one");
        assert_eq!(keeper.next(&Ask::Check), Next::Send);
    }
}
