//! `dead-letters show`: prints one dead letter. The message's content is shown only with `--content`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use msg_common::partition::Partition;
use msg_common::postgres::{Object, Purpose};
use msg_common::proto::{Msg, MsgRecord, SessionType};
use prost::Message;
use serde::Serialize;
use uuid::Uuid;

use super::letter::Letter;
use crate::commands::access::connect;
use crate::commands::error::{CommandError, LetterError};
use crate::commands::output::{OutputOptions, base64, bytes_for_people, harmless, rfc3339};
use crate::config::Config;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Partition of the record
    #[arg(value_name = "PARTITION")]
    pub partition: Partition,
    /// Offset of the record
    #[arg(value_name = "OFFSET")]
    pub offset: i64,
    /// ID of the topic, if recreated topics of the same name have a dead letter at this position
    #[arg(long, value_name = "UUID")]
    pub topic_id: Option<Uuid>,
    /// Leader epoch of the record, if Kafka lost records and several dead letters have this offset
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub leader_epoch: Option<i32>,
    /// Also show the message's content, or the record's value if it contains no message
    #[arg(long)]
    pub content: bool,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// The JSON result. Bytes that are not UTF-8 are given as `base64:…`.
#[derive(Serialize)]
struct Report {
    topic: String,
    topic_id: String,
    partition: Partition,
    offset: i64,
    reason: String,
    detail: String,
    first_seen: String,
    replayed_at: Option<String>,
    key: Option<String>,
    headers: Vec<HeaderText>,
    value_bytes: Option<usize>,
    value_base64: Option<String>,
    /// The message as it is in the record, whether it breaks a rule or not.
    message: Option<MessageText>,
    /// Why a transfer of this build cannot decode the record.
    problem: Option<String>,
}

#[derive(Serialize)]
struct HeaderText {
    key: String,
    value: Option<String>,
}

#[derive(Serialize)]
struct MessageText {
    recv_id: String,
    send_id: String,
    client_msg_id: String,
    msg_id: String,
    session_type: String,
    content_type: String,
    attributes: BTreeMap<String, String>,
    send_time: String,
    content_bytes: usize,
    content: Option<String>,
}

pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let client = connect(config, Purpose::ReadPrimary).await?;
    let topic = &config.kafka.kafka_topic;
    let letter = find(&client, topic, options).await?;
    let report = Report::of(topic, &letter, options.content)?;
    options.output.print(&report, || lines(&report))?;
    Ok(ExitCode::SUCCESS)
}

async fn find(client: &Object, topic: &str, options: &Options) -> Result<Letter, CommandError> {
    let (partition, offset) = (options.partition, options.offset);
    let found = Letter::find(client, topic, partition, offset, options.topic_id, options.leader_epoch).await;
    let mut found = found?;
    let topic = topic.to_owned();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(LetterError::Missing { topic, partition, offset }.into()),
        _ => {
            let flags = |letter: &Letter| {
                let position = letter.summary.position;
                format!("--topic-id {} --leader-epoch={}", position.topic_id, position.leader_epoch)
            };
            let choices = found.iter().map(flags).collect();
            Err(LetterError::Several { topic, partition, offset, choices }.into())
        }
    }
}

impl Report {
    fn of(topic: &str, letter: &Letter, content: bool) -> Result<Self, LetterError> {
        let summary = &letter.summary;
        let message = letter.value.as_deref().and_then(|value| MsgRecord::decode(value).ok());
        let message = message.and_then(|record| MessageText::of(record, content));
        let value = letter.value.as_deref();
        let headers = letter
            .headers()?
            .into_iter()
            .map(|header| HeaderText { key: bytes_for_people(header.key), value: header.value.map(bytes_for_people) });
        Ok(Report {
            topic: topic.to_owned(),
            topic_id: summary.position.topic_id.to_string(),
            partition: summary.position.partition,
            offset: summary.position.offset,
            reason: summary.reason.clone(),
            detail: summary.detail.clone(),
            first_seen: rfc3339(summary.first_seen),
            replayed_at: summary.replayed_at.map(rfc3339),
            key: letter.key.as_deref().map(bytes_for_people),
            headers: headers.collect(),
            value_bytes: value.map(<[u8]>::len),
            value_base64: value.filter(|_| content).map(base64),
            message,
            problem: letter.decode().err().map(|error| error.to_string()),
        })
    }
}

impl MessageText {
    fn of(record: MsgRecord, content: bool) -> Option<Self> {
        // Without `..`, so that a new field does not compile until it is shown.
        let Msg { recv_id, send_id, client_msg_id, session_type, content_type, content: bytes, attributes } =
            record.msg?;
        let session_type = SessionType::try_from(session_type)
            .map_or_else(|_| session_type.to_string(), |kind| kind.as_str_name().to_owned());
        let msg_id = Uuid::from_slice(&record.msg_id).map(|id| id.to_string());
        Some(MessageText {
            recv_id,
            send_id,
            client_msg_id,
            msg_id: msg_id.unwrap_or_else(|_| bytes_for_people(&record.msg_id)),
            session_type,
            content_type,
            attributes,
            send_time: time(record.send_time_ms),
            content_bytes: bytes.len(),
            content: content.then(|| bytes_for_people(&bytes)),
        })
    }
}

/// Formats a time. A record that breaks the rules may hold any number, which is printed as it is.
fn time(millis: i64) -> String {
    let moment = u64::try_from(millis).ok().filter(|_| millis <= msg_common::limits::MAX_TIME_MS);
    let moment = moment.and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
    moment.map_or_else(|| format!("{millis} ms"), rfc3339)
}

fn lines(report: &Report) -> String {
    let mut lines = vec![
        ("position", format!("{} partition {} offset {}", report.topic, report.partition, report.offset)),
        ("topic id", report.topic_id.to_string()),
        ("reason", report.reason.clone()),
        ("detail", report.detail.clone()),
        ("first seen", report.first_seen.clone()),
        ("replayed", report.replayed_at.clone().unwrap_or_else(|| "no".to_owned())),
        ("this build", report.problem.clone().unwrap_or_else(|| "can decode the record".to_owned())),
        ("key", report.key.clone().unwrap_or_else(|| "none".to_owned())),
    ];
    for header in &report.headers {
        lines.push(("header", format!("{}: {}", header.key, header.value.as_deref().unwrap_or("no value"))));
    }
    let value = report.value_bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"));
    lines.push(("value", value));
    match &report.message {
        Some(message) => lines.extend(message_lines(message)),
        None => lines.extend(report.value_base64.iter().map(|value| ("value", format!("base64:{value}")))),
    }
    let line = |(name, value): &(&str, String)| format!("{name:<14} {}\n", harmless(value));
    lines.iter().map(line).collect()
}

fn message_lines(message: &MessageText) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("recv_id", message.recv_id.clone()),
        ("send_id", message.send_id.clone()),
        ("client_msg_id", message.client_msg_id.clone()),
        ("msg_id", message.msg_id.clone()),
        ("session_type", message.session_type.clone()),
        ("content_type", message.content_type.clone()),
        ("send_time", message.send_time.clone()),
    ];
    lines.extend(message.attributes.iter().map(|(key, value)| ("attribute", format!("{key}: {value}"))));
    let without = || format!("{} bytes (--content shows them)", message.content_bytes);
    lines.push(("content", message.content.clone().unwrap_or_else(without)));
    lines
}
