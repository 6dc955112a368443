//! Asks what holds when the topic is deleted and made anew, and when it gets more partitions.

use super::super::super::history::Outcome;
use super::assert_broken;
use super::what::*;
use super::world::{Fate, World};

/// Two messages are stored, three more are deleted with the topic, and the sender goes on; of the three it sends two again.
fn anew() -> World {
    anew_then([6, 7, 2, 3])
}

fn anew_then(sent: [u32; 4]) -> World {
    let mut world = World::new(2);
    for n in 0..2 {
        world.unary(1, n, 0, Fate::Ok);
    }
    // These are not stored, and so not committed.
    let commits = world.evidence.commits.clone();
    for n in 2..5 {
        world.unary(1, n, 0, Fate::Waiting);
    }
    world.evidence.commits = commits;
    world.recreate(&[2, 0], |world| world.unary(1, 5, 0, Fate::Ok));
    for n in sent {
        world.unary(1, n, 0, Fate::Ok);
    }
    world.status(1, 4);
    world.rest();
    world
}

#[test]
fn what_was_above_the_progress_goes_with_the_topic() {
    let mut world = anew();
    assert_broken("anew", &world, &[]);
    let lost = &world.findings()[0];
    assert_eq!((lost.checked, lost.note.starts_with("1 answers")), (7, true), "{lost:?}");

    *world.outcome((1, 4), 0) = Outcome::Ok(0, -1);
    assert_broken("nobody knows where it was", &world, &[]);
    assert_broken("one is at its old offset again", &anew_then([6, 7, 3, 2]), &[]);
}

#[test]
fn what_was_below_the_progress_or_came_after_does_not() {
    let mut world = anew();
    world.evidence.topics[0].progress[0] = 5;
    assert_broken("below the progress", &world, &[LOST, TIMES, STATUS]);

    let mut world = anew();
    world.lose(1, 3);
    assert_broken("the last of the new topic", &world, &[LOST]);
}

#[test]
fn offsets_begin_anew_and_are_not_mixed() {
    let mut world = anew();
    world.swap_seqs((1, 1), (1, 6));
    assert_broken("the new before the old", &world, &[TIMES, KAFKA]);

    let mut world = anew();
    world.swap_seqs((1, 7), (1, 2));
    assert_broken("two of the new, one of them sent before", &world, &[KAFKA]);

    let mut world = anew();
    let stored = world.row(1, 7).stored;
    let before = world.evidence.commits.iter().filter(|commits| commits.at < stored).count() - 1;
    assert_eq!(world.evidence.commits[before].next, [2, 0]);
    world.evidence.commits[before].next = vec![3, 0];
    assert_broken("a commit of the new topic ahead of a row", &world, &[ALONG]);
}

#[test]
fn a_partition_that_stays_empty_keeps_the_old_progress() {
    let mut world = anew();
    world.evidence.progress[1] = 7;
    assert_broken("empty", &world, &[]);
    world.evidence.progress[0] = 7;
    assert_broken("not empty", &world, &[AT_REST]);
}

/// With three partitions, inbox 2 is in another.
fn grown() -> World {
    let mut world = World::new(2);
    world.unary(1, 0, 2, Fate::Ok);
    world.unary(1, 1, 2, Fate::Ok);
    world.grow(3);
    world.unary(1, 2, 2, Fate::Ok);
    world.unary(1, 1, 2, Fate::Ok);
    world.rest();
    world
}

#[test]
fn an_inbox_moves_once_a_growth() {
    let mut world = grown();
    assert_broken("grown", &world, &[]);
    world.swap_seqs((1, 1), (1, 2));
    assert_broken("moved to and fro", &world, &[TIMES, KAFKA]);

    let mut world = grown();
    world.evidence.growths.clear();
    assert_broken("moved without a growth", &world, &[KAFKA, FIRSTS]);
}

#[test]
fn an_early_message_between_two_hides_nothing() {
    let mut world = World::new(1);
    for (n, fate) in [(0, Fate::UnknownThere), (1, Fate::Ok), (2, Fate::Ok)] {
        world.unary(1, n, 0, fate);
    }
    world.rest();
    assert_broken("in order", &world, &[]);
    world.swap_seqs((1, 1), (1, 2));
    world.swap_seqs((1, 0), (1, 2));
    assert_eq!([0, 1, 2].map(|n| world.row(1, n).seq), [2, 3, 1]);
    assert_broken("the last, the first, the second", &world, &[TIMES, KAFKA]);
}
