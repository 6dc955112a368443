//! A record of a batch: its bytes, and the message that was decoded from them.

use machine::Reason;
use machine::lane::{Entry, Kind, Message};
use msg_common::record::{self, DecodeError, Record};
use uuid::Uuid;

use super::item::{Item, RawRecord};

#[derive(Debug)]
pub(crate) struct DecodedRecord {
    pub item: Item,
    pub content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// A message that PostgreSQL can hold.
    Message(Box<Record>),
    /// No message; its inbox and ID, if they are known and the table can hold them.
    Broken(Option<String>, Option<Uuid>),
}

impl DecodedRecord {
    pub(crate) fn read(item: Item) -> Entry<DecodedRecord> {
        let RawRecord { key, value, headers, .. } = &item.record;
        let version = headers.last(record::VERSION_HEADER);
        let (kind, content) = match record::decode(key.as_deref(), version, value.clone()) {
            Ok(record) => (Kind::Message, Content::Message(Box::new(record))),
            Err(error @ DecodeError::Newer(_)) => (Kind::Newer(error.to_string()), Content::Broken(None, None)),
            Err(DecodeError::Undecodable(detail)) => {
                (Kind::Broken(Reason::Undecodable, detail), Content::Broken(None, None))
            }
            Err(DecodeError::Invalid { detail, recv_id, msg_id }) => {
                // An inbox that the table or its index cannot hold would make the dead letter fail.
                let fits = !recv_id.contains('\0') && recv_id.len() <= msg_common::limits::MAX_ID_BYTES;
                (Kind::Broken(Reason::Invalid, detail), Content::Broken(fits.then_some(recv_id), msg_id))
            }
        };
        Entry::new(item.assignment.clone(), item.record_ref(), kind, DecodedRecord { item, content })
    }

    /// Returns the message. Panics if the record holds none.
    pub(crate) fn record(&self) -> &Record {
        match &self.content {
            Content::Message(record) => record,
            Content::Broken(..) => unreachable!("the machine uses only messages"),
        }
    }

    pub(crate) fn known_recv_id(&self) -> Option<&str> {
        match &self.content {
            Content::Message(record) => Some(&record.msg.recv_id),
            Content::Broken(recv_id, _) => recv_id.as_deref(),
        }
    }

    pub(crate) fn known_msg_id(&self) -> Option<Uuid> {
        match &self.content {
            Content::Message(record) => Some(record.msg_id),
            Content::Broken(_, msg_id) => *msg_id,
        }
    }
}

impl Message for DecodedRecord {
    fn recv_id(&self) -> &str {
        &self.record().msg.recv_id
    }

    fn msg_id(&self) -> Uuid {
        self.record().msg_id
    }
}

#[cfg(test)]
mod tests {
    use machine::Reason;
    use msg_common::proto::DeadLetterReason;

    #[test]
    fn dead_letter_reasons_are_those_of_the_contract() {
        for reason in Reason::ALL {
            let name = format!("DEAD_LETTER_REASON_{}", reason.name());
            assert!(DeadLetterReason::from_str_name(&name).is_some(), "{name}");
        }
    }
}
