//! The reference connection: while it is open, the database is the server that the start offsets were read from.
//!
//! A database that fails over, or is restored to an earlier point, may lose rows whose COMMIT succeeded. It closes all
//! its connections then. So while the connection is open that a start offset was read over, the server has not changed,
//! and all rows stored since are present. After the connection is closed, start offsets have to be resolved again
//! before anything more is stored or committed.

use crate::ConnectionNumber;

/// A query over the reference connection. One runs at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Read the progress rows. Opens a new connection if none is open.
    Load,
    /// Check whether the connection with this number is still open.
    IsAlive(ConnectionNumber),
    /// Check whether the connection was open since the last check.
    Check,
    /// Write progress rows whose start offsets were read over the connections with these numbers.
    Save(Vec<ConnectionNumber>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Open a connection, call `connected`, and continue as with `Send`.
    Connect,
    /// Send the query over the connection, and call `completed` with the result.
    Send,
    /// Send nothing: this is the result of the query.
    Known(bool),
}

#[derive(Debug, Default)]
pub struct ReferenceConnection {
    connected: bool,
    number: ConnectionNumber,
    /// It was closed while start offsets were read, and the next check has to report that for those read before.
    lost: bool,
}

impl ReferenceConnection {
    /// Returns the number of the open connection, or of the last one.
    pub fn number(&self) -> ConnectionNumber {
        self.number
    }

    pub fn next(&mut self, query: &Query) -> Next {
        match query {
            Query::Load if !self.connected => Next::Connect,
            Query::IsAlive(number) if *number != self.number || !self.connected => Next::Known(false),
            Query::Check if self.lost || !self.connected => Next::Known(!std::mem::take(&mut self.lost)),
            Query::Save(numbers) if !self.connected || numbers.iter().any(|number| *number != self.number) => {
                Next::Known(false)
            }
            _ => Next::Send,
        }
    }

    /// Records that a new connection was opened.
    pub fn connected(&mut self) {
        self.connected = true;
        self.number += 1;
    }

    /// Records the result of a query. If it is not `ok`, the connection is closed.
    pub fn completed(&mut self, query: &Query, ok: bool) {
        if !ok {
            self.connected = false;
            // The result of every other query already reports it.
            self.lost |= *query == Query::Load;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> ReferenceConnection {
        let mut reference = ReferenceConnection::default();
        assert_eq!(reference.next(&Query::Load), Next::Connect);
        reference.connected();
        reference.completed(&Query::Load, true);
        reference
    }

    #[test]
    fn other_connection_than_that_of_the_starts_is_rejected() {
        let mut reference = connected();
        assert_eq!(reference.next(&Query::IsAlive(1)), Next::Send);
        assert_eq!(reference.next(&Query::Save(vec![1])), Next::Send);
        reference.completed(&Query::Check, false);
        assert_eq!(reference.next(&Query::IsAlive(1)), Next::Known(false));
        assert_eq!(reference.next(&Query::Load), Next::Connect);
        reference.connected();
        assert_eq!(reference.next(&Query::IsAlive(1)), Next::Known(false));
        assert_eq!(reference.next(&Query::Save(vec![2, 1])), Next::Known(false));
        assert_eq!(reference.next(&Query::Save(vec![2])), Next::Send);
    }

    #[test]
    fn connection_lost_during_load_is_reported_once() {
        let mut reference = connected();
        reference.completed(&Query::Load, false);
        assert_eq!(reference.next(&Query::Load), Next::Connect);
        reference.connected();
        reference.completed(&Query::Load, true);
        assert_eq!(reference.next(&Query::Check), Next::Known(false), "also when there is a new one");
        assert_eq!(reference.next(&Query::Check), Next::Send);
    }
}
