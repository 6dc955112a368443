//! The settings of every session of both services. A default of the role or of the database must not change the result of a
//! statement, nor end a session.
//!
//! Other settings need no value of ours. `client_encoding` is set by the driver. Values are sent and read in the binary form,
//! so `DateStyle`, `TimeZone`, `bytea_output`, `extra_float_digits` and `array_nulls` do not matter, and no literal in our
//! statements has a backslash (`standard_conforming_strings`). `row_security = off` makes an error of rows that would be left
//! out. Our tables have no triggers (`session_replication_role`). `search_path` selects the schema, as an operator wants it.

/// Returns the settings that apply before the server is checked; 0 is no timeout.
///
/// - Without `client_min_messages`, the warning of a COMMIT may not be sent (ADR 38).
/// - With another isolation level, an INSERT does not see the rows that it conflicts with, and a replica rejects reads.
/// - With `exit_on_error`, each row that the server rejects would end the session, so a bisection could not end.
/// - Without `idle_in_transaction_session_timeout`, the open transaction of a frozen process would hold its locks without
///   limit, and block the next owner of the partitions.
pub(super) fn settings(statement_timeout_ms: u128) -> String {
    format!(
        "SET statement_timeout = {statement_timeout_ms}; \
         SET idle_in_transaction_session_timeout = {statement_timeout_ms}; \
         SET lock_timeout = 0; \
         SET default_transaction_isolation = 'read committed'; \
         SET client_min_messages = warning; \
         SET exit_on_error = off"
    )
}

/// Sets the timeouts that older servers do not have: 14 and 17 added them. An idle reference connection or lane must not be
/// closed, since all start offsets would be resolved again.
pub(super) const NEWER_SETTINGS: &str = "SELECT set_config(name, '0', false) \
     FROM unnest(ARRAY['idle_session_timeout', 'transaction_timeout']) AS name WHERE current_setting(name, true) IS NOT NULL";
