//! Plants each fault that the checker is there for, and asks that it is found, and nothing else.

mod cases;
mod conflicts;
mod spoil;
mod topics;
mod truncated;
mod world;

use super::super::history::{Book, Event, ReadWay};
use super::got_through;
use world::World;

/// The begins of what the findings say.
mod what {
    pub(super) const LOST: &str = "P1 each accepted message";
    pub(super) const STORED: &str = "P1 who waited for STORED";
    pub(super) const LETTERS: &str = "P1 each message that was told to be a dead letter";
    pub(super) const CONFLICTS: &str = "P1 each accepted record of other content";
    pub(super) const POISON: &str = "P1 each record that holds no message";
    pub(super) const COUNTED: &str = "P8 offsets that Kafka lost";
    pub(super) const DOUBLED: &str = "P2 ";
    pub(super) const CONTENT: &str = " each row is what was sent";
    pub(super) const CAUSED: &str = " nothing is a dead letter";
    pub(super) const FOREIGN: &str = " nothing that was not sent";
    pub(super) const HISTORY: &str = " every response is the only one";
    pub(super) const TIMES: &str = "P3 a message that was accepted before";
    pub(super) const CHANNELS: &str = "P3 within one batch or stream";
    pub(super) const KAFKA: &str = "P3 seq order is Kafka's";
    pub(super) const FIRSTS: &str = "P3 each row is the first delivery";
    pub(super) const GAPS: &str = "P4 seq counts";
    pub(super) const PULLS: &str = "P4 a page that is pulled";
    pub(super) const WATCHES: &str = "P4 a watch gives";
    pub(super) const SAME: &str = "P4 what was read under a seq";
    pub(super) const NEVER_LESS: &str = "P4 what was seen once";
    pub(super) const SILENT: &str = "P4 a watch has brought";
    pub(super) const STATUS: &str = "P1 the status of a message";
    pub(super) const ALONG: &str = "P5 no offset was committed";
    pub(super) const AT_REST: &str = "P5 at rest";
    pub(super) const NOT_SENT: &str = "P6 what was not sent";
    pub(super) const ATTEMPTS: &str = "P6 no row is of an attempt";
    pub(super) const PLACES: &str = "P6 each accepted record has";
    pub(super) const RECORDS: &str = "P6 Kafka holds";
    pub(super) const FORBIDDEN: &str = "P6 nothing is accepted";
    pub(super) const MEMORY: &str = "P7 gateway: resident memory";
    pub(super) const THREADS: &str = "P7 transfer: threads";
    pub(super) const IN_FLIGHT: &str = "P7 gateway: in flight";
    pub(super) const REST: &str = "P7 at rest";
    pub(super) const NAMED: &str = "P8 what was broken is named";
    pub(super) const HEALTH: &str = "P8 no transfer is ready";
}

/// Asks that exactly these are broken.
fn assert_broken(name: &str, world: &World, expected: &[&str]) {
    assert_eq!(mistake(name, world, expected), None);
}

/// In words, unless exactly these are broken.
fn mistake(name: &str, world: &World, expected: &[&str]) -> Option<String> {
    let broken = world.broken();
    let same = broken.len() == expected.len() && broken.iter().zip(expected).all(|(it, begin)| it.starts_with(begin));
    (!same).then(|| format!("{name}: {broken:?} is broken where it should be {expected:?}"))
}

#[test]
fn a_good_world_keeps_every_promise() {
    let world = World::good();
    assert_broken("nothing", &world, &[]);
    for finding in world.findings() {
        assert!(finding.checked > 0, "{} is vacuous", finding.what);
    }
}

#[test]
fn a_load_that_does_not_get_through_is_told() {
    let mut world = World::good();
    assert_eq!(got_through(&world.book()).broken, 0);
    world.lines.retain(|line| !matches!(line, Event::Read { way: ReadWay::Pull, .. }));
    assert_eq!(got_through(&world.book()).examples, ["none was pulled"]);
    assert_eq!(got_through(&Book::default()).broken, 3);
}

#[test]
fn each_fault_is_found_and_nothing_else() {
    let mistakes = cases::FAULTS.iter().chain(conflicts::FAULTS).filter_map(|(name, spoil, expected)| {
        let mut world = World::good();
        spoil(&mut world);
        mistake(name, &world, expected)
    });
    assert_eq!(mistakes.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn what_is_allowed_is_no_fault() {
    for (name, change) in cases::ALLOWED.iter().chain(conflicts::ALLOWED) {
        let mut world = World::good();
        change(&mut world);
        assert_broken(name, &world, &[]);
    }
}

#[test]
fn a_fault_is_told_in_words_five_times_at_most() {
    let mut world = World::good();
    world.evidence.foreign = (0..9).map(|number| format!("row {number}")).collect();
    let findings = world.findings();
    let found = findings.iter().find(|finding| !finding.holds()).expect("one is broken");
    assert_eq!((found.broken, found.examples.len(), found.examples[4].as_str()), (9, 5, "row 4"));
}
