//! The statements in the words of a trace.

use machine::error::ErrorClass;

use super::{Row, Statement, StatementEffect};

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

impl Statement {
    pub(crate) fn show(&self) -> String {
        let row = |row: &Row| format!("{} as {}", row.record.show(), row.seq);
        match self {
            Statement::Insert(rows) => format!("INSERT {}", list(rows, row)),
            Statement::InsertNew(rows) => format!("COPY {}", list(rows, row)),
            Statement::Guard(rows) => format!("checks the predecessors of {}", list(rows, row)),
            Statement::FindStored(lookups) => format!("looks up {}", list(lookups, |(_, record)| record.show())),
            Statement::InsertDead(dead) => {
                format!(
                    "dead-letters {}",
                    list(dead, |(_, dead)| format!("{} as {}", dead.record.show(), dead.reason.name()))
                )
            }
            Statement::Save(rows) => {
                format!(
                    "saves progress {}",
                    list(rows, |(topic, partition, row)| format!(
                        "t{topic}/{partition}@{}/e{}",
                        row.next, row.leader_epoch.0
                    ))
                )
            }
            Statement::Load(_, partitions) => format!("loads progress of {partitions:?}"),
            other => format!("{other:?}"),
        }
    }
}

impl StatementEffect {
    pub(crate) fn show(self) -> &'static str {
        match self {
            StatementEffect::Fine => "",
            StatementEffect::Fails(ErrorClass::Heavy) => ": needs too long",
            StatementEffect::Fails(_) => ": fails",
            StatementEffect::BreaksBefore => ": the connection breaks before it is executed",
            StatementEffect::BreaksAfter => ": the connection breaks before its result arrives",
            StatementEffect::VisibleLater => ": visible later",
        }
    }
}
