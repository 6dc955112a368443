//! What an error of the database means: one pure decision, made once.

/// What follows from a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The server or the way to it: the same statement will work later. Repeated for ever.
    Transient,
    /// The connection is gone or silent: nothing is known of the statement. No SQLSTATE means that.
    Lost,
    /// Somebody else holds a lock that the statement needs: on the table, or on what one inbox needs.
    Locked,
    /// Another owner wrote the same inbox: look at the table again, and repeat.
    Conflict,
    /// It took too long or too much memory: the server's doing, or that of one huge record.
    Heavy,
    /// A record's fault, if the server takes another record at the same time: look for it.
    Permanent,
    /// The same, for the record's size.
    TooLarge,
    /// Nothing that a record or a moment explains: an operator has to look. Repeated all the same, slowly.
    Fatal,
}

impl Class {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Class::Transient | Class::Lost => "transient",
            Class::Locked => "locked",
            Class::Conflict => "conflict",
            Class::Heavy => "heavy",
            Class::Permanent => "permanent",
            Class::TooLarge => "too_large",
            Class::Fatal => "fatal",
        }
    }
}

/// What a server with Citus says, as an internal error, of a worker that it has lost. The texts are not translated.
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

/// The same as an I/O error (58030), which is otherwise the server's own disk.
const LOST_WORKER_COPY: &str = "failed to copy to shard";

/// Decides by the SQLSTATE and, for an internal error (XX000), by the server's text: Citus reports a lost worker like this,
/// and that passes. Every other internal error is what a damaged server says.
pub fn classify_error(state: &str, text: &str) -> Class {
    let text = text.to_ascii_lowercase();
    match classify(state) {
        Class::Fatal if state == "XX000" && LOST_WORKER.iter().any(|known| text.contains(known)) => Class::Transient,
        Class::Fatal if state == "58030" && text.contains(LOST_WORKER_COPY) => Class::Transient,
        class => class,
    }
}

/// Decides by the five characters of a SQLSTATE. What is not listed is nobody's fault that we know of.
pub fn classify(state: &str) -> Class {
    match state {
        // By name it could not be told which constraint it was: partitions and shards have names of their own. On
        // `messages` it is never a record's fault, since `msg_id` has its own ON CONFLICT.
        "23505" => Class::Conflict,
        // lock_not_available: lock_timeout.
        "55P03" => Class::Locked,
        // query_canceled: statement_timeout. Waiting for a lock ends earlier, with 55P03.
        "57014" | "53200" => Class::Heavy,
        // idle_in_transaction_session_timeout and its kin; not 25006, a server that takes no writes.
        "25P02" | "25P03" | "25P04" => Class::Transient,
        // A trigger's RAISE, and a view's WITH CHECK OPTION.
        "P0001" | "44000" => Class::Permanent,
        _ => match state.get(..2) {
            Some("08" | "40" | "53" | "55" | "57") => Class::Transient,
            Some("22" | "23") => Class::Permanent,
            Some("54") => Class::TooLarge,
            _ => Class::Fatal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_of_states() {
        for (state, class) in [
            ("08006", Class::Transient), // connection_failure
            ("40001", Class::Transient), // serialization_failure
            ("40P01", Class::Transient), // deadlock_detected
            ("53100", Class::Transient), // disk_full
            ("53300", Class::Transient), // too_many_connections
            ("55P03", Class::Locked),    // lock_not_available
            ("57P01", Class::Transient), // admin_shutdown
            ("57P03", Class::Transient), // cannot_connect_now
            ("25P03", Class::Transient), // idle_in_transaction_session_timeout
            ("57014", Class::Heavy),     // query_canceled
            ("53200", Class::Heavy),     // out_of_memory
            ("23505", Class::Conflict),  // unique_violation
            ("22021", Class::Permanent), // character_not_in_repertoire
            ("22P05", Class::Permanent), // untranslatable_character
            ("23502", Class::Permanent), // not_null_violation
            ("23503", Class::Permanent), // foreign_key_violation
            ("23514", Class::Permanent), // check_violation
            ("23P01", Class::Permanent), // exclusion_violation
            ("44000", Class::Permanent), // with_check_option_violation
            ("P0001", Class::Permanent), // raise_exception
            ("54000", Class::TooLarge),  // program_limit_exceeded
            ("25006", Class::Fatal),     // read_only_sql_transaction
            ("28P01", Class::Fatal),     // invalid_password
            ("3D000", Class::Fatal),     // invalid_catalog_name
            ("42501", Class::Fatal),     // insufficient_privilege
            ("42P01", Class::Fatal),     // undefined_table
            ("42703", Class::Fatal),     // undefined_column
            ("0A000", Class::Fatal),     // feature_not_supported
            ("58030", Class::Fatal),     // io_error
            ("XX000", Class::Fatal),     // internal_error
            ("XX001", Class::Fatal),     // data_corrupted
            ("", Class::Fatal),
        ] {
            assert_eq!(classify(state), class, "{state}");
        }
    }

    #[test]
    fn lost_worker_is_transient_and_damage_is_not() {
        let copy = "failed to COPY to shard 102015 on 127.0.0.1:17502";
        assert_eq!(classify_error("58030", copy), Class::Transient);
        assert_eq!(
            classify_error("58030", "could not read block 7 of relation 16384: Input/output error"),
            Class::Fatal
        );
        let closed = "SSL SYSCALL error: EOF detected\ninvalid socket";
        assert_eq!(classify_error("XX000", closed), Class::Transient);
        for (state, text, class) in [
            ("XX000", "failure on connection marked as essential: worker:5432", Class::Transient),
            ("XX000", "unexpected postmaster exit", Class::Transient),
            (
                "XX000",
                "connection to the remote node worker-1:5432 failed with the following error: ...",
                Class::Transient,
            ),
            ("XX000", "could not read block 7 of relation base/1/2: read only 0 of 8192 bytes", Class::Fatal),
            ("XX001", "unexpected postmaster exit", Class::Fatal),
            ("42P01", "lost connection to", Class::Fatal),
        ] {
            assert_eq!(classify_error(state, text), class, "{state} {text}");
        }
    }
}
