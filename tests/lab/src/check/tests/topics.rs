//! Checks which messages may be lost when the topic is recreated, and which order holds when it gets more partitions.

use super::super::super::history::Outcome;
use super::assert_broken;
use super::what::*;
use super::world::{ExpectedOutcome, World};

/// Two messages are stored, and three more are deleted with the topic. The sender continues, and sends two of the three
/// again.
fn recreated() -> World {
    recreated_then([6, 7, 2, 3])
}

fn recreated_then(sent: [u32; 4]) -> World {
    let mut world = World::new(2);
    for n in 0..2 {
        world.unary(1, n, 0, ExpectedOutcome::Ok);
    }
    // Restore the commits: these messages are not stored, and so not committed.
    let commits = world.evidence.commits.clone();
    for n in 2..5 {
        world.unary(1, n, 0, ExpectedOutcome::Waiting);
    }
    world.evidence.commits = commits;
    world.recreate(&[2, 0], |world| world.unary(1, 5, 0, ExpectedOutcome::Ok));
    for n in sent {
        world.unary(1, n, 0, ExpectedOutcome::Ok);
    }
    world.status(1, 4);
    world.rest();
    world
}

#[test]
fn records_above_the_progress_row_may_be_lost_with_the_topic() {
    let mut world = recreated();
    assert_broken("recreated", &world, &[]);
    let lost = &world.findings()[0];
    assert_eq!((lost.checked, lost.note.starts_with("1 responses")), (7, true), "{lost:?}");

    *world.outcome((1, 4), 0) = Outcome::Ok(0, -1);
    assert_broken("its position is unknown", &world, &[]);
    assert_broken("a message has its old offset again", &recreated_then([6, 7, 3, 2]), &[]);
}

#[test]
fn other_records_must_not_be_lost_with_the_topic() {
    let mut world = recreated();
    world.evidence.topics[0].progress[0] = 5;
    assert_broken("below the progress row", &world, &[LOST, TIMES, STATUS]);

    let mut world = recreated();
    world.lose(1, 3);
    assert_broken("the last of the new topic", &world, &[LOST]);
}

#[test]
fn offsets_of_the_old_and_the_new_topic_are_not_compared() {
    let mut world = recreated();
    world.swap_seqs((1, 1), (1, 6));
    assert_broken("a message of the new topic before one of the old", &world, &[TIMES, KAFKA]);

    let mut world = recreated();
    world.swap_seqs((1, 7), (1, 2));
    assert_broken("two messages of the new topic, one of them sent before", &world, &[KAFKA]);

    let mut world = recreated();
    let stored = world.row(1, 7).stored;
    let before = world.evidence.commits.iter().filter(|commits| commits.at < stored).count() - 1;
    assert_eq!(world.evidence.commits[before].next, [2, 0]);
    world.evidence.commits[before].next = vec![3, 0];
    assert_broken("a commit of the new topic ahead of a row", &world, &[ALONG]);
}

#[test]
fn partition_that_stays_empty_has_the_old_progress_row() {
    let mut world = recreated();
    world.evidence.progress[1] = 7;
    assert_broken("empty", &world, &[]);
    world.evidence.progress[0] = 7;
    assert_broken("not empty", &world, &[AT_REST]);
}

/// With three partitions, inbox 2 is in another one.
fn grown() -> World {
    let mut world = World::new(2);
    world.unary(1, 0, 2, ExpectedOutcome::Ok);
    world.unary(1, 1, 2, ExpectedOutcome::Ok);
    world.grow(3);
    world.unary(1, 2, 2, ExpectedOutcome::Ok);
    world.unary(1, 1, 2, ExpectedOutcome::Ok);
    world.rest();
    world
}

#[test]
fn inbox_may_move_once_for_each_growth() {
    let mut world = grown();
    assert_broken("grown", &world, &[]);
    world.swap_seqs((1, 1), (1, 2));
    assert_broken("moved and moved back", &world, &[TIMES, KAFKA]);

    let mut world = grown();
    world.evidence.growths.clear();
    assert_broken("moved without a growth", &world, &[KAFKA, FIRSTS]);
}

#[test]
fn message_of_unknown_outcome_hides_no_wrong_order() {
    let mut world = World::new(1);
    for (n, outcome) in [(0, ExpectedOutcome::UnknownThere), (1, ExpectedOutcome::Ok), (2, ExpectedOutcome::Ok)] {
        world.unary(1, n, 0, outcome);
    }
    world.rest();
    assert_broken("in order", &world, &[]);
    world.swap_seqs((1, 1), (1, 2));
    world.swap_seqs((1, 0), (1, 2));
    assert_eq!([0, 1, 2].map(|n| world.row(1, n).seq), [2, 3, 1]);
    assert_broken("the last, the first, the second", &world, &[TIMES, KAFKA]);
}
