//! Why a record is kept aside.

/// The contract's `DeadLetterReason`, as it is stored: its name without the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Its bytes are no record.
    Undecodable,
    /// It breaks a rule.
    Invalid,
    /// The database refused this record, and took another one at the same time.
    RejectedByDatabase,
    /// Another message with its id is stored.
    IdempotencyConflict,
    /// The same as rejected, for its size.
    TooLarge,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 5] = [
        Reason::Undecodable,
        Reason::Invalid,
        Reason::RejectedByDatabase,
        Reason::IdempotencyConflict,
        Reason::TooLarge,
    ];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Undecodable => "UNDECODABLE",
            Reason::Invalid => "INVALID",
            Reason::RejectedByDatabase => "REJECTED_BY_DATABASE",
            Reason::IdempotencyConflict => "IDEMPOTENCY_CONFLICT",
            Reason::TooLarge => "TOO_LARGE",
        }
    }

    /// Whether it counts for the limit on dead letters. A conflict does not: a caller makes it, at will, and stopping a
    /// partition for it would let one caller stop the others.
    pub fn counts(self) -> bool {
        self != Reason::IdempotencyConflict
    }
}
