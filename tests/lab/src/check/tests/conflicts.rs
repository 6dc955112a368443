//! Owns the changes of records with other content under a known ID, each with the findings that must be broken.

use super::super::super::evidence::DeadLetter;
use super::super::super::history::Outcome;
use super::cases::Change;
use super::what::*;
use super::world::World;

fn conflict(world: &mut World) -> &mut DeadLetter {
    world.evidence.dead_letters.iter_mut().find(|letter| letter.altered).expect("the world has a conflict")
}

/// A name, the change, and the findings that must be broken.
pub(super) const FAULTS: &[(&str, Change, &[&str])] = &[
    (
        "a record of other content is no dead letter",
        |world| world.evidence.dead_letters.retain(|letter| !letter.altered),
        &[CONFLICTS],
    ),
    ("a conflict has another reason", |world| conflict(world).reason = "INVALID".to_owned(), &[CONFLICTS, CAUSED]),
    ("a conflict has the message's own content", |world| conflict(world).altered = false, &[CONFLICTS, CAUSED]),
    ("a conflict is of a message without other content", |world| world.conflict(1, 99, (4, 5)), &[CAUSED]),
    (
        "a row names the record of other content",
        |world| world.row(4, 4).offset = conflict(world).offset,
        &[KAFKA, FIRSTS],
    ),
    (
        "a conflict is of a record that was reported as not sent",
        |world| *world.outcome((4, 4), 1) = Outcome::NotSent("NOT_SENT".to_owned()),
        &[CAUSED],
    ),
];

/// A name, and a change that breaks no promise.
pub(super) const ALLOWED: &[(&str, Change)] = &[
    ("the outcome of other content is unknown", |world| {
        *world.outcome((4, 4), 1) = Outcome::Unknown("OUTCOME_UNKNOWN".to_owned());
    }),
    ("Kafka does not report the offset of other content", |world| *world.outcome((4, 4), 1) = Outcome::Ok(1, -1)),
];
