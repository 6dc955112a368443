//! Owns the changes of rows, dead letters, outcomes and offsets, each with the findings that must be broken.

use super::super::super::evidence::Row;
use super::super::super::history::{Event, Outcome};
use super::what::*;
use super::world::World;

pub(super) type Change = fn(&mut World);

fn row(sender: u32, n: u32, inbox: u32, partition: i32, offset: i64) -> Row {
    Row { inbox, seq: 0, sender, n, partition, offset, sent: 0, stored: 0, same: true }
}

fn stored(world: &mut World, message: (u32, u32), attempt: usize) -> (&mut i64, &mut bool) {
    match world.outcome(message, attempt) {
        Outcome::Stored { seq, duplicate, .. } => (seq, duplicate),
        other => panic!("{other:?} is not stored"),
    }
}

/// Returns a time during the first attempt of a message, as a gateway sets it in the record.
fn first_sent(world: &World, wanted: u32, n: u32) -> i64 {
    let mut sends = world.lines.iter().filter_map(|line| match line {
        Event::Send { at, sender, msgs, .. } if *sender == wanted && msgs.iter().any(|msg| msg.0 == n) => Some(*at),
        _ => None,
    });
    let first = i64::try_from(sends.next().expect("it was sent") / 1000).expect("small");
    world.evidence.clock.micros + first + 1
}

/// A name, the change, and the findings that must be broken.
pub(super) const FAULTS: &[(&str, Change, &[&str])] = &[
    ("the last row of an inbox is lost", |world| world.lose(3, 5), &[LOST]),
    ("a row is lost", |world| world.lose(3, 1), &[LOST, GAPS]),
    ("a row whose only OK was a retry is lost", |world| world.lose(4, 2), &[LOST]),
    (
        "a message has two rows with different seqs",
        |world| {
            let row = world.row(3, 0).clone();
            world.store(&row);
        },
        &[DUPLICATED],
    ),
    ("a seq is skipped", |world| world.row(3, 5).seq += 1, &[GAPS]),
    (
        "two rows have the same seq",
        |world| {
            world.row(4, 2).seq -= 1;
        },
        &[GAPS],
    ),
    ("two rows swapped their seqs", |world| world.swap_seqs((1, 1), (4, 4)), &[STORED, TIMES, KAFKA, STATUS]),
    (
        "two rows swapped their messages, and so their positions",
        |world| world.swap_messages((4, 4), (4, 5)),
        &[STORED, TIMES, FIRSTS, ALONG, POSITIONS],
    ),
    ("two concurrent messages are not in Kafka's order", |world| world.swap_seqs((4, 0), (5, 0)), &[KAFKA]),
    ("a batch went to Kafka in another order", |world| world.swap_records((2, 0), (2, 1)), &[CHANNELS]),
    ("a stream went to Kafka in another order", |world| world.swap_records((3, 0), (3, 1)), &[CHANNELS]),
    ("a later message overtook one with an OK", |world| world.swap_records((3, 3), (4, 0)), &[TIMES]),
    (
        "a row is of the second delivery",
        |world| {
            let second = world.outcome((4, 5), 1).position().expect("the message was accepted");
            world.row(4, 5).offset = second.1;
            *stored(world, (4, 5), 2).1 = true;
        },
        &[FIRSTS],
    ),
    (
        "a row is of a record that no response named",
        |world| {
            let unknown = world.row(1, 6).offset;
            world.lose(1, 6);
            world.row(4, 6).seq = 1;
            let row = world.row(1, 7);
            (row.offset, row.sent) = (unknown, 0);
        },
        &[FIRSTS, ALONG],
    ),
    (
        "a row is in another partition than its inbox",
        |world| {
            let row = world.row(4, 2);
            (row.partition, row.offset) = (0, 99);
        },
        &[KAFKA, FIRSTS],
    ),
    ("a row is not as it was sent", |world| world.row(3, 2).same = false, &[CONTENT]),
    (
        "a message is in another inbox",
        |world| {
            let row = world.row(3, 5);
            (row.inbox, row.seq) = (1, 4);
        },
        &[CONTENT],
    ),
    ("a row is of an unknown sender", |world| world.store(&row(99, 0, 1, 1, 99)), &[FOREIGN]),
    ("a row has a number that was not sent", |world| world.store(&row(1, 99, 1, 1, 99)), &[FOREIGN]),
    ("a row does not belong to the load", |world| world.evidence.foreign.push("a row of x".to_owned()), &[FOREIGN]),
    ("a dead letter is of an unknown sender", |world| world.dead_letter(0, 99, Some((99, 0))), &[FOREIGN]),
    (
        "an accepted message was dead-lettered",
        |world| {
            let (partition, offset) = world.outcome((3, 5), 0).position().expect("the message was accepted");
            world.lose(3, 5);
            world.evidence.commits.clear();
            world.dead_letter(partition, offset, Some((3, 5)));
        },
        &[CAUSED],
    ),
    ("a dead letter without a message is not the lab's", |world| world.dead_letter(0, 99, None), &[CAUSED]),
    (
        "a poison record is lost",
        |world| {
            world.evidence.dead_letters.remove(0);
        },
        &[POISON],
    ),
    (
        "a reported dead letter is lost",
        |world| world.evidence.dead_letters.retain(|letter| letter.message.is_none() || letter.altered),
        &[LETTERS],
    ),
    (
        "a reported dead letter is at another position",
        |world| {
            let mut letters = world.evidence.dead_letters.iter_mut();
            letters.find(|letter| letter.message.is_some()).expect("there is a dead letter").offset = 99;
        },
        &[LETTERS, CAUSED],
    ),
    ("STORED was reported with another seq", |world| *stored(world, (1, 1), 0).0 += 1, &[STORED, NEVER_LESS]),
    ("STORED reported a new row as a duplicate", |world| *stored(world, (1, 1), 0).1 = true, &[STORED]),
    ("STORED reported a duplicate as a new row", |world| *stored(world, (4, 5), 2).1 = false, &[STORED]),
    (
        "a message that was never sent is stored",
        |world| {
            let offset = world.record(0);
            world.store(&row(1, 3, 2, 0, offset));
            world.drain();
        },
        &[FIRSTS, NOT_SENT],
    ),
    (
        "a message that was never sent is dead-lettered",
        |world| world.dead_letter(0, 99, Some((1, 3))),
        &[CAUSED, NOT_SENT],
    ),
    (
        "a response names another record than the row",
        |world| {
            world.sent_twice();
            world.row(3, 5).sent -= 60_000_000;
        },
        &[FIRSTS],
    ),
    (
        "a row is of an attempt that was not sent",
        |world| {
            let offset = world.record(0);
            *world.outcome((3, 2), 1) = Outcome::Ok(0, offset);
            let first = first_sent(world, 3, 2);
            world.row(3, 2).sent = first;
            world.drain();
        },
        &[FIRSTS, ATTEMPTS],
    ),
    (
        "two attempts of one message have one position",
        |world| *world.outcome((4, 5), 1) = world.outcome((4, 5), 0).clone(),
        &[POSITIONS],
    ),
    (
        "two messages have one position",
        |world| {
            let (partition, offset) = world.outcome((1, 1), 0).position().expect("the message was accepted");
            *world.outcome((4, 4), 0) = Outcome::Ok(partition, offset);
        },
        &[FIRSTS, ALONG, POSITIONS],
    ),
    (
        "a response names the position of a poison record",
        |world| {
            let (partition, offset) = world.evidence.poison[1];
            *world.outcome((4, 5), 1) = Outcome::Ok(partition, offset);
        },
        &[FIRSTS, ALONG, POSITIONS],
    ),
    ("a position is above the end offset", |world| *world.outcome((4, 5), 1) = Outcome::Ok(1, 99), &[RECORDS]),
    (
        "Kafka has more records than were sent",
        |world| {
            for list in [&mut world.evidence.ends, &mut world.evidence.committed, &mut world.evidence.progress] {
                list[1] += 4;
            }
        },
        &[RECORDS],
    ),
    (
        "a message was accepted while none can be",
        |world| {
            let (first, last) = (world.evidence.commits[0].clone(), world.evidence.commits[3].clone());
            let clock = world.evidence.clock;
            let fault = &mut world.evidence.faults[0];
            (fault.broken, fault.over) = (clock.nanos(first.at), clock.nanos(last.at));
        },
        &[FORBIDDEN],
    ),
    (
        "a commit was ahead of a row",
        |world| {
            let stored = world.row(3, 5).stored;
            let before = world
                .evidence
                .commits
                .iter()
                .rposition(|commits| commits.at < stored)
                .expect("there are commits before");
            let after = world.evidence.commits[before + 1].next.clone();
            world.evidence.commits[before].next = after;
        },
        &[ALONG],
    ),
    ("a commit was ahead of a row by a moment", |world| world.row(4, 5).stored += 2001, &[ALONG]),
    ("a commit was ahead of a dead letter", |world| world.evidence.dead_letters[0].seen += 10_000_000, &[ALONG]),
    ("a partition is not drained", |world| world.evidence.committed[0] -= 1, &[AT_REST]),
    ("a commit is above the progress row", |world| world.evidence.progress[0] -= 1, &[AT_REST]),
    ("the progress row is above the end offset", |world| world.evidence.progress[0] += 1, &[AT_REST]),
    (
        "a call has two responses",
        |world| {
            let mut lines = world.lines.iter();
            let response =
                lines.find(|line| matches!(line, Event::Outcomes { .. })).expect("there are responses").clone();
            world.lines.push(response);
        },
        &[HISTORY],
    ),
    (
        "a response is of no call",
        |world| {
            let results = vec![(0, Outcome::NotSent("NOT_SENT".to_owned()))];
            world.lines.push(Event::Outcomes { call: 999, at: 1, results });
        },
        &[HISTORY],
    ),
    (
        "a row is of an attempt that was reported as not sent",
        |world| {
            let first = first_sent(world, 1, 4);
            world.row(1, 4).sent = first;
        },
        &[ATTEMPTS],
    ),
];

/// A name, and a change that breaks no promise.
pub(super) const ALLOWED: &[(&str, Change)] = &[
    ("an unknown message is not stored", |world| world.lose(4, 6)),
    ("Kafka has a record twice after the broker did not respond for long", |world| {
        *world.sent_twice() += 8_000_000_000;
        world.row(3, 5).sent = 0;
    }),
    ("Kafka has a record twice, both of the same attempt", |world| {
        world.sent_twice();
    }),
    ("a message of unknown outcome is stored", |world| {
        let offset = world.record(0);
        world.store(&row(1, 5, 2, 0, offset));
        world.drain();
    }),
    ("the last message has no response", |world| {
        let last =
            world.lines.iter().rposition(|line| matches!(line, Event::Outcomes { .. })).expect("there are responses");
        world.lines.remove(last);
    }),
    ("Kafka confirmed a repeated record without its position", |world| *world.outcome((4, 5), 1) = Outcome::Ok(1, -1)),
    ("Kafka confirmed two records without their positions", |world| {
        *world.outcome((3, 5), 0) = Outcome::Ok(0, -1);
        *world.outcome((4, 3), 1) = Outcome::NotStoredYet(0, -1);
    }),
];
