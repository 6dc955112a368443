//! Plants each fault that the checker must find, and checks that it finds this fault and no other.

mod cases;
mod conflicts;
mod processes;
mod reads;
mod spoil;
mod topics;
mod truncated;
mod world;

use super::super::history::{Book, Event, ReadWay};
use super::got_through;
use cases::Change;
use world::World;

/// The prefixes of the findings: the promise, a space and what must hold.
mod what {
    pub(super) const LOST: &str = "P1 each accepted message";
    pub(super) const STORED: &str = "P1 each response to a waiter";
    pub(super) const LETTERS: &str = "P1 each message that was reported as dead-lettered";
    pub(super) const CONFLICTS: &str = "P1 each accepted record of other content";
    pub(super) const POISON: &str = "P1 each record without a message";
    pub(super) const COUNTED: &str = "P8 the transfers counted";
    pub(super) const DUPLICATED: &str = "P2 ";
    pub(super) const CONTENT: &str = " each row has exactly";
    pub(super) const CAUSED: &str = " every dead letter was caused";
    pub(super) const FOREIGN: &str = " every row and every dead letter";
    pub(super) const HISTORY: &str = " every response is the only";
    pub(super) const TIMES: &str = "P3 a message that was accepted before";
    pub(super) const CHANNELS: &str = "P3 within one batch or stream";
    pub(super) const KAFKA: &str = "P3 seq order is Kafka's";
    pub(super) const FIRSTS: &str = "P3 each row is the first delivery";
    pub(super) const GAPS: &str = "P4 seq counts";
    pub(super) const PULLS: &str = "P4 a page starts";
    pub(super) const WATCHES: &str = "P4 a watch sends each";
    pub(super) const SAME: &str = "P4 the message that was read with a seq";
    pub(super) const NEVER_LESS: &str = "P4 no message disappears";
    pub(super) const SILENT: &str = "P4 a watch has sent within";
    pub(super) const STATUS: &str = "P1 the status of an accepted message";
    pub(super) const ALONG: &str = "P5 no offset was committed";
    pub(super) const AT_REST: &str = "P5 at rest";
    pub(super) const NOT_SENT: &str = "P6 a message that was reported as not sent";
    pub(super) const ATTEMPTS: &str = "P6 no row is of an attempt";
    pub(super) const POSITIONS: &str = "P6 each accepted record has";
    pub(super) const RECORDS: &str = "P6 Kafka holds";
    pub(super) const FORBIDDEN: &str = "P6 no message is accepted";
    pub(super) const MEMORY: &str = "P7 gateway: resident memory";
    pub(super) const THREADS: &str = "P7 transfer: threads";
    pub(super) const IN_FLIGHT: &str = "P7 gateway: in flight";
    pub(super) const REST: &str = "P7 at rest";
    pub(super) const NAMED: &str = "P8 a process that is not ready names";
    pub(super) const HEALTH: &str = "P8 no transfer is ready";
}

/// Checks that exactly the findings with these prefixes are broken.
fn assert_broken(name: &str, world: &World, expected: &[&str]) {
    assert_eq!(mistake(name, world, expected), None);
}

/// Describes the difference, unless exactly the findings with these prefixes are broken.
fn mistake(name: &str, world: &World, expected: &[&str]) -> Option<String> {
    let broken = world.broken();
    let same = broken.len() == expected.len() && broken.iter().zip(expected).all(|(it, prefix)| it.starts_with(prefix));
    (!same).then(|| format!("{name}: {broken:?} is broken, expected {expected:?}"))
}

#[test]
fn good_world_keeps_every_promise() {
    let world = World::good();
    assert_broken("nothing", &world, &[]);
    for finding in world.findings() {
        assert!(finding.checked > 0, "{} is vacuous", finding.what);
    }
}

#[test]
fn load_without_effect_is_reported() {
    let mut world = World::good();
    assert_eq!(got_through(&world.book()).broken, 0);
    world.lines.retain(|line| !matches!(line, Event::Read { way: ReadWay::Pull, .. }));
    assert_eq!(got_through(&world.book()).examples, ["no message was pulled"]);
    assert_eq!(got_through(&Book::default()).broken, 3);
}

/// The planted faults of all subjects: a name, the change, and the findings that must be broken.
const FAULTS: [&[(&str, Change, &[&str])]; 4] = [cases::FAULTS, conflicts::FAULTS, processes::FAULTS, reads::FAULTS];

/// The changes of all subjects that break no promise.
const ALLOWED: [&[(&str, Change)]; 4] = [cases::ALLOWED, conflicts::ALLOWED, processes::ALLOWED, reads::ALLOWED];

#[test]
fn checker_finds_each_planted_fault_and_no_other() {
    let mistakes = FAULTS.into_iter().flatten().filter_map(|(name, spoil, expected)| {
        let mut world = World::good();
        spoil(&mut world);
        mistake(name, &world, expected)
    });
    assert_eq!(mistakes.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn allowed_changes_break_no_promise() {
    for (name, change) in ALLOWED.into_iter().flatten() {
        let mut world = World::good();
        change(&mut world);
        assert_broken(name, &world, &[]);
    }
}

#[test]
fn finding_has_at_most_five_examples() {
    let mut world = World::good();
    world.evidence.foreign = (0..9).map(|number| format!("row {number}")).collect();
    let findings = world.findings();
    let found = findings.iter().find(|finding| !finding.holds()).expect("a finding is broken");
    assert_eq!((found.broken, found.examples.len(), found.examples[4].as_str()), (9, 5, "row 4"));
}
