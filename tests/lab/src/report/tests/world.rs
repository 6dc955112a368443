//! A small run whose every moment is known.

use super::super::moments::Moments;
use super::super::recovery::{Recovery, recoveries};
use super::super::timeline::Timeline;
use crate::evidence::{Clock, Evidence, Fault, Row};
use crate::history::{Book, Event, Nanos, Outcome, Way};

/// When the load started on the lab's clock. It is not 0, so a figure that ignores the start fails a test.
pub(super) const BEGAN: Nanos = millis(7_000_000);

pub(super) const fn millis(millis: u64) -> Nanos {
    millis * 1_000_000
}

/// A run; all times are in milliseconds from the start of the load.
pub(super) struct World {
    pub(super) book: Book,
    pub(super) evidence: Evidence,
    calls: u64,
}

impl World {
    pub(super) fn new(ended: u64) -> World {
        let evidence = Evidence {
            clock: Clock { at: BEGAN + millis(5_000), micros: 1_700_000_000_000_000 },
            began: BEGAN,
            ended: BEGAN + millis(ended),
            ..Evidence::default()
        };
        World { book: Book::default(), evidence, calls: 0 }
    }

    pub(super) fn send(&mut self, at: u64, way: Way, stored: bool, outcome: Option<(u64, Outcome)>) {
        let call = self.calls;
        self.calls += 1;
        let n = u32::try_from(call).expect("a few");
        let msgs = vec![(n, 0)];
        self.book.add(
            0,
            Event::Send {
                call,
                at: BEGAN + millis(at),
                sender: 1,
                way,
                stream: None,
                stored,
                altered: false,
                gateway: 0,
                msgs,
            },
        );
        if let Some((at, outcome)) = outcome {
            self.book.add(0, Event::Outcomes { call, at: BEGAN + millis(at), results: vec![(0, outcome)] });
        }
    }

    /// Adds an attempt that was accepted 10 ms after it was sent.
    pub(super) fn accept(&mut self, at: u64, partition: i32) {
        self.send(at - 10, Way::Unary, false, Some((at, Outcome::Ok(partition, 0))));
    }

    pub(super) fn row(&mut self, at: u64, partition: i32) {
        let stored = self.evidence.clock.micros + (i64::try_from(at).expect("small") - 5_000) * 1000;
        let (inbox, seq, sender, n, offset) = (0, 0, 1, 0, 0);
        let (sent, same) = (stored, true);
        self.evidence.rows.push(Row { inbox, seq, sender, n, partition, offset, sent, stored, same });
    }

    /// Adds an accepted attempt and a row every 100 ms.
    pub(super) fn traffic(&mut self, from: u64, to: u64, partition: i32) {
        for at in (from..to).step_by(100) {
            self.accept(at + 50, partition);
            self.row(at + 60, partition);
        }
    }

    pub(super) fn fault(&mut self, began: u64, healed: u64) {
        let at = |at| BEGAN + millis(at);
        self.evidence.faults.push(Fault {
            name: "kill-broker".to_owned(),
            target: "broker-2".to_owned(),
            began: at(began),
            broken: at(began),
            over: at(healed),
            healed: at(healed),
            no_ok: false,
            kills: 1,
            says: Vec::new(),
        });
    }

    pub(super) fn lag(&mut self, samples: &[(u64, Option<i64>)]) {
        self.evidence.lag.extend(samples.iter().map(|(at, lag)| (BEGAN + millis(*at), *lag)));
    }

    pub(super) fn recoveries(&self) -> Vec<Recovery> {
        recoveries(&Moments::of(&self.book, &self.evidence), &self.evidence)
    }

    pub(super) fn recovery(&self) -> Recovery {
        self.recoveries().remove(0)
    }

    pub(super) fn timeline(&self) -> Timeline {
        Timeline::of(&Moments::of(&self.book, &self.evidence), &self.evidence)
    }
}
