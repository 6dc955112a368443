//! Renders docs/metrics.md: the metrics that the services describe, with the labels that their code sets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::{cell, sources};

const INTRODUCTION: &str = "\
<!-- `make docs` writes this page from the code. -->
# Metrics

Each service has `/metrics` in Prometheus' text format on its admin port (`ADMIN_LISTEN`). No label holds a message, an
inbox or a key. What to alert on: [operations.md](operations.md).
";

pub(super) fn page(root: &Path) -> String {
    let both = described(|| {
        msg_common::telemetry::metrics();
    });
    let gateway = described(msg_gateway::metrics::describe);
    let transfer = described(|| {
        msg_transfer::metrics::describe();
        msg_transfer::lag::gauges::describe();
    });
    let mut page = INTRODUCTION.to_owned();
    section(&mut page, "Both services", &both, &labels(&root.join("src")));
    section(&mut page, "msg-gateway", &gateway, &labels(&root.join("msg-gateway/src")));
    section(&mut page, "msg-transfer", &transfer, &labels(&root.join("msg-transfer/src")));
    page
}

fn section(page: &mut String, heading: &str, described: &[Metric], labels: &BTreeMap<String, BTreeSet<String>>) {
    let names: BTreeSet<&String> = described.iter().map(|metric| &metric.name).collect();
    assert_eq!(names, labels.keys().collect(), "{heading}: each metric is described, and each described one is set");
    write!(page, "\n## {heading}\n\n| name | type | labels | unit | meaning |\n|---|---|---|---|---|\n").unwrap();
    for Metric { name, kind, unit, meaning } in described {
        let labels: Vec<_> = labels[name].iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{name}` | {kind} | {} | {unit} | {} |", labels.join(", "), cell(meaning)).unwrap();
    }
}

struct Metric {
    name: String,
    kind: &'static str,
    unit: &'static str,
    meaning: String,
}

/// A recorder that collects only descriptions.
#[derive(Default)]
struct Descriptions(Mutex<Vec<Metric>>);

impl Descriptions {
    fn add(&self, kind: &'static str, key: &KeyName, unit: Option<Unit>, meaning: &SharedString) {
        // Count is the default unit, so the page does not name it.
        let unit = unit.filter(|unit| *unit != Unit::Count).map_or("", |unit| unit.as_str());
        let metric = Metric { name: key.as_str().to_owned(), kind, unit, meaning: meaning.to_string() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(metric);
    }
}

impl Recorder for Descriptions {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.add("counter", &key, unit, &description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.add("gauge", &key, unit, &description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.add("histogram", &key, unit, &description);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

fn described(describe: impl FnOnce()) -> Vec<Metric> {
    let descriptions = Descriptions::default();
    metrics::with_local_recorder(&descriptions, describe);
    descriptions.0.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The metrics that the code below a folder sets, each with its labels: `counter!(NAME, "label" => …)`.
fn labels(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(folder, &mut files);
    let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let names: BTreeMap<&str, &str> = texts.iter().flat_map(|text| text.lines().filter_map(constant)).collect();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for text in &texts {
        for call in ["counter!(", "gauge!(", "histogram!("] {
            for (at, _) in text.match_indices(call).filter(|(at, _)| !text[..*at].ends_with("describe_")) {
                let arguments = arguments(&text[at + call.len()..]);
                let constant = arguments.split(',').next().unwrap_or_default().trim();
                let name = names.get(constant).unwrap_or_else(|| panic!("no constant of a metric: {constant}"));
                let parts: Vec<&str> = arguments.split("\" =>").collect();
                let found = parts[..parts.len() - 1].iter().filter_map(|part| part.rsplit('"').next());
                labels.entry((*name).to_owned()).or_default().extend(found.map(str::to_owned));
            }
        }
    }
    labels
}

/// The name and the value of `const NAME: &str = "msg_…";`.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (declared, value) =
        line.split_once(": &str = \"msg_").map(|(declared, _)| declared).zip(line.split('"').nth(1))?;
    Some((declared.rsplit(' ').next()?, value))
}

/// The text before the parenthesis that ends the call.
fn arguments(text: &str) -> &str {
    let mut open = 1;
    let end = text.find(|c| {
        open += i32::from(c == '(') - i32::from(c == ')');
        open == 0
    });
    &text[..end.expect("each call ends")]
}
