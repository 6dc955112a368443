//! The reasons of dead letters.

/// The reason of a dead letter: the contract's `DeadLetterReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Undecodable,
    /// The message breaks a rule of the contract.
    Invalid,
    /// The database rejected this record, and accepted another one at the same time.
    RejectedByDatabase,
    /// Another message with the same ID is stored.
    IdempotencyConflict,
    /// The database rejected this record because of its size, and accepted another one at the same time.
    TooLarge,
}

impl Reason {
    /// All reasons, in the order of the contract.
    pub const ALL: [Reason; 5] = [
        Reason::Undecodable,
        Reason::Invalid,
        Reason::RejectedByDatabase,
        Reason::IdempotencyConflict,
        Reason::TooLarge,
    ];

    /// Returns the name that the database stores: the contract's name without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Undecodable => "UNDECODABLE",
            Reason::Invalid => "INVALID",
            Reason::RejectedByDatabase => "REJECTED_BY_DATABASE",
            Reason::IdempotencyConflict => "IDEMPOTENCY_CONFLICT",
            Reason::TooLarge => "TOO_LARGE",
        }
    }

    /// Returns whether it counts for the dead-letter limit. A conflict does not: a caller can cause any number of
    /// conflicts, and halting a partition for them would let one caller stop the others.
    pub fn counts(self) -> bool {
        self != Reason::IdempotencyConflict
    }
}
