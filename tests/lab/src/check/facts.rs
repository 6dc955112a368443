//! Owns the indexes that every check uses: the rows by inbox and seq, the message of each row, and the incarnation of a
//! partition that a position belongs to.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::super::evidence::{DeadLetter, Evidence, NewTopic, Row, Truncation};
use super::super::history::{Attempt, Book, Nanos, Outcome};

/// How long the gateway's producer waits for a broker's response before it sends a record again.
const REQUEST_TIMEOUT: Nanos = 8_000_000_000;

const MILLISECOND: Nanos = 1_000_000;

/// The position of a record: partition and offset.
pub(super) type Position = (i32, i64);

/// One of the logs that a partition has had. Offsets of two incarnations cannot be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Incarnation {
    /// How many times the topic had been recreated.
    pub(super) topic: usize,
    /// How many times the end of this partition's log had been lost since then.
    pub(super) tail: usize,
}

/// The history and the evidence, with indexes.
pub(super) struct Facts<'a> {
    pub(super) book: &'a Book,
    pub(super) evidence: &'a Evidence,
    /// The rows by inbox and seq, each with its message; none if that message was not sent.
    pub(super) rows: Vec<(&'a Row, Option<u32>)>,
    pub(super) poison: HashSet<Position>,
    /// The first row of each message.
    row_of: Vec<Option<&'a Row>>,
    inboxes: HashMap<u32, Range<usize>>,
    letters: HashMap<Position, Vec<&'a DeadLetter>>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(book: &'a Book, evidence: &'a Evidence) -> Facts<'a> {
        let mut rows: Vec<_> = evidence.rows.iter().map(|row| (row, book.find(row.sender, row.n))).collect();
        rows.sort_unstable_by_key(|(row, _)| (row.inbox, row.seq, row.partition, row.offset));
        let mut row_of = vec![None; book.messages.len()];
        for (row, message) in rows.iter().rev() {
            if let Some(message) = message {
                row_of[*message as usize] = Some(*row);
            }
        }
        let mut inboxes = HashMap::new();
        let mut first = 0;
        for inbox in rows.chunk_by(|a, b| a.0.inbox == b.0.inbox) {
            inboxes.insert(inbox[0].0.inbox, first..first + inbox.len());
            first += inbox.len();
        }
        let mut letters: HashMap<Position, Vec<&DeadLetter>> = HashMap::new();
        for letter in &evidence.dead_letters {
            letters.entry((letter.partition, letter.offset)).or_default().push(letter);
        }
        Facts { book, evidence, rows, poison: evidence.poison.iter().copied().collect(), row_of, inboxes, letters }
    }

    pub(super) fn row_of(&self, message: u32) -> Option<&'a Row> {
        self.row_of[message as usize]
    }

    /// Returns the row of a message if it is in the inbox that the message was sent to: only there its seq counts.
    pub(super) fn row_in_order(&self, message: u32) -> Option<&'a Row> {
        self.row_of(message).filter(|row| row.inbox == self.book.messages[message as usize].inbox)
    }

    pub(super) fn row_at(&self, inbox: u32, seq: i64) -> Option<&'a Row> {
        let rows = &self.rows[self.inboxes.get(&inbox)?.clone()];
        rows.binary_search_by_key(&seq, |(row, _)| row.seq).ok().map(|at| rows[at].0)
    }

    /// Returns the last seq of an inbox; 0 if it has no rows.
    pub(super) fn max_seq(&self, inbox: u32) -> i64 {
        self.inboxes.get(&inbox).map_or(0, |rows| self.rows[rows.end - 1].0.seq)
    }

    /// Returns the dead letter at a position that contains this message, or no message if `message` is none.
    pub(super) fn letter(&self, position: Position, message: Option<u32>) -> Option<&'a DeadLetter> {
        let message = message.map(|message| &self.book.messages[message as usize]).map(|known| (known.sender, known.n));
        self.letters.get(&position)?.iter().find(|letter| letter.message == message).copied()
    }

    /// Returns the attempts of a message whose records must become its row or a duplicate of it: the accepted ones,
    /// except for those that were dead-lettered or that the lab destroyed in Kafka.
    pub(super) fn delivered(&self, message: u32) -> impl Iterator<Item = &'a Attempt> {
        self.book.attempts_of(message).filter(|attempt| is_accepted(attempt) && !self.was_destroyed(attempt))
    }

    /// Whether the record of an accepted attempt may have been above the progress row when its topic was deleted, or
    /// when the end of its partition's log was lost.
    pub(super) fn was_destroyed(&self, attempt: &Attempt) -> bool {
        let Some((partition, offset)) = attempt.outcome.position() else { return false };
        let (sent, reported) = (attempt.sent, attempt.responded.unwrap_or(Nanos::MAX));
        let above = |progress: i64| offset < 0 || offset >= progress;
        // The record may be in any topic that existed between the send and the report of its outcome.
        let topics = &self.evidence.topics;
        let current = topics.iter().filter(|topic| topic.deleted < reported).count();
        let with_topic = |topic: &NewTopic| topic.made > sent && above(at(&topic.progress, partition));
        let with_tail =
            |cut: &Truncation| cut.partition == partition && cut.over > sent && above(cut.stored.max(cut.end));
        topics.iter().take(current + 1).any(with_topic) || self.evidence.truncations.iter().any(with_tail)
    }

    /// Whether the partition has assigned the same offsets more than once.
    pub(super) fn reuses_offsets(&self, partition: i32) -> bool {
        let cut = |cut: &Truncation| cut.partition == partition;
        !self.evidence.topics.is_empty() || self.evidence.truncations.iter().any(cut)
    }

    /// Whether Kafka may have the record of an accepted attempt twice, and the response names the second: an idempotent
    /// producer that has started a new epoch sends its unconfirmed records again.
    pub(super) fn may_be_twice(&self, attempt: &Attempt) -> bool {
        let waited = attempt.responded.is_some_and(|at| at - attempt.sent >= REQUEST_TIMEOUT);
        let not_sent = |other: &Attempt| matches!(other.outcome, Outcome::NotSent(_));
        waited && is_accepted(attempt) && !self.book.attempts_of(attempt.message).any(not_sent)
    }

    /// Whether a row is of this attempt: a gateway sets the record's time between request and response.
    pub(super) fn is_of(&self, row: &Row, attempt: &Attempt) -> bool {
        let sent = self.evidence.clock.nanos(row.sent);
        // The record's time has whole milliseconds.
        sent + MILLISECOND >= attempt.sent && attempt.responded.is_none_or(|at| sent <= at)
    }

    /// Returns the incarnation of its partition that the record of an attempt is in; none if it may be in one of
    /// several.
    pub(super) fn incarnation(&self, attempt: &Attempt) -> Option<Incarnation> {
        self.incarnation_between(attempt.outcome.position()?, attempt.sent, attempt.responded.unwrap_or(Nanos::MAX))
    }

    /// Returns the incarnation that the record of a row was in; none if it may be in one of several.
    pub(super) fn incarnation_of_row(&self, row: &Row, message: u32) -> Option<Incarnation> {
        let (here, first) = ((row.partition, row.offset), self.book.attempts_of(message).next()?.sent);
        self.incarnation_between(here, first, self.evidence.clock.nanos(row.stored)).or_else(|| {
            let mut same = self.book.attempts_of(message).filter(|attempt| position(attempt) == Some(here));
            let found = self.incarnation(same.next()?)?;
            same.all(|attempt| self.incarnation(attempt) == Some(found)).then_some(found)
        })
    }

    /// Returns the incarnation of a position that was named between `began` and `ended`; none if it may be one of
    /// several. A partition gets a new incarnation when the topic is recreated and, from the first lost offset on, when
    /// the end of its log is lost.
    pub(super) fn incarnation_between(&self, position: Position, began: Nanos, ended: Nanos) -> Option<Incarnation> {
        let Evidence { topics, truncations, .. } = self.evidence;
        let topic = topics.iter().filter(|topic| topic.made <= began).count();
        if topic != topics.iter().filter(|topic| topic.deleted < ended).count() {
            return None;
        }
        let made_before = |at: Nanos| topics.iter().filter(|topic| topic.made <= at).count();
        let of_it =
            |cut: &&Truncation| cut.partition == position.0 && position.1 >= cut.end && made_before(cut.at) == topic;
        let cuts = || truncations.iter().filter(of_it);
        let before = cuts().filter(|cut| cut.over <= began).count();
        let same = before == cuts().filter(|cut| cut.at < ended).count();
        same.then_some(Incarnation { topic, tail: before })
    }

    pub(super) fn name(&self, message: u32) -> String {
        let message = &self.book.messages[message as usize];
        format!("message {} of sender-{} to inbox-{}", message.n, message.sender, message.inbox)
    }
}

/// Whether the record of an attempt must become a row or a duplicate of one.
pub(super) fn is_accepted(attempt: &Attempt) -> bool {
    !attempt.altered && matches!(attempt.outcome, Outcome::Ok(..) | Outcome::Stored { .. } | Outcome::NotStoredYet(..))
}

/// Returns the position of an attempt's record. Kafka can confirm a repeated record without its position: the offset is
/// negative.
pub(super) fn position(attempt: &Attempt) -> Option<Position> {
    attempt.outcome.position().filter(|(_, offset)| *offset >= 0)
}

/// Whether a dead letter is of a record with other content under a known ID, and has the reason for it.
pub(super) fn is_conflict(letter: &DeadLetter) -> bool {
    letter.altered && letter.reason == "IDEMPOTENCY_CONFLICT"
}

pub(super) fn is_unknown(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::Unknown(_))
}

/// Returns the entry of a list by partition; 0 if there is none.
pub(super) fn at(list: &[i64], partition: i32) -> i64 {
    usize::try_from(partition).ok().and_then(|partition| list.get(partition)).copied().unwrap_or(0)
}

pub(super) fn row_name(row: &Row) -> String {
    format!("inbox-{} seq {} (message {} of sender-{})", row.inbox, row.seq, row.n, row.sender)
}

pub(super) fn position_name((partition, offset): Position) -> String {
    format!("partition {partition} offset {offset}")
}
