//! Owns the changes of the processes' samples and readiness, each with the findings that must be broken.

use super::super::super::evidence::Health;
use super::cases::Change;
use super::what::*;

/// A name, the change, and the findings that must be broken.
pub(super) const FAULTS: &[(&str, Change, &[&str])] = &[
    ("a gateway was too large", |world| world.evidence.samples[1].rss = 200 << 20, &[MEMORY]),
    ("a transfer had too many threads", |world| world.evidence.samples[3].threads = 11, &[THREADS]),
    ("a gateway had too much in flight", |world| world.evidence.samples[0].inflight = Some((11.0, 1.0)), &[IN_FLIGHT]),
    ("something is in flight at rest", |world| world.evidence.samples[2].inflight = Some((1.0, 0.0)), &[REST]),
    (
        "a process that no longer responds has something in flight",
        |world| {
            world.evidence.samples[1].inflight = Some((1.0, 1.0));
            world.evidence.samples[2].inflight = None;
        },
        &[REST],
    ),
    ("bytes are in flight at rest", |world| world.evidence.samples[5].inflight = Some((0.0, 9.0)), &[REST]),
    ("records wait for a minute and the only transfer is ready", |world| world.blocked(60, true), &[HEALTH]),
    ("records wait for 38 s and the only transfer is ready", |world| world.blocked(38, true), &[HEALTH]),
    ("no process names a fault", |world| world.evidence.health.retain(|health| health.reason.is_empty()), &[NAMED]),
    (
        "a process names a fault with another offset",
        |world| world.evidence.health[0].reason = "msgs partition 1: offset 8".to_owned(),
        &[NAMED],
    ),
    ("a process that is ready names a fault", |world| world.evidence.health[0].ready = true, &[NAMED]),
    ("another service names a fault", |world| world.evidence.health[0].process = "gateway-1".to_owned(), &[NAMED]),
    ("a process names a fault too late", |world| world.evidence.health[0].at += 35_000_000_000, &[NAMED]),
];

/// A name, and a change that breaks no promise.
pub(super) const ALLOWED: &[(&str, Change)] = &[
    ("a fault ends before a process has to name it", |world| {
        world.evidence.health.retain(|health| health.reason.is_empty());
        let fault = world.evidence.faults.last_mut().expect("there is a fault");
        fault.over = fault.broken + 30_000_000_000;
    }),
    ("a gateway is not ready while records wait", |world| {
        let gateway = world.evidence.health[0].clone();
        world.evidence.health.push(Health { process: "gateway-1".to_owned(), ..gateway });
    }),
    ("records wait for a minute and the only transfer is not ready", |world| world.blocked(60, false)),
    ("the only transfer is ready again a moment before the offset moves", |world| {
        world.blocked(60, false);
        world.evidence.health.iter_mut().rev().take(3).for_each(|health| health.ready = true);
    }),
    ("records wait for a minute and no transfer runs", |world| {
        world.blocked(60, true);
        world.evidence.health.truncate(1);
    }),
    ("the committed offset moves while records wait", |world| {
        world.blocked(60, true);
        for (number, waiting) in world.evidence.waiting.iter_mut().enumerate() {
            waiting.committed[0] = waiting.ends[0] - 1 - i64::try_from(number % 2).expect("small");
        }
    }),
    ("a process ended before the end of the run", |world| {
        let mut sample = world.evidence.samples[0].clone();
        sample.process = "transfer-2".to_owned();
        sample.at -= 10_000_000_000;
        world.evidence.samples.push(sample);
    }),
    ("a process did not respond at the end", |world| {
        let mut sample = world.evidence.samples[2].clone();
        sample.inflight = None;
        sample.at += 1_000_000_000;
        world.evidence.samples.push(sample);
    }),
];
