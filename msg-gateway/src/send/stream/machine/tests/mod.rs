//! Random sequences of events against a model. The numbers are small, so that most steps are near a limit.

mod budgets;
mod model;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use rdkafka::types::RDKafkaErrorCode;

use self::model::{Content, Entry};
use self::world::World;
use crate::send::outcome::Outcome;
use crate::status::Failure;

const MAX_INFLIGHT: usize = 6;
const MAX_FAILED: usize = 6;
const MAX_REPLY: usize = 3;
/// Maximum number of permits for results.
const MAX_RESULTS: usize = 9;
/// In milliseconds, as all times of the test.
const MAX_WAIT: u64 = 20;
const UNTIL: u64 = 120;

#[derive(Clone, Debug)]
enum Step {
    Request(Vec<Entry>, i32),
    /// The index of a record in flight, and its outcome.
    Report(usize, Outcome),
    /// The index of an awaited row, and whether it is stored.
    Row(usize, bool),
    /// Other calls release this much capacity.
    Capacity(usize),
    /// Other calls release this much capacity just before the stream listens for it.
    EarlyCapacity(usize),
    /// The permits for the results of the request in progress are granted, or time out.
    Permits {
        granted: bool,
    },
    Reply,
    /// The clock advances by this many milliseconds.
    Time(u64),
    ConnectionEnding,
    HalfClose,
    Broken,
    Memory(bool),
    Waiters(bool),
    Producer(Option<Failure>),
}

fn requests() -> impl Strategy<Value = Step> {
    let valid = (0..2_u8, 0..5_u8).prop_map(|(inbox, id)| Content::Valid { inbox, id });
    let content = prop_oneof![20 => valid, 1 => Just(Content::Invalid), 1 => Just(Content::Missing)];
    let entry = (0..12_u64, content);
    let entry = entry.prop_map(|(correlation_id, content)| Entry { correlation_id, content, until_stored: false });
    let wait_for = prop_oneof![12 => Just(0), 6 => Just(2), 1 => Just(3)];
    (prop_oneof![30 => vec(entry, 1..6), 1 => Just(Vec::new())], wait_for)
        .prop_map(|(entries, wait_for)| Step::Request(entries, wait_for))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Stored { offset: Some(7) }),
        1 => Just(Outcome::Unknown),
        1 => Just(Outcome::NotSent(RDKafkaErrorCode::InvalidTopic)),
        1 => Just(Outcome::TooLarge),
    ];
    let rejection = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Failure::NotSent("a test".into()))),
        1 => Just(Some(Failure::TooLarge("a test".into()))),
    ];
    let step = prop_oneof![
        20 => requests(),
        20 => (0..8_usize, outcome).prop_map(|(at, outcome)| Step::Report(at, outcome)),
        8 => (0..8_usize, any::<bool>()).prop_map(|(at, is_stored)| Step::Row(at, is_stored)),
        6 => (0..3_usize).prop_map(Step::Capacity),
        3 => (0..3_usize).prop_map(Step::EarlyCapacity),
        6 => prop::bool::weighted(0.9).prop_map(|granted| Step::Permits { granted }),
        14 => Just(Step::Reply),
        5 => (1..12_u64).prop_map(Step::Time),
        1 => prop_oneof![Just(Step::ConnectionEnding), Just(Step::HalfClose), Just(Step::Broken)],
        3 => any::<bool>().prop_map(Step::Memory),
        3 => any::<bool>().prop_map(Step::Waiters),
        4 => rejection.prop_map(Step::Producer),
    ];
    vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stream_does_what_its_model_does(steps in steps()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
