//! A client in another language, with code generated from the contract: it must find the contract usable as it is.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use super::calls::{client, says_not_ready};
use crate::support::PATIENCE;
use crate::support::stack::stack;
use crate::support::world::World;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The interpreter that has the client's packages: of `PYTHON`, or of the project's own environment.
fn python() -> PathBuf {
    let given = std::env::var_os("PYTHON").filter(|path| !path.is_empty()).map(PathBuf::from);
    let python = given.unwrap_or_else(|| root().join(".tools/venv/bin/python"));
    let imports = "import grpc, grpc_status, grpc_tools, google.rpc.error_details_pb2";
    let checked = std::process::Command::new(&python).args(["-c", imports]).output();
    if !checked.is_ok_and(|output| output.status.success()) {
        panic!(
            "{} lacks the packages of the Python client; in {} run: python3 -m venv .tools/venv && \
             .tools/venv/bin/pip install -r tests/clients/python/requirements.txt",
            python.display(),
            root().display()
        );
    }
    python
}

/// Reads on until a line begins so.
async fn until(lines: &mut Lines<BufReader<ChildStdout>>, begin: &str) -> String {
    let search = async {
        loop {
            let line = lines.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("the client has ended without a line `{begin}`"));
            if line.starts_with(begin) {
                return line;
            }
        }
    };
    timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("the client does not come to `{begin}`"))
}

/// It begins while there is no topic, and goes on over a gateway that is killed: no message is lost or doubled.
#[tokio::test]
async fn a_python_client_sends_until_certain_and_pulls() {
    let (python, stack) = (python(), stack().await);
    let world = World::on(stack, "python", 4);
    stack.postgres().create_database("python").await.unwrap();
    let gateway = world.gateway("gateway", |spec| spec);
    gateway.service.launch().unwrap();
    drop(client(&gateway).await);
    says_not_ready(&gateway, &["topic python does not exist"]).await;
    const COUNT: i64 = 400;
    let mut running = Command::new(python)
        .arg(root().join("tests/clients/python/client.py"))
        .arg("--proto")
        .arg(root().join("proto"))
        .args(["--address", &gateway.address, "--count", &COUNT.to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    until(&mut lines, "NOT_SENT: again in").await;
    world.create_topic(stack).await;
    let _transfer = world.running_transfer().await;
    until(&mut lines, "sent 100").await;
    gateway.service.kill().await.unwrap();
    until(&mut lines, "UNAVAILABLE: again in").await;
    gateway.service.start().await.unwrap();
    let totals: Value = serde_json::from_str(&until(&mut lines, "{").await).unwrap();
    assert!(running.wait().await.unwrap().success());
    for (name, expected) in [
        ("sent", COUNT.into()),
        ("pulled", COUNT.into()),
        ("same", Value::Bool(true)),
        ("seq_from_1", Value::Bool(true)),
    ] {
        assert_eq!(totals[name], expected, "{name}: {totals}");
    }
    assert!(totals["not_sent"].as_i64() >= Some(1) && totals["unknown"].as_i64() >= Some(1), "{totals}");
    world.all_committed().await;
    world.assert_ordered_without_gaps().await;
    let rows = world.rows().await;
    assert_eq!(rows.len() as i64, COUNT, "P1, P2");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(
            (row.client_msg_id.as_str(), &row.content),
            (format!("python-{i}").as_str(), &format!("Grüße {i} 👋").into())
        );
    }
    assert_eq!(world.dead_letters().await, []);
}
