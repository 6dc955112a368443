//! The filter of dead letters, and the walk over them: page by page, in the order of their positions in Kafka.

use std::time::SystemTime;

use clap::Args;
use msg_common::config::parse_duration;
use msg_common::partition::Partition;
use msg_common::postgres::Object;
use msg_common::proto::DeadLetterReason;
use tokio_postgres::Error;
use uuid::Uuid;

use super::letter::{Position, SELECT_SUMMARY, Summary};

/// Maximum number of dead letters on a page. A page does not hold the bytes of their records.
const PAGE: i64 = 500;

const FILTERED: &str = "
    FROM dead_letters
    WHERE topic = $1
      AND ($2::integer[] IS NULL OR kafka_partition = ANY($2))
      AND ($3::bigint IS NULL OR kafka_offset = $3)
      AND ($4::text IS NULL OR reason = $4)
      AND ($5::text IS NULL OR recv_id = $5)
      AND ($6::timestamptz IS NULL OR first_seen >= $6)
      AND ($7::timestamptz IS NULL OR first_seen < $7)
      AND (NOT $8 OR replayed_at IS NULL)
      AND (topic_id, kafka_partition, kafka_offset, leader_epoch) > ($9, $10, $11, $12)
    ORDER BY topic_id, kafka_partition, kafka_offset, leader_epoch
    LIMIT $13";

/// The conditions that a dead letter of the topic has to meet, all of them.
#[derive(Args, Clone, Debug)]
pub struct Filter {
    /// Only dead letters of this partition; may be given more than once
    #[arg(long = "topic-partition", value_name = "P")]
    pub partitions: Vec<Partition>,
    /// Only dead letters at this offset; needs one --topic-partition
    #[arg(long, value_name = "OFFSET")]
    pub offset: Option<i64>,
    /// Only dead letters with this reason, such as INVALID
    #[arg(long, value_parser = parse_reason, value_name = "REASON")]
    pub reason: Option<&'static str>,
    /// Only dead letters to this inbox, if the inbox is known
    #[arg(long, value_name = "ID")]
    pub recv_id: Option<String>,
    /// Only dead letters that were first seen at this time or later, such as 2026-11-23T10:00:00Z, or 2h for two hours
    /// ago
    #[arg(long, value_parser = parse_moment, value_name = "TIME")]
    pub since: Option<SystemTime>,
    /// Only dead letters that were first seen before this time
    #[arg(long, value_parser = parse_moment, value_name = "TIME")]
    pub until: Option<SystemTime>,
    /// Only dead letters that were not replayed
    #[arg(long)]
    pub not_replayed: bool,
    /// Maximum number of dead letters
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

impl Filter {
    /// Returns the problems of the flags.
    pub fn problems(&self) -> Vec<String> {
        let alone = self.offset.is_some() && self.partitions.len() != 1;
        alone.then(|| "--offset needs one --topic-partition".to_owned()).into_iter().collect()
    }

    /// Returns whether no flag selects dead letters. `--limit` and `--not-replayed` do not count.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
            && self.offset.is_none()
            && self.reason.is_none()
            && self.recv_id.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }
}

pub(super) struct Walk<'a> {
    topic: &'a str,
    filter: &'a Filter,
    after: Position,
    left: i64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(topic: &'a str, filter: &'a Filter) -> Self {
        let left = filter.limit.map_or(i64::MAX, i64::from);
        Walk {
            topic,
            filter,
            after: Position { topic_id: Uuid::nil(), partition: -1, offset: -1, leader_epoch: -1 },
            left,
        }
    }

    /// Returns the next page, or an empty one at the end.
    pub(super) async fn next(&mut self, client: &Object) -> Result<Vec<Summary>, Error> {
        let filter = self.filter;
        let partitions = (!filter.partitions.is_empty()).then_some(&filter.partitions);
        let (after, limit) = (self.after, self.left.min(PAGE));
        if limit == 0 {
            return Ok(Vec::new());
        }
        let statement = client.prepare_cached(&format!("{SELECT_SUMMARY}{FILTERED}")).await?;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 13] = [
            &self.topic,
            &partitions,
            &filter.offset,
            &filter.reason,
            &filter.recv_id,
            &filter.since,
            &filter.until,
            &filter.not_replayed,
            &after.topic_id,
            &after.partition,
            &after.offset,
            &after.leader_epoch,
            &limit,
        ];
        let rows = client.query(&statement, &parameters).await?;
        let page: Vec<Summary> = rows.iter().map(Summary::of).collect();
        if let Some(last) = page.last() {
            self.after = last.position;
        }
        self.left -= i64::try_from(page.len()).expect("at most a page");
        Ok(page)
    }
}

const PREFIX: &str = "DEAD_LETTER_REASON_";

/// Parses a reason of the contract, without its prefix.
fn parse_reason(text: &str) -> Result<&'static str, String> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    let found = DeadLetterReason::from_str_name(&format!("{PREFIX}{name}"));
    match found {
        Some(reason) if reason != DeadLetterReason::Unspecified => Ok(reason.as_str_name().trim_start_matches(PREFIX)),
        _ => {
            Err("is not a reason, such as UNDECODABLE, INVALID, REJECTED_BY_DATABASE, IDEMPOTENCY_CONFLICT, TOO_LARGE"
                .into())
        }
    }
}

/// Parses a moment: `2026-11-23T10:00:00Z`, or how long ago, such as `2h`.
fn parse_moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(moment) = humantime::parse_rfc3339_weak(text) {
        return Ok(moment);
    }
    let ago = parse_duration(text)
        .map_err(|_| "needs a time such as 2026-11-23T10:00:00Z, or how long ago, such as 2h".to_owned())?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "is too long ago".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_parsed_as_the_contract_names_it() {
        assert_eq!(parse_reason("rejected-by-database"), Ok("REJECTED_BY_DATABASE"));
        assert_eq!(parse_reason("INVALID"), Ok("INVALID"));
        for bad in ["", "unspecified", "nonsense"] {
            assert!(parse_reason(bad).is_err(), "{bad}");
        }
    }
}
