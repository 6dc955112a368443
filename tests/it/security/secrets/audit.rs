//! The audit log: what it has of refused callers and of commands, where it goes, and that it stops no service.

use std::path::Path;

use msg_common::audit::hash;
use msg_stack::Service;
use serde_json::{Value, json};

use super::super::auth::KeyFile;
use super::calls::FOREIGN;
use super::{INBOX, audit_file, audit_lines};
use crate::gateway::calls::{client, metric, send};
use crate::support::issuer::authorized;
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{ensure, eventually};
use crate::transfer::commands::{migrated, run_with};

/// Checks that a log of JSON lines has a line of each kind of refusal, with hashes of IDs.
pub(super) fn assert_refusals_are_recorded(service: &Service) {
    let lines = audit_lines(&std::fs::read_to_string(service.log()).unwrap());
    let mallory = hash("zq7xSecret93-mallory");
    let expected = [
        json!({ "who": "alice", "method": "PullMsgs", "inbox": hash(FOREIGN), "reason": "foreign_inbox" }),
        json!({ "who": "alice", "method": "GetMaxSeqs", "inbox": hash(FOREIGN), "reason": "foreign_inbox" }),
        json!({ "who": "alice", "method": "WatchMsgs", "inbox": hash(FOREIGN), "reason": "foreign_inbox" }),
        json!({ "who": "alice", "method": "GetMsgStatus", "inbox": hash(FOREIGN), "sender": mallory }),
        json!({ "who": "alice", "method": "SendMsg", "inbox": hash(INBOX), "sender": mallory, "reason": "foreign_send_id" }),
        json!({ "who": "alice", "method": "BatchSendMsg", "inbox": hash(INBOX), "sender": mallory }),
        json!({ "who": "alice", "method": "StreamSendMsg", "inbox": hash(INBOX), "sender": mallory }),
        json!({ "who": "alice", "method": "unknown", "reason": "no_rule" }),
        json!({ "who": null, "method": "SendMsg", "reason": "unknown_key", "address": "127.0.0.1" }),
        json!({ "who": null, "method": "SendMsg", "reason": "expired", "address": "127.0.0.1" }),
        json!({ "who": null, "method": "SendMsg", "reason": "malformed" }),
        json!({ "who": null, "method": "TLS handshake", "reason": "no_client_certificate", "address": "127.0.0.1" }),
    ];
    for one in expected {
        let fields = one.as_object().unwrap();
        let fits = |line: &&Value| fields.iter().all(|(name, value)| line[name] == *value);
        assert!(lines.iter().any(|line| fits(&line)), "no line with {one} in {lines:#?}");
    }
}

fn read(file: &Path) -> Vec<Value> {
    audit_lines(&std::fs::read_to_string(file).unwrap_or_default())
}

#[tokio::test]
async fn audit_log_in_a_file_has_what_the_log_has_not() {
    let world = World::new("audit_file").await;
    let (keys, folder) = (KeyFile::new(), tempfile::tempdir().unwrap());
    let (file, rotated) = (audit_file(&folder), folder.path().join("audit.1"));
    let settings = |spec: msg_stack::ServiceSpec| {
        spec.env("AUDIT_LOG_FILE", file.display()).env("LOG_FORMAT", "json").env("LOG_LEVEL", "trace")
    };
    let gateway = keys.gateway(&world, settings).await;
    let client = client(&gateway).await;
    let refuse = async |expected: usize| {
        let token = keys.key.token("alice", "");
        let request = msg_common::proto::SendMsgRequest { msg: Some(msg("bob", "carol", "1", "x")), wait_for: 0 };
        client.clone().send_msg(authorized(&token, request)).await.unwrap_err();
        eventually("the refusals are in the file", async || {
            let lines = read(&file);
            ensure(lines.len() == expected, format!("{lines:?}"))
        })
        .await;
    };
    refuse(1).await;
    refuse(2).await;
    let line = &read(&file)[0];
    assert_eq!(
        (&line["who"], &line["inbox"], &line["sender"]),
        (&json!("alice"), &json!(hash("carol")), &json!(hash("bob")))
    );
    std::fs::rename(&file, &rotated).unwrap();
    refuse(1).await;
    assert_eq!(read(&rotated).len(), 2, "lines after a rotation are in the new file");
    assert!(gateway.service.stop().await.unwrap().success());
    assert_eq!(read(gateway.service.log()), Vec::<Value>::new(), "no line is in both");
}

/// A disk that is full under the audit log delays no call; the lost lines are counted.
#[tokio::test]
async fn audit_log_that_cannot_be_written_is_counted() {
    let world = World::new("audit_full").await;
    let keys = KeyFile::new();
    let gateway = keys.gateway(&world, |spec| spec.env("AUDIT_LOG_FILE", "/dev/full")).await;
    let client = client(&gateway).await;
    for i in 0..100 {
        send(&client, &msg("alice", "bob", &i.to_string(), "x")).await.unwrap_err();
    }
    eventually("the lost lines are counted", async || {
        let dropped = metric(&gateway, "msg_audit_lines_dropped_total").await?;
        ensure(dropped == 100.0, dropped)
    })
    .await;
    assert_eq!(metric(&gateway, "msg_log_lines_dropped_total").await.unwrap(), 0.0);
    let token = keys.key.token("alice", "");
    super::super::auth::send_as(&client, &token, &msg("alice", "bob", "1", "x")).await.unwrap();
    assert!(gateway.service.stop().await.unwrap().success());
}

#[tokio::test]
async fn commands_of_operators_are_in_the_audit_log() {
    let world = migrated("audit_commands").await;
    let folder = tempfile::tempdir().unwrap();
    let file = audit_file(&folder);
    let path = file.to_str().unwrap();
    let bob = hash("bob");
    for (command, options, logged, inbox, outcome, code) in [
        ("purge", "--older-than 90days --dry-run", "--older-than 7776000s --dry-run", None, "completed", 0),
        ("purge", "--older-than 1h", "--older-than 3600s", None, "failed", 1),
        ("resume", "--topic-partition 3", "--topic-partition 3", None, "completed", 1),
        ("dead-letters replay", "--recv-id bob --again", "--again", Some(&bob), "completed", 0),
        (
            "dead-letters discard",
            "--reason INVALID --older-than 1h",
            "--reason INVALID --older-than 3600s",
            None,
            "completed",
            0,
        ),
        ("dead-letters list", "", "", None, "completed", 0),
    ] {
        // At every level of the log.
        let settings = [("AUDIT_LOG_FILE", path), ("LOG_LEVEL", "off")];
        run_with(&world, &format!("{command} {options}"), &settings).await.assert_code(code);
        let (lines, method) = (read(&file), json!(format!("msg-transfer {command}")));
        let [.., started, ended] = lines.as_slice() else { panic!("{command}: {lines:?}") };
        assert_eq!((&started["message"], &started["method"]), (&json!("started command"), &method));
        assert_eq!((&started["options"], &started["inbox"]), (&json!(logged), &json!(inbox)));
        assert!(started["who"].as_str().is_some_and(|who| who.starts_with("uid ")), "{started}");
        assert_eq!((&ended["method"], &ended["outcome"]), (&method, &json!(outcome)));
    }
    let before = read(&file).len();
    run_with(&world, "lag", &[("AUDIT_LOG_FILE", path)]).await.assert_code(0);
    assert_eq!(read(&file).len(), before, "it changes nothing and shows no message");
    let failed = run_with(&world, "lag", &[("AUDIT_LOG_FILE", "/nowhere/at/all")]).await.assert_code(64);
    assert!(
        failed.stderr.contains("--audit-log-file: cannot append to /nowhere/at/all: No such file"),
        "{}",
        failed.stderr
    );
    // Without a file, the lines are in the log, whatever its level is.
    let settings = [("LOG_LEVEL", "off"), ("LOG_FORMAT", "json")];
    let logged = run_with(&world, "purge --older-than 90days", &settings).await.assert_code(0);
    assert_eq!(audit_lines(&logged.stderr).len(), 2, "{}", logged.stderr);
}
