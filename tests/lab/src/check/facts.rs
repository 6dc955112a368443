//! Owns what every check looks things up in: the rows by inbox and seq, which message each is, and which incarnation of its
//! partition a place belongs to.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::super::evidence::{DeadLetter, Evidence, NewTopic, Row, Truncation};
use super::super::history::{Attempt, Book, Nanos, Outcome};

/// How long the gateway waits for a broker's answer before it sends a record again.
const REQUEST_TIMEOUT: Nanos = 8_000_000_000;

const MILLISECOND: Nanos = 1_000_000;

/// Partition and offset.
pub(super) type Place = (i32, i64);

/// Which log of a partition an offset is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Incarnation {
    /// How often the topic had been recreated.
    pub(super) topic: usize,
    /// How often the end of this partition's log had been lost since. Those of two partitions have no order.
    pub(super) tail: usize,
}

/// The history and the evidence, with what finds things in them.
pub(super) struct Facts<'a> {
    pub(super) book: &'a Book,
    pub(super) evidence: &'a Evidence,
    /// By inbox and seq, each with its message; none where it was not sent.
    pub(super) rows: Vec<(&'a Row, Option<u32>)>,
    pub(super) poison: HashSet<Place>,
    /// By message: its row, of several the first.
    row_of: Vec<Option<&'a Row>>,
    inboxes: HashMap<u32, Range<usize>>,
    letters: HashMap<Place, Vec<&'a DeadLetter>>,
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
        let mut letters: HashMap<Place, Vec<&DeadLetter>> = HashMap::new();
        for letter in &evidence.dead_letters {
            letters.entry((letter.partition, letter.offset)).or_default().push(letter);
        }
        Facts { book, evidence, rows, poison: evidence.poison.iter().copied().collect(), row_of, inboxes, letters }
    }

    /// The row of a message.
    pub(super) fn row_of(&self, message: u32) -> Option<&'a Row> {
        self.row_of[message as usize]
    }

    /// The row of a message, where its seq counts: in its own inbox.
    pub(super) fn row_in_order(&self, message: u32) -> Option<&'a Row> {
        self.row_of(message).filter(|row| row.inbox == self.book.messages[message as usize].inbox)
    }

    /// The row of an inbox with this seq.
    pub(super) fn row_at(&self, inbox: u32, seq: i64) -> Option<&'a Row> {
        let rows = &self.rows[self.inboxes.get(&inbox)?.clone()];
        rows.binary_search_by_key(&seq, |(row, _)| row.seq).ok().map(|at| rows[at].0)
    }

    /// The highest seq of an inbox; 0 where nothing is.
    pub(super) fn max_seq(&self, inbox: u32) -> i64 {
        self.inboxes.get(&inbox).map_or(0, |rows| self.rows[rows.end - 1].0.seq)
    }

    /// The dead letter at a place that holds this message, or none where none is given.
    pub(super) fn letter(&self, place: Place, message: Option<u32>) -> Option<&'a DeadLetter> {
        let message = message.map(|message| &self.book.messages[message as usize]).map(|known| (known.sender, known.n));
        self.letters.get(&place)?.iter().find(|letter| letter.message == message).copied()
    }

    /// The attempts of a message whose records must become its row, or a repeat of it: those that were accepted, but not those
    /// that were kept aside or that the lab destroyed in Kafka.
    pub(super) fn delivered(&self, message: u32) -> impl Iterator<Item = &'a Attempt> {
        self.book.attempts_of(message).filter(|attempt| is_accepted(attempt) && !self.was_destroyed(attempt))
    }

    /// Whether the record of an accepted attempt can have been above the progress when its topic was deleted, or when the end of its
    /// partition's log was lost.
    pub(super) fn was_destroyed(&self, attempt: &Attempt) -> bool {
        let Some((partition, offset)) = attempt.outcome.place() else { return false };
        let (sent, told) = (attempt.sent, attempt.told.unwrap_or(Nanos::MAX));
        let above = |progress: i64| offset < 0 || offset >= progress;
        // It can be in each topic that was not made anew yet when it was sent, up to the one that was there when it was told.
        let topics = &self.evidence.topics;
        let current = topics.iter().filter(|topic| topic.deleted < told).count();
        let with_topic = |topic: &NewTopic| topic.made > sent && above(at(&topic.progress, partition));
        let with_tail =
            |cut: &Truncation| cut.partition == partition && cut.over > sent && above(cut.stored.max(cut.end));
        topics.iter().take(current + 1).any(with_topic) || self.evidence.truncations.iter().any(with_tail)
    }

    /// Whether offsets of the partition were given out twice.
    pub(super) fn begins_again(&self, partition: i32) -> bool {
        let cut = |cut: &Truncation| cut.partition == partition;
        !self.evidence.topics.is_empty() || self.evidence.truncations.iter().any(cut)
    }

    /// Whether the record of an accepted attempt can be in Kafka twice, and its answer name the second: an idempotent producer that has
    /// begun another epoch sends again what it had sent in the last one and heard nothing of.
    pub(super) fn may_be_twice(&self, attempt: &Attempt) -> bool {
        let waited = attempt.told.is_some_and(|told| told - attempt.sent >= REQUEST_TIMEOUT);
        let not_sent = |other: &Attempt| matches!(other.outcome, Outcome::NotSent(_));
        waited && is_accepted(attempt) && !self.book.attempts_of(attempt.message).any(not_sent)
    }

    /// Whether a row is of this attempt: a gateway gave its record a time between the request and the answer.
    pub(super) fn is_of(&self, row: &Row, attempt: &Attempt) -> bool {
        let sent = self.evidence.clock.nanos(row.sent);
        // The record has whole milliseconds.
        sent + MILLISECOND >= attempt.sent && attempt.told.is_none_or(|told| sent <= told)
    }

    /// In which incarnation of its partition the record of an attempt is; none where it can be in either.
    pub(super) fn incarnation(&self, attempt: &Attempt) -> Option<Incarnation> {
        self.incarnation_between(attempt.outcome.place()?, attempt.sent, attempt.told.unwrap_or(Nanos::MAX))
    }

    /// In which one the record of a row was.
    pub(super) fn incarnation_of_row(&self, row: &Row, message: u32) -> Option<Incarnation> {
        let (here, first) = ((row.partition, row.offset), self.book.attempts_of(message).next()?.sent);
        self.incarnation_between(here, first, self.evidence.clock.nanos(row.stored)).or_else(|| {
            let mut same = self.book.attempts_of(message).filter(|attempt| place(attempt) == Some(here));
            let found = self.incarnation(same.next()?)?;
            same.all(|attempt| self.incarnation(attempt) == Some(found)).then_some(found)
        })
    }

    /// In which one a place was that something named which began and ended then. A partition has another incarnation when the topic
    /// is made anew, and when the end of its log is lost: of that, from the lost offsets on.
    pub(super) fn incarnation_between(&self, place: Place, began: Nanos, ended: Nanos) -> Option<Incarnation> {
        let Evidence { topics, truncations, .. } = self.evidence;
        let topic = topics.iter().filter(|topic| topic.made <= began).count();
        if topic != topics.iter().filter(|topic| topic.deleted < ended).count() {
            return None;
        }
        let made_before = |at: Nanos| topics.iter().filter(|topic| topic.made <= at).count();
        let of_it = |cut: &&Truncation| cut.partition == place.0 && place.1 >= cut.end && made_before(cut.at) == topic;
        let cuts = || truncations.iter().filter(of_it);
        let before = cuts().filter(|cut| cut.over <= began).count();
        let same = before == cuts().filter(|cut| cut.at < ended).count();
        same.then_some(Incarnation { topic, tail: before })
    }

    /// A message in words.
    pub(super) fn name(&self, message: u32) -> String {
        let message = &self.book.messages[message as usize];
        format!("message {} of sender-{} to inbox-{}", message.n, message.sender, message.inbox)
    }
}

/// Whether its record must become a row, or is a repeat of one.
pub(super) fn is_accepted(attempt: &Attempt) -> bool {
    !attempt.altered && matches!(attempt.outcome, Outcome::Ok(..) | Outcome::Stored { .. } | Outcome::NotStoredYet(..))
}

/// Where the record of an attempt is. Kafka can confirm a repeat of a record without telling where it is: its offset is negative.
pub(super) fn place(attempt: &Attempt) -> Option<Place> {
    attempt.outcome.place().filter(|(_, offset)| *offset >= 0)
}

/// Whether this dead letter is what the transfer makes of a record with other content under a known ID.
pub(super) fn is_conflict(letter: &DeadLetter) -> bool {
    letter.altered && letter.reason == "IDEMPOTENCY_CONFLICT"
}

/// Whether its record may be there or not.
pub(super) fn is_unknown(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::Unknown(_))
}

/// What a list by partition says; 0 where it says nothing.
pub(super) fn at(list: &[i64], partition: i32) -> i64 {
    usize::try_from(partition).ok().and_then(|partition| list.get(partition)).copied().unwrap_or(0)
}

/// A row in words.
pub(super) fn row_name(row: &Row) -> String {
    format!("inbox-{} seq {} (message {} of sender-{})", row.inbox, row.seq, row.n, row.sender)
}

/// A place in words.
pub(super) fn place_name((partition, offset): Place) -> String {
    format!("partition {partition} offset {offset}")
}
