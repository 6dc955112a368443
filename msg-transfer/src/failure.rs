//! What a database error means: one pure decision, made once.

use std::error::Error as _;

use tokio_postgres::error::SqlState;

/// What follows from a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The server or the way to it: the same statement will work later.
    Transient,
    /// Another owner wrote the same inbox: look at the table again, and repeat.
    Conflict,
    /// Nothing that a record or a moment explains: an operator has to look. Repeated all the same, slowly.
    Unknown,
}

/// Decides by the state that the server gave; an error without one came from the connection.
pub fn classify(error: &tokio_postgres::Error) -> Class {
    match error.code() {
        Some(state) => of_state(state),
        None if error.is_closed() || is_io(error) => Class::Transient,
        None => Class::Unknown,
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    // A connect time-out has no source.
    error.to_string().contains("timeout")
}

fn of_state(state: &SqlState) -> Class {
    // By name it could not be told which constraint it was: partitions and shards have names of their own. On `messages`
    // it is never a record's fault, since `msg_id` has its own ON CONFLICT.
    if *state == SqlState::UNIQUE_VIOLATION {
        return Class::Conflict;
    }
    match &state.code()[..2] {
        "08" | "40" | "53" | "55" | "57" => Class::Transient,
        _ => Class::Unknown,
    }
}

/// What an operator may be told of it: never the DETAIL, which quotes the row.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_of_states() {
        for (state, class) in [
            ("08006", Class::Transient),
            ("40001", Class::Transient),
            ("40P01", Class::Transient),
            ("53100", Class::Transient),
            ("53300", Class::Transient),
            ("55P03", Class::Transient),
            ("57014", Class::Transient),
            ("57P01", Class::Transient),
            ("57P03", Class::Transient),
            ("23505", Class::Conflict),
            ("23502", Class::Unknown),
            ("22021", Class::Unknown),
            ("42P01", Class::Unknown),
            ("28P01", Class::Unknown),
            ("25006", Class::Unknown),
            ("58030", Class::Unknown),
            ("XX000", Class::Unknown),
        ] {
            assert_eq!(of_state(&SqlState::from_code(state)), class, "{state}");
        }
    }
}
