//! Owns the changes of what readers received, each with the findings that must be broken.

use super::super::super::evidence::Fault;
use super::super::super::history::{ReadWay, State};
use super::cases::Change;
use super::what::*;

/// A name, the change, and the findings that must be broken.
pub(super) const FAULTS: &[(&str, Change, &[&str])] = &[
    (
        "a page has a gap",
        |world| {
            world.read(ReadWay::Pull, 1).remove(2);
        },
        &[PULLS],
    ),
    (
        "a page starts too late",
        |world| {
            world.read(ReadWay::Pull, 2).remove(0);
        },
        &[PULLS],
    ),
    ("a page is out of order", |world| world.read(ReadWay::Pull, 1).swap(2, 3), &[PULLS]),
    (
        "a pull misses a message that a watch had sent",
        |world| {
            world.read(ReadWay::Pull, 2).pop();
        },
        &[NEVER_LESS],
    ),
    ("a pull finds an inbox empty", |world| world.read(ReadWay::Pull, 1).clear(), &[NEVER_LESS]),
    ("a pull returns another message", |world| world.read(ReadWay::Pull, 0)[1].2 = 0, &[SAME]),
    ("the last seq went back", |world| world.seqs(1)[0].1 -= 1, &[NEVER_LESS]),
    ("the last seq is less than the one of STORED", |world| world.seqs(0)[1].1 = 0, &[NEVER_LESS]),
    ("the last seq is more than the table has", |world| world.seqs(1)[1].1 = 6, &[SAME, SILENT]),
    (
        "a watch has a gap",
        |world| {
            world.read(ReadWay::Watch, 2).remove(0);
        },
        &[WATCHES],
    ),
    ("a watch misses an event", |world| world.read(ReadWay::Watch, 1).clear(), &[WATCHES]),
    (
        "a watch sends a message twice",
        |world| {
            let twice = world.read(ReadWay::Watch, 0).clone();
            world.read(ReadWay::Watch, 1).splice(0..0, twice);
        },
        &[WATCHES],
    ),
    ("a watch is out of order", |world| world.read(ReadWay::Watch, 2).swap(0, 1), &[WATCHES]),
    ("a watch sends another message", |world| world.read(ReadWay::Watch, 2)[0].2 = 7, &[SAME]),
    ("a watch stays silent", |world| *world.watched_up_to() -= 1, &[SILENT]),
    ("the status of a stored message is PENDING", |world| *world.state(4) = State::Pending, &[STATUS]),
    ("the status has another seq", |world| *world.state(0) = State::Stored(2), &[STATUS]),
    ("the status of an accepted message is NOT_FOUND", |world| *world.state(0) = State::NotFound, &[STATUS]),
    ("the status of a dead letter is NOT_FOUND", |world| *world.state(2) = State::NotFound, &[STATUS]),
    ("the status of a row is DEAD_LETTERED", |world| *world.state(0) = State::DeadLettered, &[STATUS]),
    ("the status of a message that was not sent is STORED", |world| *world.state(1) = State::Stored(1), &[STATUS]),
    ("the status of an unknown message is STORED", |world| *world.state(3) = State::Stored(1), &[STATUS]),
];

/// A name, and a change that breaks no promise.
pub(super) const ALLOWED: &[(&str, Change)] = &[
    ("a watch whose gateway never had the database is behind", |world| {
        *world.watched_up_to() -= 1;
        let fault = world.evidence.faults[0].clone();
        let name = "cut-gateways-postgres".to_owned();
        world.evidence.faults.push(Fault { name, began: 0, healed: u64::MAX, no_ok: false, ..fault });
    }),
    ("every status is PENDING since no record was completed yet", |world| {
        for which in 0..4 {
            *world.state(which) = State::Pending;
        }
    }),
];
