//! Puts a history together: every attempt to send a message, with its outcome, and every read.

use std::collections::HashMap;

use super::{Event, Nanos, Outcome, ReadWay, State, Way};

/// Marks that an attempt has no next attempt.
const NONE: u32 = u32::MAX;

/// The requests and responses of the load, over all files.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) messages: Vec<Message>,
    /// In the order of the files: the attempts of one message, one sender or one channel are in the order in which they
    /// were sent.
    pub(crate) attempts: Vec<Attempt>,
    /// In the order of the files: the reads of one reader are in order.
    pub(crate) reads: Vec<Read>,
    pub(crate) max_seqs: Vec<MaxSeq>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) failed_reads: Vec<Nanos>,
    /// Lines that contradict earlier lines.
    pub(crate) contradictions: Vec<String>,
    /// The next attempt of the same message, by attempt.
    next: Vec<u32>,
    read_msgs: Vec<(i64, u32, u32)>,
    by_id: HashMap<(u32, u32), u32>,
    /// By file and call: the first attempt, and the number of attempts.
    calls: Vec<Vec<(u32, u32)>>,
    /// By file and stream: the channel, and the number of its entries so far.
    streams: HashMap<(u32, u64), (u32, u32)>,
    channels: u32,
}

/// A message: number `n` of a sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) sender: u32,
    pub(crate) n: u32,
    pub(crate) inbox: u32,
    first: u32,
    last: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// The index of the message in [`Book::messages`].
    pub(crate) message: u32,
    pub(crate) sent: Nanos,
    /// When the response arrived; none if there was no response.
    pub(crate) responded: Option<Nanos>,
    pub(crate) way: Way,
    /// Whether the request has `wait_for: STORED`.
    pub(crate) stored: bool,
    /// Whether the content differs from the content of the message.
    pub(crate) altered: bool,
    /// The number of the call or the stream, counted over all files.
    pub(crate) channel: u32,
    /// The number of the entry in its channel.
    pub(crate) order: u32,
    /// The outcome; unknown if there was no response.
    pub(crate) outcome: Outcome,
}

/// A page, or an event of a watch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) reader: u32,
    pub(crate) way: ReadWay,
    pub(crate) requested: Nanos,
    pub(crate) at: Nanos,
    pub(crate) inbox: u32,
    pub(crate) from: i64,
    /// For a pull: whether this page is the last one.
    pub(crate) end: bool,
    first: usize,
    len: u32,
}

/// The last seq of one inbox, as GetMaxSeqs returned it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxSeq {
    pub(crate) reader: u32,
    pub(crate) requested: Nanos,
    pub(crate) at: Nanos,
    pub(crate) inbox: u32,
    pub(crate) seq: i64,
}

/// The result of GetMsgStatus for a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) requested: Nanos,
    pub(crate) sender: u32,
    pub(crate) n: u32,
    pub(crate) state: State,
}

impl Book {
    /// Adds the next line of a file. Files are numbered from 0.
    pub(crate) fn add(&mut self, file: u32, event: Event) {
        match event {
            Event::Send { call, at: sent, sender, way, stream, stored, altered, msgs, .. } => {
                let (channel, mut order) = self.channel(file, stream);
                self.open(file, call, msgs.len());
                for (n, inbox) in msgs {
                    let message = self.message(sender, n, inbox);
                    let outcome = Outcome::Unknown("no response".to_owned());
                    let responded = None;
                    self.attempts.push(Attempt {
                        message,
                        sent,
                        responded,
                        way,
                        stored,
                        altered,
                        channel,
                        order,
                        outcome,
                    });
                    order += 1;
                }
                if let Some(stream) = stream {
                    self.streams.insert((file, stream), (channel, order));
                }
            }
            Event::Outcomes { call, at, results } => {
                for (index, outcome) in results {
                    self.set_outcome(file, call, index, at, outcome);
                }
            }
            Event::Read { reader, way, requested, at, inbox, from, msgs, end } => {
                let (first, len) = (self.read_msgs.len(), small(msgs.len()));
                self.read_msgs.extend(msgs);
                self.reads.push(Read { reader, way, requested, at, inbox, from, end, first, len });
            }
            Event::MaxSeqs { reader, requested, at, seqs } => {
                let seqs = seqs.into_iter().map(|(inbox, seq)| MaxSeq { reader, requested, at, inbox, seq });
                self.max_seqs.extend(seqs);
            }
            Event::Status { requested, sender, n, state, .. } => {
                self.statuses.push(Status { requested, sender, n, state });
            }
            Event::ReadFailed { at, .. } => self.failed_reads.push(at),
        }
    }

    /// Returns the index of a message.
    pub(crate) fn find(&self, sender: u32, n: u32) -> Option<u32> {
        self.by_id.get(&(sender, n)).copied()
    }

    /// Returns the attempts of a message in the order in which they were sent; there is at least one.
    pub(crate) fn attempts_of(&self, message: u32) -> impl Iterator<Item = &Attempt> {
        let first = self.messages[message as usize].first;
        let next = |at: &u32| Some(self.next[*at as usize]).filter(|next| *next != NONE);
        std::iter::successors(Some(first), next).map(|at| &self.attempts[at as usize])
    }

    /// Returns the messages of a page or an event: seq, sender, `n`.
    pub(crate) fn msgs(&self, read: &Read) -> &[(i64, u32, u32)] {
        &self.read_msgs[read.first..][..read.len as usize]
    }

    fn channel(&mut self, file: u32, stream: Option<u64>) -> (u32, u32) {
        if let Some(known) = stream.and_then(|stream| self.streams.get(&(file, stream))) {
            return *known;
        }
        self.channels += 1;
        (self.channels - 1, 0)
    }

    fn open(&mut self, file: u32, call: u64, len: usize) {
        let (file, at) = (file as usize, usize::try_from(call).expect("64 bits"));
        if self.calls.len() <= file {
            self.calls.resize(file + 1, Vec::new());
        }
        let calls = &mut self.calls[file];
        if calls.len() <= at {
            calls.resize(at + 1, (NONE, 0));
        }
        if calls[at].0 != NONE {
            self.contradictions.push(format!("file {file}: call {call} was sent twice"));
        }
        calls[at] = (small(self.attempts.len()), small(len));
    }

    /// Adds a message, or returns the known one. The caller adds an attempt next.
    fn message(&mut self, sender: u32, n: u32, inbox: u32) -> u32 {
        let attempt = small(self.attempts.len());
        self.next.push(NONE);
        let new = small(self.messages.len());
        let at = *self.by_id.entry((sender, n)).or_insert(new);
        if at == new {
            self.messages.push(Message { sender, n, inbox, first: attempt, last: attempt });
            return new;
        }
        let known = &mut self.messages[at as usize];
        if known.inbox != inbox {
            let problem = format!("sender {sender}: message {n} went to inbox {} and to {inbox}", known.inbox);
            self.contradictions.push(problem);
        }
        self.next[known.last as usize] = attempt;
        known.last = attempt;
        at
    }

    fn set_outcome(&mut self, file: u32, call: u64, index: u32, at: Nanos, outcome: Outcome) {
        let calls = self.calls.get(file as usize);
        let known = usize::try_from(call).ok().and_then(|call| calls?.get(call));
        let Some((first, _)) = known.filter(|(_, len)| index < *len) else {
            return self.contradictions.push(format!("file {file}: call {call} has no message {index}"));
        };
        let attempt = &mut self.attempts[(first + index) as usize];
        if attempt.responded.is_some() {
            let problem = format!("file {file}: message {index} of call {call} has two outcomes");
            return self.contradictions.push(problem);
        }
        attempt.responded = Some(at);
        attempt.outcome = outcome;
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than 4 billion")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(call: u64, at: Nanos, stream: Option<u64>, msgs: &[(u32, u32)]) -> Event {
        let way = if stream.is_some() { Way::Stream } else { Way::Batch };
        Event::Send { call, at, sender: 5, way, stream, stored: false, altered: false, gateway: 1, msgs: msgs.to_vec() }
    }

    #[test]
    fn attempts_are_of_their_message_and_in_order() {
        let mut book = Book::default();
        book.add(0, send(0, 10, None, &[(0, 7), (1, 8)]));
        book.add(0, send(1, 20, None, &[(1, 8), (2, 7)]));
        book.add(1, Event::Outcomes { call: 0, at: 25, results: vec![(0, Outcome::Ok(9, 9))] });
        book.add(0, Event::Outcomes { call: 1, at: 30, results: vec![(0, Outcome::Ok(3, 4))] });
        assert_eq!(
            book.messages.iter().map(|message| (message.n, message.inbox)).collect::<Vec<_>>(),
            [(0, 7), (1, 8), (2, 7)]
        );
        let message = book.find(5, 1).expect("the message was sent");
        let attempts: Vec<_> = book.attempts_of(message).map(|a| (a.sent, a.responded, a.channel, a.order)).collect();
        assert_eq!(attempts, [(10, None, 0, 1), (20, Some(30), 1, 0)]);
        assert_eq!(book.attempts[1].outcome, Outcome::Unknown("no response".to_owned()));
        assert_eq!(book.attempts[2].outcome, Outcome::Ok(3, 4));
        assert_eq!(book.contradictions, ["file 1: call 0 has no message 0"]);
    }

    #[test]
    fn entries_of_a_stream_count_over_its_calls() {
        let mut book = Book::default();
        for (file, call, stream) in [(0, 1, 1), (0, 2, 2), (0, 3, 1), (1, 1, 1)] {
            let n = file * 10 + u32::try_from(call).expect("small");
            book.add(file, send(call, 0, Some(stream), &[(n, 0), (n + 100, 0)]));
        }
        let entries: Vec<_> = book.attempts.iter().map(|a| (a.channel, a.order)).collect();
        assert_eq!(entries, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (2, 0), (2, 1)]);
    }

    #[test]
    fn contradictory_lines_are_recorded() {
        let mut book = Book::default();
        book.add(0, send(0, 10, None, &[(0, 7)]));
        book.add(0, send(0, 10, None, &[(0, 8)]));
        for index in [0, 0, 1] {
            book.add(0, Event::Outcomes { call: 0, at: 20, results: vec![(index, Outcome::Ok(0, 0))] });
        }
        let expected = [
            "file 0: call 0 was sent twice",
            "sender 5: message 0 went to inbox 7 and to 8",
            "file 0: message 0 of call 0 has two outcomes",
            "file 0: call 0 has no message 1",
        ];
        assert_eq!(book.contradictions, expected);
    }

    #[test]
    fn reads_keep_their_messages() {
        let mut book = Book::default();
        for first in [1, 3] {
            let msgs = vec![(first, 5, 0), (first + 1, 5, 1)];
            let (reader, way, inbox, from) = (2, ReadWay::Watch, 7, first);
            book.add(0, Event::Read { reader, way, requested: 1, at: 2, inbox, from, msgs, end: false });
        }
        book.add(0, Event::MaxSeqs { reader: 2, requested: 3, at: 4, seqs: vec![(7, 4), (8, 0)] });
        assert_eq!(book.msgs(&book.reads[1]), [(3, 5, 0), (4, 5, 1)]);
        assert_eq!((book.max_seqs[1].inbox, book.max_seqs[0].seq), (8, 4));
    }
}
