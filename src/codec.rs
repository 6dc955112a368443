//! Owns how messages are encoded on gRPC: prost's codec with small buffers, and a limit on the number of fields. An entry
//! of two bytes on the wire needs more than a hundred bytes in memory, so a limit on bytes alone would not bound the memory
//! of a request.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

/// The initial size of the buffer of each call and direction. Buffers grow as needed. With tonic's own 8 KiB, the buffer
/// would need most of the memory of a stream that waits for messages.
const BUFFER_BYTES: usize = 512;
/// tonic passes encoded messages to the connection once the buffer holds this many bytes: tonic's own default.
const YIELD_BYTES: usize = 32 << 10;

/// Maximum number of fields at the top level of a message. The longest list of a request or response has 1,000 entries.
const MAX_FIELDS: usize = 2000;

/// prost's codec with small buffers, and with [`BoundedDecoder`].
#[derive(Clone, Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        SmallBuffers(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// Decodes messages, and rejects one with more than 2,000 fields at the top level.
#[derive(Debug)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        if !has_at_most(MAX_FIELDS, &bytes) {
            return Err(Status::out_of_range(format!("the message has more than {MAX_FIELDS} fields")));
        }
        U::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Returns whether a message has at most `max` fields at the top level. It also returns true if it cannot read a field,
/// because the decoder fails at the same field.
fn has_at_most(max: usize, mut message: &[u8]) -> bool {
    for _ in 0..max {
        if message.is_empty() {
            return true;
        }
        let Ok((tag, kind)) = decode_key(&mut message) else { return true };
        if skip_field(kind, tag, &mut message, DecodeContext::default()).is_err() {
            return true;
        }
    }
    message.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{BatchSendMsgRequest, Msg};

    #[test]
    fn limit_counts_fields_and_not_their_content() {
        for (count, expected) in [(0, true), (1, true), (10, true), (11, false), (1000, false)] {
            let batch = BatchSendMsgRequest { msgs: vec![Msg::default(); count], wait_for: 0 };
            assert_eq!(has_at_most(10, &batch.encode_to_vec()), expected, "{count}");
        }
        let content =
            vec![Msg::default(); 100].iter().flat_map(Message::encode_length_delimited_to_vec).collect::<Vec<_>>();
        let msg = Msg { content: content.into(), ..Msg::default() };
        assert!(has_at_most(10, &BatchSendMsgRequest { msgs: vec![msg; 10], wait_for: 0 }.encode_to_vec()));
    }

    #[test]
    fn invalid_bytes_are_left_to_the_decoder() {
        for bytes in [&[0xff_u8; 100][..], &[0x0a], &[0x0a, 5, 1], &[0x0b; 1000], &[0x0c], &[2, 0]] {
            assert!(has_at_most(1, bytes), "{bytes:?}");
            assert!(BatchSendMsgRequest::decode(bytes).is_err());
        }
    }
}
