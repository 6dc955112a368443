//! Random sequences of events against a model of the table, with the real feed. The numbers are small, so that most
//! steps are near a limit.

mod budget;
mod caller;
mod table;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use self::world::World;

const INBOXES: usize = 3;
const MAX_WATCHERS: usize = 3;
/// Maximum messages and bytes of an event. A small row has about 540 bytes.
const MAX_ROWS: usize = 3;
const MAX_BYTES: usize = 2200;
/// Bytes of the content of a row that is alone in its event, and of one that needs all of the buffer.
const LARGE: usize = 2500;
const HUGE: usize = 6000;
/// Bytes of the buffer of all watchers.
const BUFFER: usize = 5000;
const CATCH_UPS: usize = 1;
/// Milliseconds.
const HEARTBEAT: u64 = 15;
const STALL: u64 = 30;
const RETRY: u64 = 4;

/// A watch to open: for each inbox the requested cursor, if there is one.
#[derive(Clone, Copy, Debug)]
struct Request {
    after: [Option<u8>; INBOXES],
    omit_content: bool,
}

/// What happens. Numbers that choose a watcher or an inbox count from the first one again.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A caller opens a watch: it subscribes.
    Open(Request),
    /// The next of the two steps of the watch that opens: the last `seq`s are read, and they arrive.
    Opening,
    /// The transfer stores rows with this many bytes of content.
    Store {
        inbox: usize,
        rows: usize,
        bytes: usize,
        is_hinted: bool,
    },
    Purge {
        inbox: usize,
        rows: usize,
    },
    /// The table loses its newest rows, as by a restore.
    Lose {
        inbox: usize,
        rows: usize,
    },
    /// The next of the two steps of the feed reader: its statement is carried out, and the rows arrive.
    FeedRead {
        fails: bool,
    },
    /// The feed reader checks for rows without a hint.
    Check,
    /// The operation that a watcher waits for advances, or fails.
    Operation {
        watcher: usize,
        fails: bool,
    },
    /// Whether other callers use the budgets, so that nothing is granted immediately.
    Contention(bool),
    Read {
        watcher: usize,
    },
    /// The connection has written all events that were read.
    Written {
        watcher: usize,
    },
    Time(u64),
    ConnectionEnding {
        watcher: usize,
    },
    Disconnect {
        watcher: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after = prop_oneof![1 => Just(None), 3 => (0..6_u8).prop_map(Some), 1 => (0..24_u8).prop_map(Some)];
    let request = ([after.clone(), after.clone(), after], any::<bool>());
    let request = request.prop_map(|(after, omit_content)| Request { after, omit_content });
    let bytes = prop_oneof![6 => Just(0_usize), 2 => 0..1500_usize, 1 => Just(LARGE), 1 => Just(HUGE)];
    let store = (0..INBOXES, 1..6_usize, bytes, prop::bool::weighted(0.8));
    let watcher = 0..MAX_WATCHERS;
    let step = prop_oneof![
        6 => request.prop_map(Step::Open),
        8 => Just(Step::Opening),
        12 => store.prop_map(|(inbox, rows, bytes, is_hinted)| Step::Store { inbox, rows, bytes, is_hinted }),
        2 => (0..INBOXES, 1..6_usize).prop_map(|(inbox, rows)| Step::Purge { inbox, rows }),
        1 => (0..INBOXES, 1..4_usize).prop_map(|(inbox, rows)| Step::Lose { inbox, rows }),
        20 => prop::bool::weighted(0.1).prop_map(|fails| Step::FeedRead { fails }),
        3 => Just(Step::Check),
        24 => (watcher.clone(), prop::bool::weighted(0.1))
            .prop_map(|(watcher, fails)| Step::Operation { watcher, fails }),
        4 => any::<bool>().prop_map(Step::Contention),
        24 => watcher.clone().prop_map(|watcher| Step::Read { watcher }),
        16 => watcher.clone().prop_map(|watcher| Step::Written { watcher }),
        8 => (1..8_u64).prop_map(Step::Time),
        1 => watcher.clone().prop_map(|watcher| Step::ConnectionEnding { watcher }),
        1 => watcher.prop_map(|watcher| Step::Disconnect { watcher }),
    ];
    vec(step, 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_watcher_gets_each_message_once_and_in_order(steps in steps(), cached_rows in prop_oneof![0..6_usize, 6..20_usize]) {
        let mut world = World::new(cached_rows);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
