//! Makes the ID of a message. It is derived from the sender's own ID if there is one, so that a message that is sent again
//! is the same message.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Returns the ID of a message.
///
/// With a `client_msg_id` it is a UUIDv8: the first 16 bytes of the SHA-256 of `send_id`, `recv_id` and
/// `client_msg_id`, each preceded by its length in bytes as 4 bytes in network order, with the version and the variant
/// set. So every gateway gives a retry the same ID without keeping state for it, and a sender cannot construct two messages
/// with the same ID. Without a `client_msg_id` it is a UUIDv7, a new one for each call.
pub fn msg_id(send_id: &str, recv_id: &str, client_msg_id: &str) -> Uuid {
    if client_msg_id.is_empty() {
        return Uuid::now_v7();
    }
    let mut hash = Sha256::new();
    for part in [send_id, recv_id, client_msg_id] {
        let length = u32::try_from(part.len()).expect("IDs are far shorter than 4 GiB");
        hash.update(length.to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn id_follows_the_recipe_of_the_docs() {
        // python3: h = hashlib.sha256(b''.join(len(s).to_bytes(4, 'big') + s for s in (b'alice', b'bob', b'1'))).digest()
        // uuid.UUID(bytes=bytes([*h[:6], h[6] & 0x0f | 0x80, h[7], h[8] & 0x3f | 0x80, *h[9:16]]))
        assert_eq!(msg_id("alice", "bob", "1").to_string(), RECIPE_EXAMPLE);
    }

    const RECIPE_EXAMPLE: &str = "146a196a-2269-8b20-b0b2-fa09eec689b4";

    #[test]
    fn id_without_a_client_msg_id_is_new_for_each_call() {
        let (a, b) = (msg_id("alice", "bob", ""), msg_id("alice", "bob", ""));
        assert_ne!(a, b);
        assert_eq!(a.get_version_num(), 7);
    }

    proptest! {
        #[test]
        fn id_is_the_same_only_for_the_same_three_ids(
            a in "[ab]{0,3}", b in "[ab]{0,3}", c in "[ab]{1,3}",
            x in "[ab]{0,3}", y in "[ab]{0,3}", z in "[ab]{1,3}",
        ) {
            let same = (&a, &b, &c) == (&x, &y, &z);
            prop_assert_eq!(msg_id(&a, &b, &c) == msg_id(&x, &y, &z), same);
            prop_assert_eq!(msg_id(&a, &b, &c).get_version_num(), 8);
        }
    }
}
