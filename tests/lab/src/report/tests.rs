//! Tests the figures on small runs whose every moment is known.

mod world;

use self::world::{BEGAN, World, millis};
use super::super::check::Finding;
use super::super::evidence::{Row, Sample};
use super::super::history::{Event, Nanos, Outcome, ReadWay, Way};
use super::moments::quantile;
use super::plots::{Axis, Line, Plot, Scale};
use super::recovery::{Drained, Recovery, Stall};
use super::timeline::Latency;
use super::totals::Totals;
use super::{Run, write};
use crate::text;

/// Has one fault from 20 s to 25 s of 60 s; partition 1 stalls and partition 0 does not.
fn one_stalls() -> World {
    let mut world = World::new(60_000);
    world.traffic(0, 60_000, 0);
    world.traffic(0, 20_000, 1);
    world.traffic(27_000, 60_000, 1);
    world.fault(20_000, 25_000);
    world
}

fn close(left: Option<f64>, right: f64) -> bool {
    left.is_some_and(|left| (left - right).abs() < 0.005)
}

#[test]
fn stall_is_that_of_the_worst_partition() {
    let recovery = one_stalls().recovery();
    // From the start of the fault, not from the last accept before it.
    assert_eq!(recovery.no_accept, Some(Stall { seconds: 7.05, partition: 1, open: false, before: 0.1 }));
    assert_eq!(recovery.no_row, Some(Stall { seconds: 7.06, partition: 1, open: false, before: 0.1 }));
    assert!(close(recovery.back_after, 2.06), "{:?}", recovery.back_after);
}

#[test]
fn rows_can_stall_while_messages_are_accepted() {
    let mut world = World::new(60_000);
    world.traffic(0, 60_000, 0);
    let clock = world.evidence.clock;
    let stored = |row: &Row| clock.nanos(row.stored) - BEGAN;
    world.evidence.rows.retain(|row| stored(row) < millis(20_000) || stored(row) >= millis(28_000));
    world.fault(20_000, 25_000);
    let recovery = world.recovery();
    assert!(recovery.no_accept.is_some_and(|stall| stall.seconds < 0.11));
    assert!(close(recovery.no_row.map(|stall| stall.seconds), 8.06));
    assert!(close(recovery.back_after, 3.06), "{:?}", recovery.back_after);
}

#[test]
fn partition_that_never_recovers_counts() {
    let mut world = World::new(100_000);
    world.traffic(0, 100_000, 0);
    world.traffic(0, 20_000, 1);
    world.fault(20_000, 25_000);
    let recovery = world.recovery();
    // The window ends 30 seconds after the end of the fault.
    assert_eq!(recovery.no_accept.map(|stall| (stall.seconds, stall.partition, stall.open)), Some((35.0, 1, true)));
    assert_eq!(recovery.back_after, None);
}

#[test]
fn partitions_without_traffic_before_do_not_count() {
    let mut world = one_stalls();
    world.accept(5_000, 2);
    world.accept(30_000, 3);
    assert_eq!(world.recovery().no_accept.map(|stall| stall.partition), Some(1));
}

#[test]
fn window_ends_with_the_next_fault_or_the_load() {
    let mut world = one_stalls();
    world.fault(26_000, 26_500);
    let recoveries = world.recoveries();
    assert_eq!(recoveries[0].no_accept.map(|stall| (stall.seconds, stall.open)), Some((6.0, true)));
    assert_eq!(recoveries[0].back_after, None);
    assert_eq!((recoveries[1].number, recoveries[1].began), (2, 26.0));
    // A fault during the first one does not end its window.
    let mut world = one_stalls();
    world.fault(22_000, 23_000);
    assert!(close(world.recovery().no_accept.map(|stall| stall.seconds), 7.05));
    // The end of the load makes no stall.
    let mut world = one_stalls();
    world.fault(59_000, 59_500);
    assert!(world.recoveries()[1].no_accept.is_some_and(|stall| stall.seconds < 0.2));
    // A fault after the load has no window.
    let mut world = one_stalls();
    world.fault(61_000, 62_000);
    assert_eq!(world.recoveries()[1].no_accept, None);
}

#[test]
fn errors_are_counted_only_during_the_fault() {
    let mut world = one_stalls();
    let not_sent = || Outcome::NotSent("NOT_SENT".to_owned());
    let unknown = || Outcome::Unknown("OUTCOME_UNKNOWN".to_owned());
    world.send(19_900, Way::Unary, false, Some((20_100, not_sent())));
    world.send(19_000, Way::Unary, false, Some((19_999, not_sent())));
    world.send(21_000, Way::Stream, false, Some((24_999, unknown())));
    world.send(24_000, Way::Batch, false, Some((25_001, unknown())));
    world.send(22_000, Way::Unary, false, None);
    let at = BEGAN + millis(22_000);
    let failed =
        Event::ReadFailed { reader: 1, way: ReadWay::Pull, requested: at, at, reason: "UNAVAILABLE".to_owned() };
    world.book.add(0, failed);
    let recovery = world.recovery();
    let errors = &recovery.errors;
    assert_eq!((errors.accepted, errors.not_sent, errors.unknown, errors.failed_reads), (50, 1, 2, 1));
    assert!(close(errors.per_second, 0.6));
    let reasons: Vec<_> = errors.reasons.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(reasons, [("NOT_SENT", 1), ("OUTCOME_UNKNOWN", 1), ("no response", 1)]);
    let rates = &recovery.accepted;
    assert!(close(rates.before, 20.0) && close(rates.during, 10.0) && close(rates.after, 18.0), "{rates:?}");
}

#[test]
fn latency_is_of_the_calls_in_flight_during_the_fault() {
    let mut world = World::new(60_000);
    let mut call = |sent, at, way, stored| world.send(sent, way, stored, Some((at, Outcome::Ok(0, 0))));
    call(19_000, 19_900, Way::Unary, false);
    call(19_000, 20_500, Way::Unary, false);
    call(24_999, 29_999, Way::Unary, false);
    call(25_000, 35_000, Way::Unary, false);
    call(21_000, 28_000, Way::Unary, true);
    call(21_000, 28_000, Way::Batch, false);
    world.fault(20_000, 25_000);
    assert_eq!(world.recovery().latency, Some(Latency { p50: 1500.0, p99: 5000.0, max: 5000.0 }));
}

#[test]
fn backlog_is_drained_at_twice_the_lag_before() {
    let mut world = one_stalls();
    for at in 25_000..29_000 {
        world.row(at, 0);
    }
    world.lag(&[(12_000, Some(10)), (15_000, Some(50)), (19_000, Some(30))]);
    world.lag(&[(21_000, Some(900)), (22_000, None), (26_000, Some(2_000)), (28_000, Some(101)), (29_000, Some(100))]);
    let backlog = world.recovery().backlog;
    assert_eq!((backlog.before, backlog.peak), (Some(50), Some(2_000)));
    let Drained::Yes { after, times } = backlog.drained else { panic!("{backlog:?}") };
    // 4,000 rows and the 60 of the traffic, compared with 60 accepted attempts.
    assert_eq!(after, 4.0);
    assert!(close(times, 4_060.0 / 60.0), "{times:?}");
}

#[test]
fn backlog_can_end_early_or_stay_or_not_exist() {
    let drained = |samples: &[(u64, Option<i64>)]| {
        let mut world = one_stalls();
        world.lag(samples);
        world.recovery().backlog.drained
    };
    let early = drained(&[(19_000, Some(50)), (21_000, Some(500)), (23_000, Some(90)), (26_000, Some(40))]);
    assert_eq!(early, Drained::Yes { after: 0.0, times: None });
    assert_eq!(drained(&[(19_000, Some(50)), (21_000, Some(500)), (50_000, Some(101))]), Drained::No);
    assert_eq!(drained(&[(19_000, Some(50)), (21_000, Some(100))]), Drained::None);
    // A second's worth of messages is no backlog: 20.
    assert_eq!(drained(&[(19_000, Some(0)), (21_000, Some(20))]), Drained::None);
    assert_eq!(drained(&[(21_000, Some(20_000))]), Drained::None);
    assert_eq!(drained(&[]), Drained::None);
}

#[test]
fn step_has_the_events_of_its_time() {
    let mut world = World::new(3_000);
    world.accept(999, 0);
    world.accept(1_000, 0);
    world.send(500, Way::Unary, true, Some((1_900, Outcome::NotStoredYet(0, 1))));
    world.send(100, Way::Batch, false, Some((1_100, Outcome::NotSent("NOT_SENT".to_owned()))));
    world.send(2_100, Way::Stream, false, None);
    world.row(2_000, 0);
    world.lag(&[(100, Some(5)), (900, Some(9)), (1_500, None)]);
    let sample = |at, rss| Sample {
        at: BEGAN + millis(at),
        process: "gateway-1".to_owned(),
        pid: 1,
        rss,
        fds: 0,
        sockets: 0,
        threads: 0,
        inflight: None,
    };
    world.evidence.samples.extend([sample(100, 7), sample(2_100, 8), sample(2_200, 6)]);
    let timeline = world.timeline();
    assert_eq!((timeline.step_seconds, timeline.seconds()), (1.0, 4.0));
    assert_eq!(timeline.accepted, [1.0, 2.0, 0.0, 0.0]);
    assert_eq!(timeline.rows, [0.0, 0.0, 1.0, 0.0]);
    assert_eq!(timeline.not_sent, [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(timeline.unknown, [0.0, 0.0, 1.0, 0.0]);
    let latency = |millis| Some(Latency { p50: millis, p99: millis, max: millis });
    assert_eq!(timeline.unary, [latency(10.0), latency(10.0), None, None]);
    assert_eq!(timeline.stored, [None, latency(1_400.0), None, None]);
    assert_eq!(timeline.lag, [Some(9), None, None, None]);
    assert_eq!(timeline.rss["gateway-1"], [Some(7), None, Some(8), None]);
}

#[test]
fn long_run_has_longer_steps() {
    let mut world = World::new(1_500_000);
    for at in 0..30 {
        world.accept(1_000 + at, 0);
    }
    let timeline = world.timeline();
    assert_eq!((timeline.step_seconds, timeline.accepted.len(), timeline.accepted[0]), (3.0, 501, 10.0));
}

#[test]
fn quantile_is_one_of_the_values() {
    let values: Vec<Nanos> = (1..=200).collect();
    assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [Some(100), Some(198), Some(200)]);
    assert_eq!((quantile(&[7], 0.01), quantile(&[], 0.5)), (Some(7), None));
}

#[test]
fn totals_are_counted_by_way_and_outcome() {
    let mut world = World::new(10_000);
    world.accept(1_000, 0);
    let stored = Outcome::Stored { partition: 0, offset: 1, seq: 1, duplicate: false };
    world.send(1_000, Way::Batch, true, Some((1_100, stored)));
    world.send(1_000, Way::Batch, true, Some((1_100, Outcome::Unknown("UNAVAILABLE".to_owned()))));
    let totals = Totals::of(&world.book, &world.evidence);
    assert_eq!((totals.messages, totals.outcomes(), totals.seconds), (3, [2, 0, 1], 10.0));
    let batch = &totals.ways[1];
    assert_eq!((batch.way, batch.attempts, batch.stored, batch.unknown), ("BatchSendMsg, STORED", 2, 1, 1));
    assert_eq!(totals.reasons["UNAVAILABLE"], 1);
}

fn plot(scale: Scale, faults: &[Recovery], values: &[Option<f64>]) -> String {
    let axis = Axis { step_seconds: 1.0, seconds: values.len() as f64, faults };
    let lines = vec![Line { name: "a", values: values.to_vec() }];
    axis.plot(&Plot { title: "t", about: "", scale, unit: text::rough, lines }).into_string()
}

#[test]
fn line_is_split_only_after_several_missing_values() {
    let values = [Some(1.0), None, None, Some(2.0), None, None, None, Some(3.0)];
    let svg = plot(Scale::Linear, &[], &values);
    assert_eq!(svg.matches("<polyline").count(), 2);
    assert!(plot(Scale::Linear, &[], &[None]).contains("no values"));
}

#[test]
fn axes_include_every_value() {
    for scale in [Scale::Linear, Scale::Log] {
        for value in [0.0, 0.03, 1.0, 4.0, 10.0, 1234.0, 9.9e9] {
            let svg = plot(scale, &[], &[Some(value), Some(value / 3.0)]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{value}: {svg}");
        }
    }
    let svg = plot(Scale::Linear, &[], &[Some(1234.0)]);
    assert!(["0", "500", "1,000", "1,500"].iter().all(|label| svg.contains(&format!(">{label}</text>"))), "{svg}");
    assert!(!svg.contains(">2,000</text>"));
}

#[test]
fn numbers_of_close_faults_do_not_overlap() {
    let mut world = World::new(60_000);
    for count in 0..50 {
        world.fault(10_000 + count * 20, 10_010 + count * 20);
    }
    let svg = plot(Scale::Linear, &world.recoveries(), &[Some(1.0); 60]);
    assert_eq!(svg.matches("class=\"number\"").count(), 4, "{svg}");
    assert_eq!(svg.matches("<a href").count(), 50);
}

#[test]
fn report_is_written_and_names_the_broken_promise() {
    let world = one_stalls();
    let finding = |what: &str, broken: usize| Finding {
        promise: "P1",
        what: what.to_owned(),
        note: String::new(),
        checked: 12_345,
        broken,
        examples: (0..broken).map(|_| "<inbox-7> #3".to_owned()).collect(),
    };
    let findings = [finding("this one holds", 0), finding("that one is broken", 2)];
    let run = Run {
        title: "a try".to_owned(),
        command: "msg-dev lab --seed 7".to_owned(),
        seed: 7,
        version: "1.2.3".to_owned(),
        revision: "abc".to_owned(),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let summary = write(folder.path(), &run, &world.book, &world.evidence, &findings).expect("own folder");
    assert!(!summary.holds);
    let text = summary.to_string();
    assert!(text.find("that one is broken") < text.find("this one holds"), "{text}");
    assert!(text.contains("BROKEN: 2") && text.contains("kill-broker broker-2") && text.contains("7.05 s"), "{text}");
    let read = |name| std::fs::read_to_string(folder.path().join(name)).expect("the report was written");
    let page = read("report.html");
    assert!(page.contains("BROKEN") && page.contains("&lt;inbox-7&gt; #3") && page.contains("id=\"fault-1\""));
    let json: serde_json::Value = serde_json::from_str(&read("report.json")).expect("JSON");
    assert_eq!((&json["holds"], &json["seed"], &json["findings"][0]["broken"]), (&false.into(), &7.into(), &2.into()));
    assert_eq!((&json["faults"][0]["no_accept"]["seconds"], &json["totals"]["kills"]), (&7.05.into(), &1.into()));
    let holding = write(folder.path(), &run, &world.book, &world.evidence, &findings[..1]).expect("own folder");
    assert!(holding.holds && holding.to_string().ends_with("every promise holds"));
}
