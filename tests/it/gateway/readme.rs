//! The grpcurl lines of the README and of docs/tour.md: each gives the output that its page shows. Those of
//! docs/security.md are in `security/page.rs`.

use std::path::{Path, PathBuf};

use prost_types::Timestamp;
use serde_json::Value;
use tokio::process::Command;

use crate::support::stack::stack;
use crate::support::world::World;
use crate::support::{ensure, eventually};

const README: &str = include_str!("../../../README.md");
const TOUR: &str = include_str!("../../../docs/tour.md");
/// The gateway's address on all pages.
pub(crate) const ADDRESS: &str = "127.0.0.1:50051";
const INSTALL: &str = "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";

/// A command and the output that the page shows for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) command: String,
    pub(crate) output: String,
}

/// The grpcurl commands of all ```console fences. A command continues after a `\` at the end of a line and within
/// quotes.
fn examples(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let (mut in_fence, mut in_command, mut in_output) = (false, false, false);
    for line in text.lines() {
        if line.starts_with("```") {
            in_fence = !in_fence && line == "```console";
            (in_command, in_output) = (false, false);
            continue;
        }
        if !in_fence {
            continue;
        }
        if let Some(command) = line.strip_prefix("$ ").filter(|_| !in_command) {
            in_output = false;
            if command.starts_with("grpcurl") {
                examples.push(Example { command: String::new(), output: String::new() });
                (in_command, in_output) = (true, true);
            }
        }
        let Some(example) = examples.last_mut().filter(|_| in_output) else { continue };
        if in_command {
            example.command += line.strip_prefix("$ ").unwrap_or(line);
            example.command.push('\n');
            let quoted = example.command.matches('\'').count() % 2 == 1;
            in_command = quoted || line.ends_with('\\');
        } else {
            example.output += line;
            example.output.push('\n');
        }
    }
    examples
}

#[test]
fn examples_are_found_with_their_continuations() {
    let text = "$ grpcurl not in a fence\n```console\n$ make up\n$ not grpcurl\nx\n$ grpcurl -d '{\n $ 1}' \\\n  here\n{\n}\n\
                $ grpcurl b\n```\n```\n$ grpcurl c\n```\n";
    let example = |command: &str, output: &str| Example { command: command.into(), output: output.into() };
    let expected = [example("grpcurl -d '{\n $ 1}' \\\n  here\n", "{\n}\n"), example("grpcurl b\n", "")];
    assert_eq!(examples(text), expected);
}

/// The path of grpcurl: from `GRPCURL`, the `PATH`, or Go's folder for executables.
pub(crate) fn grpcurl() -> PathBuf {
    if let Some(path) = std::env::var_os("GRPCURL").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join("go/bin"));
    let mut found = std::env::split_paths(&path).chain(home).map(|folder| folder.join("grpcurl"));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("grpcurl is missing; install it with: {INSTALL}"))
}

#[tokio::test]
async fn readme_grpcurl_lines_give_the_output_shown() {
    assert_page("readme", README, 5).await;
}

#[tokio::test]
async fn tour_grpcurl_lines_give_the_output_shown() {
    assert_page("tour", TOUR, 12).await;
}

/// Runs the grpcurl lines of a page, which has at least `lines` of them, against services of its own.
async fn assert_page(name: &str, page: &str, lines: usize) {
    let stack = stack().await;
    let world = World::on(stack, name, 16);
    world.create(stack).await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let at = |text: &str| text.replace(ADDRESS, &gateway.address);
    let change = |example: Example| Example { command: at(&example.command), output: at(&example.output) };
    assert_examples(&world, page, lines, change).await;
}

/// Runs the grpcurl lines of a page, which has at least `lines` of them, in the top folder. `change` replaces what is
/// different in this world.
pub(crate) async fn assert_examples(world: &World, page: &str, lines: usize, change: impl Fn(Example) -> Example) {
    let (grpcurl, root) = (grpcurl(), Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let examples = examples(page);
    assert!(examples.len() >= lines, "the page shows {} grpcurl lines", examples.len());
    for example in examples {
        assert!(example.command.contains(ADDRESS) && !example.output.is_empty(), "{example:?}");
        let example = change(example);
        let script = format!("\"$GRPCURL\"{}", example.command.strip_prefix("grpcurl").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("GRPCURL", &grpcurl).current_dir(&root);
        let run = command.output().await.unwrap_or_else(|error| panic!("sh: {error}"));
        // As a terminal shows them: an error's details are on stderr.
        let output = String::from_utf8([run.stdout, run.stderr].concat()).unwrap();
        assert_same_output(&example, &output);
        if run.status.success() && example.command.trim_end().ends_with("/SendMsg") {
            wait_until_stored(world, &output).await;
        }
    }
}

/// Waits until the message of this response is stored: the next line may read it.
async fn wait_until_stored(world: &World, output: &str) {
    let response: Value = serde_json::from_str(output).unwrap();
    let msg_id = response["placement"]["msgId"].as_str().unwrap().to_owned();
    let database = world.database().await;
    eventually("the message is stored", async || {
        let query = "SELECT count(*) FROM messages WHERE msg_id::text = $1";
        let count: i64 = database.query_one(query, &[&msg_id]).await?.get(0);
        ensure(count == 1, count)
    })
    .await;
}

/// Compares JSON by value, where any time equals any other, and all other text literally.
fn assert_same_output(example: &Example, output: &str) {
    assert_eq!(parts(output), parts(&example.output), "{}{output}", example.command);
}

/// The JSON values at the start of the output, and the text after them.
fn parts(output: &str) -> (Vec<Value>, &str) {
    let mut stream = serde_json::Deserializer::from_str(output).into_iter::<Value>();
    let (mut values, mut end) = (Vec::new(), 0);
    while let Some(Ok(mut value)) = stream.next() {
        mask_times(&mut value);
        values.push(value);
        end = stream.byte_offset();
    }
    (values, output[end..].trim())
}

fn mask_times(value: &mut Value) {
    match value {
        Value::String(text) if text.parse::<Timestamp>().is_ok() => *text = "a time".into(),
        Value::Array(values) => values.iter_mut().for_each(mask_times),
        Value::Object(entries) => entries.values_mut().for_each(mask_times),
        _ => {}
    }
}
