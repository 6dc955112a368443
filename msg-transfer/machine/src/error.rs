//! The class of a database error: one pure decision, made once (ADR 12).

/// The class of a database error: what a lane does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// The server or the network: the same statement will succeed later. It is retried without limit.
    Transient,
    /// The connection was closed or timed out: the outcome of the statement is unknown. No SQLSTATE means this.
    Lost,
    /// Another transaction holds a lock that the statement needs: on the table, or on rows of one inbox.
    Locked,
    /// Another owner wrote the same inbox: the table has to be read again.
    Conflict,
    /// The statement needs too much time or memory, because of the server or of one huge record.
    Heavy,
    /// A record causes the error, if the server accepts another record at the same time. A bisection finds it.
    Permanent,
    /// The same as `Permanent`, because of the record's size.
    TooLarge,
    /// Neither a record nor time can explain the error: an operator has to act. It is retried slowly.
    Fatal,
}

/// An error of the database: its class, and a text for operators, which holds no content of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifiedError {
    pub class: ErrorClass,
    pub text: String,
}

impl ErrorClass {
    /// Returns its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            ErrorClass::Transient | ErrorClass::Lost => "transient",
            ErrorClass::Locked => "locked",
            ErrorClass::Conflict => "conflict",
            ErrorClass::Heavy => "heavy",
            ErrorClass::Permanent => "permanent",
            ErrorClass::TooLarge => "too_large",
            ErrorClass::Fatal => "fatal",
        }
    }
}

/// Texts of internal errors with which Citus reports a lost worker. They are not translated.
const LOST_WORKER: [&str; 8] = [
    "failure on connection marked as essential",
    "unexpected postmaster exit",
    "connection to the remote node",
    "failed to execute task",
    "lost connection to",
    "server closed the connection unexpectedly",
    "ssl syscall error",
    "invalid socket",
];

/// The same, with the code of an I/O error (58030), which is otherwise an error of the server's own disk.
const LOST_WORKER_COPY: &str = "failed to copy to shard";

/// Returns the class of an error with this SQLSTATE and text. The text counts only for internal errors (XX000) and I/O
/// errors: with them Citus reports a lost worker, which is transient. Every other such error may mean that the server
/// is damaged.
pub fn classify_error(state: &str, text: &str) -> ErrorClass {
    let text = text.to_ascii_lowercase();
    match classify(state) {
        ErrorClass::Fatal if state == "XX000" && LOST_WORKER.iter().any(|known| text.contains(known)) => {
            ErrorClass::Transient
        }
        ErrorClass::Fatal if state == "58030" && text.contains(LOST_WORKER_COPY) => ErrorClass::Transient,
        class => class,
    }
}

/// Returns the class of a SQLSTATE. A state that is not listed has no known cause, and is fatal.
pub fn classify(state: &str) -> ErrorClass {
    match state {
        // Never caused by a record alone: `msg_id` has its own ON CONFLICT, and COPY is repeated as an INSERT with it. The
        // constraint cannot be identified by its
        // name, because partitions and shards have names of their own.
        "23505" => ErrorClass::Conflict,
        // lock_not_available: lock_timeout.
        "55P03" => ErrorClass::Locked,
        // query_canceled: statement_timeout. Waiting for a lock ends earlier, with 55P03.
        "57014" | "53200" => ErrorClass::Heavy,
        // idle_in_transaction_session_timeout and similar ones; not 25006, a read-only server.
        "25P02" | "25P03" | "25P04" => ErrorClass::Transient,
        // A trigger's RAISE, and a view's WITH CHECK OPTION.
        "P0001" | "44000" => ErrorClass::Permanent,
        _ => match state.get(..2) {
            Some("08" | "40" | "53" | "55" | "57") => ErrorClass::Transient,
            Some("22" | "23") => ErrorClass::Permanent,
            Some("54") => ErrorClass::TooLarge,
            _ => ErrorClass::Fatal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_has_its_class() {
        for (state, class) in [
            ("08006", ErrorClass::Transient), // connection_failure
            ("40001", ErrorClass::Transient), // serialization_failure
            ("40P01", ErrorClass::Transient), // deadlock_detected
            ("53100", ErrorClass::Transient), // disk_full
            ("53300", ErrorClass::Transient), // too_many_connections
            ("55P03", ErrorClass::Locked),    // lock_not_available
            ("57P01", ErrorClass::Transient), // admin_shutdown
            ("57P03", ErrorClass::Transient), // cannot_connect_now
            ("25P03", ErrorClass::Transient), // idle_in_transaction_session_timeout
            ("57014", ErrorClass::Heavy),     // query_canceled
            ("53200", ErrorClass::Heavy),     // out_of_memory
            ("23505", ErrorClass::Conflict),  // unique_violation
            ("22021", ErrorClass::Permanent), // character_not_in_repertoire
            ("22P05", ErrorClass::Permanent), // untranslatable_character
            ("23502", ErrorClass::Permanent), // not_null_violation
            ("23503", ErrorClass::Permanent), // foreign_key_violation
            ("23514", ErrorClass::Permanent), // check_violation
            ("23P01", ErrorClass::Permanent), // exclusion_violation
            ("44000", ErrorClass::Permanent), // with_check_option_violation
            ("P0001", ErrorClass::Permanent), // raise_exception
            ("54000", ErrorClass::TooLarge),  // program_limit_exceeded
            ("25006", ErrorClass::Fatal),     // read_only_sql_transaction
            ("28P01", ErrorClass::Fatal),     // invalid_password
            ("3D000", ErrorClass::Fatal),     // invalid_catalog_name
            ("42501", ErrorClass::Fatal),     // insufficient_privilege
            ("42P01", ErrorClass::Fatal),     // undefined_table
            ("42703", ErrorClass::Fatal),     // undefined_column
            ("0A000", ErrorClass::Fatal),     // feature_not_supported
            ("58030", ErrorClass::Fatal),     // io_error
            ("XX000", ErrorClass::Fatal),     // internal_error
            ("XX001", ErrorClass::Fatal),     // data_corrupted
            ("", ErrorClass::Fatal),
        ] {
            assert_eq!(classify(state), class, "{state}");
        }
    }

    #[test]
    fn lost_worker_is_transient_and_damage_is_not() {
        let copy = "failed to COPY to shard 102015 on 127.0.0.1:17502";
        assert_eq!(classify_error("58030", copy), ErrorClass::Transient);
        assert_eq!(
            classify_error("58030", "could not read block 7 of relation 16384: Input/output error"),
            ErrorClass::Fatal
        );
        let closed = "SSL SYSCALL error: EOF detected\ninvalid socket";
        assert_eq!(classify_error("XX000", closed), ErrorClass::Transient);
        for (state, text, class) in [
            ("XX000", "failure on connection marked as essential: worker:5432", ErrorClass::Transient),
            ("XX000", "unexpected postmaster exit", ErrorClass::Transient),
            (
                "XX000",
                "connection to the remote node worker-1:5432 failed with the following error: ...",
                ErrorClass::Transient,
            ),
            ("XX000", "could not read block 7 of relation base/1/2: read only 0 of 8192 bytes", ErrorClass::Fatal),
            ("XX001", "unexpected postmaster exit", ErrorClass::Fatal),
            ("42P01", "lost connection to", ErrorClass::Fatal),
        ] {
            assert_eq!(classify_error(state, text), class, "{state} {text}");
        }
    }
}
