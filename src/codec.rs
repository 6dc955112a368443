//! How messages are encoded on gRPC: prost's codec with small buffers, and a limit on what a message may hold. An entry of two
//! bytes becomes one of more than a hundred in memory, so a limit on its bytes alone does not bound what a request costs.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

/// What is allocated for each call and each direction before anything is known of its size. tonic's own 8 KiB would be most of
/// what a stream costs that waits for something to tell. Buffers grow as they are needed.
const BUFFER_BYTES: usize = 512;
/// So much is encoded before it is handed to the connection: tonic's own.
const YIELD_BYTES: usize = 32 << 10;

/// Most fields at the top of a message. The longest list that a request or an answer may have has 1,000 entries.
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

/// Decodes what has not too many fields.
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
        if !within(&bytes, MAX_FIELDS) {
            return Err(Status::out_of_range(format!("the message has more than {MAX_FIELDS} fields")));
        }
        U::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Whether a message has at most so many fields at its top. What cannot be read is left to the decoder, which stops there.
fn within(mut message: &[u8], max: usize) -> bool {
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
    fn fields_are_counted_and_not_what_is_in_them() {
        for (count, expected) in [(0, true), (1, true), (10, true), (11, false), (1000, false)] {
            let batch = BatchSendMsgRequest { msgs: vec![Msg::default(); count], wait_for: 0 };
            assert_eq!(within(&batch.encode_to_vec(), 10), expected, "{count}");
        }
        let content =
            vec![Msg::default(); 100].iter().flat_map(Message::encode_length_delimited_to_vec).collect::<Vec<_>>();
        let msg = Msg { content: content.into(), ..Msg::default() };
        assert!(within(&BatchSendMsgRequest { msgs: vec![msg; 10], wait_for: 0 }.encode_to_vec(), 10));
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        for bytes in [&[0xff_u8; 100][..], &[0x0a], &[0x0a, 5, 1], &[0x0b; 1000], &[0x0c], &[2, 0]] {
            assert!(within(bytes, 1), "{bytes:?}");
            assert!(BatchSendMsgRequest::decode(bytes).is_err());
        }
    }
}
