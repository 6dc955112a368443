//! Checks which messages may be lost when the end of a partition's log is lost.

use super::super::super::evidence::LostOffsets;
use super::super::super::history::Outcome;
use super::assert_broken;
use super::what::*;
use super::world::{ExpectedOutcome, World};

/// Four of six messages are stored when the log is truncated to 2. The sender continues, and sends two of the lost
/// messages again.
fn cut() -> World {
    let mut world = continued();
    world.rest();
    world
}

fn continued() -> World {
    let mut world = World::new(2);
    for n in 0..4 {
        world.unary(1, n, 0, ExpectedOutcome::Ok);
    }
    let commits = world.evidence.commits.clone();
    for n in 4..6 {
        world.unary(1, n, 0, ExpectedOutcome::Waiting);
    }
    world.evidence.commits = commits;
    world.truncate(2, 4);
    for n in [6, 7, 3, 4] {
        world.unary(1, n, 0, ExpectedOutcome::Ok);
    }
    world.unary(2, 0, 1, ExpectedOutcome::Ok);
    world.status(1, 5);
    world
}

#[test]
fn unread_records_of_a_lost_tail_may_be_lost() {
    let mut world = cut();
    assert_broken("cut", &world, &[]);
    let lost = &world.findings()[0];
    assert_eq!((lost.checked, lost.note.starts_with("1 responses")), (8, true), "{lost:?}");

    *world.outcome((1, 5), 0) = Outcome::Ok(0, -1);
    assert_broken("its position is unknown", &world, &[]);
}

#[test]
fn read_or_later_records_must_not_be_lost() {
    let mut world = cut();
    world.lose(1, 1);
    assert_broken("before the lost tail", &world, &[LOST, GAPS]);
    let mut world = cut();
    world.lose(1, 3);
    assert_broken("in the lost tail, and already stored", &world, &[LOST, GAPS]);
    let mut world = cut();
    world.lose(1, 4);
    assert_broken("sent after the loss", &world, &[LOST]);
    let mut world = cut();
    world.lose(2, 0);
    assert_broken("in another partition", &world, &[LOST]);
    let mut world = cut();
    world.evidence.truncations[0].stored = 6;
    world.evidence.lost_offsets[0].count = 4.0;
    assert_broken("all records were read", &world, &[LOST, TIMES, STATUS]);
}

#[test]
fn lost_offsets_must_be_counted_exactly() {
    for count in [1.0, 3.0] {
        let mut world = cut();
        world.evidence.lost_offsets[0].count = count;
        assert_broken("a wrong number", &world, &[COUNTED]);
    }
    let mut world = cut();
    world.evidence.lost_offsets.clear();
    assert_broken("no count", &world, &[COUNTED]);
    let mut world = cut();
    world.evidence.lost_offsets.push(LostOffsets { partition: 1, count: 1.0 });
    assert_broken("a partition that lost no record", &world, &[COUNTED]);
    let mut world = cut();
    world.evidence.lost_offsets = vec![LostOffsets { partition: 0, count: 1.0 }; 2];
    assert_broken("two processes count a part each", &world, &[]);
}

#[test]
fn offsets_of_the_old_and_the_new_log_are_not_compared() {
    let mut world = cut();
    world.swap_seqs((1, 2), (1, 7));
    assert_broken("a message of the new log before one of the old", &world, &[TIMES, KAFKA]);
    let mut world = cut();
    world.swap_seqs((1, 6), (1, 4));
    assert_broken("two messages of the new log", &world, &[TIMES, KAFKA]);
}

#[test]
fn commits_of_the_old_log_do_not_count_for_the_new_one() {
    let mut world = cut();
    let over = world.evidence.truncations[0].over;
    let first = |world: &World| {
        let clock = world.evidence.clock;
        world
            .evidence
            .commits
            .iter()
            .position(|commits| clock.nanos(commits.at) > over)
            .expect("there is a commit after the loss")
    };
    let at = first(&world);
    world.evidence.commits[at].next[0] = 4;
    assert_broken("the group still has the old offset", &world, &[]);
    world.evidence.commits[at].next[0] = 7;
    world.unary(1, 8, 0, ExpectedOutcome::Ok);
    world.drain();
    assert_broken("a commit of the new log ahead of a row", &world, &[ALONG]);
}

#[test]
fn topic_recreated_after_a_lost_tail_has_new_offsets() {
    let mut world = continued();
    world.recreate(&[6, 1], |world| world.unary(1, 8, 0, ExpectedOutcome::Ok));
    for n in 9..14 {
        world.unary(1, n, 0, ExpectedOutcome::Ok);
    }
    world.rest();
    assert_broken("below and above the first lost offset", &world, &[]);
    world.swap_seqs((1, 9), (1, 13));
    assert_broken("two messages of the new topic", &world, &[TIMES, KAFKA]);
}

#[test]
fn inbox_that_moves_after_a_lost_tail_keeps_its_order() {
    let mut world = continued();
    world.unary(1, 8, 2, ExpectedOutcome::Ok);
    world.grow(3);
    for n in 9..11 {
        world.unary(1, n, 2, ExpectedOutcome::Ok);
    }
    world.rest();
    assert_broken("to a partition that lost no record", &world, &[]);
    world.swap_seqs((1, 8), (1, 9));
    assert_broken("moved and moved back", &world, &[TIMES, KAFKA]);
}
