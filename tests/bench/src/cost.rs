//! What a measurement costs: the CPU time and the wake-ups of each process, from /proc before and after it.

use std::collections::HashMap;
use std::fs;

use msg_stack::process::{descendants, proc_field};
use msg_stack::{Process, Service, Stack};

/// The unit of CPU times in /proc, which Linux fixes for programs, in microseconds.
const TICK: f64 = 10_000.0;

/// The processes whose cost is measured, by name.
#[derive(Clone)]
pub(crate) struct Watched(Vec<Group>);

#[derive(Clone)]
struct Group {
    name: String,
    pids: Vec<u32>,
    /// Whether the processes below count too. All servers are children of this process, the client.
    tree: bool,
}

/// What the processes had used when the measurement started.
pub(crate) struct Meter<'a> {
    watched: &'a Watched,
    before: Vec<Usage>,
}

/// What the processes of one name used for one message.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    pub(crate) process: String,
    /// Microseconds of CPU time.
    pub(crate) cpu: f64,
    /// Number of times that a thread slept and was woken.
    pub(crate) wakeups: f64,
    /// Memory at the end of the measurement, in bytes. A page that processes share counts once.
    pub(crate) memory: f64,
}

#[derive(Default)]
struct Usage {
    ticks: u64,
    /// Voluntary context switches of each thread.
    switches: HashMap<u32, u64>,
    memory: u64,
}

impl Watched {
    /// Watches these services, Kafka, PostgreSQL, and this process as the client.
    pub(crate) fn new(stack: &Stack, services: &[&Service]) -> Watched {
        let Watched(mut groups) = Watched::services(services);
        groups.push(Group { name: "Kafka".to_owned(), pids: pids(&stack.kafka().processes()), tree: true });
        let postgres: Vec<Process> = stack.postgres().process().into_iter().collect();
        groups.push(Group { name: "PostgreSQL".to_owned(), pids: pids(&postgres), tree: true });
        groups.extend(Watched::client().0);
        Watched(groups)
    }

    /// Watches these services alone.
    pub(crate) fn services(services: &[&Service]) -> Watched {
        let service = |service: &&Service| {
            let running: Vec<Process> = service.process().into_iter().collect();
            Group { name: service.name().to_owned(), pids: pids(&running), tree: true }
        };
        Watched(services.iter().map(service).collect())
    }

    /// Watches this process alone.
    pub(crate) fn client() -> Watched {
        Watched(vec![Group { name: "client".to_owned(), pids: vec![std::process::id()], tree: false }])
    }

    pub(crate) fn start(&self) -> Meter<'_> {
        Meter { watched: self, before: self.0.iter().map(Group::usage).collect() }
    }
}

fn pids(processes: &[Process]) -> Vec<u32> {
    processes.iter().map(Process::pid).collect()
}

impl Meter<'_> {
    /// Returns what was used since the start, divided by this number of messages.
    pub(crate) fn stop(self, messages: f64) -> Vec<Cost> {
        let cost = |(group, before): (&Group, &Usage)| {
            let after = group.usage();
            Cost {
                process: group.name.clone(),
                cpu: after.ticks.saturating_sub(before.ticks) as f64 * TICK / messages,
                wakeups: after.switches_since(before) as f64 / messages,
                memory: after.memory as f64,
            }
        };
        self.watched.0.iter().zip(&self.before).map(cost).collect()
    }
}

impl Group {
    fn usage(&self) -> Usage {
        // If a process is reaped while the tree is read, its time is missed, or counted for its parent too. Then the
        // tree has changed: read it again.
        const ATTEMPTS: usize = 20;
        let mut pids = self.all();
        for _ in 0..ATTEMPTS {
            let mut usage = Usage::default();
            for pid in &pids {
                usage.add(*pid, self.tree);
            }
            let now = self.all();
            if now == pids {
                return usage;
            }
            pids = now;
        }
        panic!("{}: its processes change all the time, so their cost is unknown", self.name);
    }

    fn all(&self) -> Vec<u32> {
        let below = |pid: &u32| if self.tree { descendants(*pid) } else { Vec::new() };
        self.pids.iter().flat_map(|pid| [*pid].into_iter().chain(below(pid))).collect()
    }
}

impl Usage {
    /// Adds a process, or nothing if it has ended.
    fn add(&mut self, pid: u32, tree: bool) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        self.ticks += ticks(&read("stat"), tree);
        self.memory += proc_field(&read("smaps_rollup"), "Pss:") << 10;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
        for thread in threads.flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            if let Some(id) = thread.file_name().to_str().and_then(|id| id.parse().ok()) {
                self.switches.insert(id, proc_field(&status, "voluntary_ctxt_switches:"));
            }
        }
    }

    /// Returns the switches since then. A thread that has ended takes its own with it.
    fn switches_since(&self, before: &Usage) -> u64 {
        let since = |(thread, count): (&u32, &u64)| count.saturating_sub(*before.switches.get(thread).unwrap_or(&0));
        self.switches.iter().map(since).sum()
    }
}

/// Returns the CPU time in the text of /proc/PID/stat, in ticks. With `tree` it includes the children that have ended:
/// without them, the sum of a tree would shrink when one of its processes ends.
fn ticks(stat: &str, tree: bool) -> u64 {
    // The name of the program, which is in parentheses, may contain spaces. After it, fields 12 to 15 count from 1.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let count = if tree { 4 } else { 2 };
    fields.split_whitespace().skip(11).take(count).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Watched {
        Watched(vec![Group { name: "own".to_owned(), pids: vec![std::process::id()], tree: true }])
    }

    #[test]
    fn ended_children_count_for_the_tree_only() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1 0 99";
        assert_eq!((ticks(stat, false), ticks(stat, true), ticks("", true)), (120, 127, 0));
    }

    #[test]
    fn ended_process_and_ended_thread_cost_nothing() {
        let mut usage = Usage::default();
        usage.add(u32::MAX, true);
        assert_eq!((usage.ticks, usage.memory, usage.switches.len()), (0, 0, 0));
        let before = Usage { switches: HashMap::from([(1, 10), (2, 50)]), ..Usage::default() };
        let after = Usage { switches: HashMap::from([(1, 14), (3, 5)]), ..Usage::default() };
        assert_eq!(after.switches_since(&before), 4 + 5);
    }

    #[test]
    fn cpu_time_of_an_ended_child_is_counted() {
        let watched = own();
        let meter = watched.start();
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh").args(["-c", work]).status().expect("sh is everywhere");
        assert!(status.success());
        let [cost] = &meter.stop(1.0)[..] else { panic!("one group is watched") };
        assert!(cost.cpu >= TICK && cost.wakeups >= 1.0 && cost.memory > 0.0, "{cost:?}");
    }
}
