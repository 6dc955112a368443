//! Messages that differ from another one in one field, for each field that the contract has.

use msg_common::proto::{DESCRIPTORS, Msg};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Returns, for each field of `Msg`, its name and `msg` with another value in it.
pub(crate) fn with_changed_fields(msg: &Msg) -> Vec<(String, Msg)> {
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut messages = files.file.iter().flat_map(|file| &file.message_type);
    let descriptor = messages.find(|message| message.name() == "Msg").unwrap();
    let change = |field: &FieldDescriptorProto| {
        // The last value of a field counts. To a map it adds an entry.
        let mut encoded = msg.encode_to_vec();
        append(&mut encoded, field, descriptor);
        let changed = Msg::decode(encoded.as_slice()).unwrap();
        assert_ne!(&changed, msg, "{} has its value already", field.name());
        (field.name().to_owned(), changed)
    };
    descriptor.field.iter().map(change).collect()
}

fn append(encoded: &mut Vec<u8>, field: &FieldDescriptorProto, message: &DescriptorProto) {
    let number = u32::try_from(field.number()).unwrap();
    let value = match field.r#type() {
        Type::String | Type::Bytes => b"changed".to_vec(),
        Type::Message => {
            let is_type = |nested: &&DescriptorProto| field.type_name().ends_with(&format!(".{}", nested.name()));
            let entry = message.nested_type.iter().find(is_type).expect("only maps are messages");
            let mut value = Vec::new();
            entry.field.iter().for_each(|field| append(&mut value, field, entry));
            value
        }
        Type::Int32 | Type::Int64 | Type::Uint32 | Type::Uint64 | Type::Bool | Type::Enum => {
            encode_key(number, WireType::Varint, encoded);
            return encode_varint(2, encoded);
        }
        other => panic!("{} needs another value of type {other:?}", field.name()),
    };
    encode_key(number, WireType::LengthDelimited, encoded);
    encode_varint(u64::try_from(value.len()).unwrap(), encoded);
    encoded.extend(value);
}
