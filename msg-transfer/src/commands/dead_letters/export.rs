//! `dead-letters export`: writes one JSON line for each dead letter, with the whole record.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use msg_common::partition::Partition;
use msg_common::postgres::Purpose;
use serde::Serialize;

use super::filter::{Filter, Walk};
use super::letter::Letter;
use crate::commands::access::connect;
use crate::commands::error::{CommandError, LetterError};
use crate::commands::output::{base64, json_line, rfc3339, write};
use crate::config::Config;

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub filter: Filter,
    /// New file to write to, instead of standard output. It contains messages: restrict who can read it
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Line {
    topic: String,
    topic_id: String,
    partition: Partition,
    offset: i64,
    reason: String,
    detail: String,
    recv_id: Option<String>,
    msg_id: Option<String>,
    first_seen: String,
    replayed_at: Option<String>,
    /// Null if the record had no key.
    key_base64: Option<String>,
    value_base64: Option<String>,
    headers: Vec<HeaderLine>,
}

#[derive(Serialize)]
struct HeaderLine {
    key_base64: String,
    value_base64: Option<String>,
}

/// Writes the dead letters one by one, so that memory holds only one record.
pub(super) async fn run(config: &Config, options: &Options) -> Result<ExitCode, CommandError> {
    let client = connect(config, Purpose::ReadPrimary).await?;
    let topic = &config.kafka.kafka_topic;
    let failed = |source| CommandError::File { path: options.file.clone().unwrap_or_default(), source };
    let mut file = options.file.as_deref().map(create).transpose().map_err(failed)?;
    let mut walk = Walk::new(topic, &options.filter);
    let mut exported = 0_u64;
    loop {
        let page = walk.next(&client).await?;
        if page.is_empty() {
            break;
        }
        for summary in page {
            let Some(letter) = Letter::fetch(&client, topic, summary.position).await? else {
                continue;
            };
            let line = json_line(&Line::of(topic, &letter)?);
            match &mut file {
                Some(file) => file.write_all(line.as_bytes()).map_err(failed)?,
                None => write(&line)?,
            }
            exported += 1;
        }
    }
    if let Some(file) = file {
        finish(file).map_err(failed)?;
    }
    tracing::info!(exported, "exported dead letters");
    Ok(ExitCode::SUCCESS)
}

/// Creates a file that only this user may read. Returns an error if the file exists.
fn create(path: &Path) -> std::io::Result<BufWriter<File>> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(BufWriter::new)
}

fn finish(file: BufWriter<File>) -> std::io::Result<()> {
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

impl Line {
    fn of(topic: &str, letter: &Letter) -> Result<Self, LetterError> {
        let summary = &letter.summary;
        let position = summary.position;
        let headers = letter
            .headers()?
            .into_iter()
            .map(|header| HeaderLine { key_base64: base64(header.key), value_base64: header.value.map(base64) });
        Ok(Line {
            topic: topic.to_owned(),
            topic_id: position.topic_id.to_string(),
            partition: position.partition,
            offset: position.offset,
            reason: summary.reason.clone(),
            detail: summary.detail.clone(),
            recv_id: summary.recv_id.clone(),
            msg_id: summary.msg_id.map(|id| id.to_string()),
            first_seen: rfc3339(summary.first_seen),
            replayed_at: summary.replayed_at.map(rfc3339),
            key_base64: letter.key.as_deref().map(base64),
            value_base64: letter.value.as_deref().map(base64),
            headers: headers.collect(),
        })
    }
}
