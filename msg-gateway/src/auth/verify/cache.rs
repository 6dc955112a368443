//! The tokens that were verified lately, so that a caller's next call costs a hash and not a signature.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::auth::identity::Identity;

/// Number of parts, each with a lock of its own, so that calls rarely wait for each other.
const SHARDS: usize = 16;
/// Maximum number of tokens of a part. A token needs about 300 bytes here.
const SHARD_TOKENS: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// The SHA-256 of a whole token, with its signature.
pub(super) type Digest256 = [u8; 32];

/// The identities of verified tokens. It is bounded: the token that was used least recently is removed first. Tokens
/// that are not valid are never in it, so a caller cannot fill it with them.
#[derive(Debug)]
pub(crate) struct TokenCache {
    shards: [Mutex<LruCache<Digest256, Arc<Identity>>>; SHARDS],
}

impl Default for TokenCache {
    fn default() -> Self {
        TokenCache { shards: std::array::from_fn(|_| Mutex::new(LruCache::new(SHARD_TOKENS))) }
    }
}

pub(super) fn digest(token: &str) -> Digest256 {
    Sha256::digest(token.as_bytes()).into()
}

impl TokenCache {
    pub(super) fn get(&self, digest: &Digest256) -> Option<Arc<Identity>> {
        let mut shard = self.shard(digest).lock().unwrap_or_else(PoisonError::into_inner);
        shard.get(digest).cloned()
    }

    pub(super) fn put(&self, digest: Digest256, identity: Arc<Identity>) {
        let mut shard = self.shard(&digest).lock().unwrap_or_else(PoisonError::into_inner);
        shard.put(digest, identity);
    }

    pub(super) fn remove(&self, digest: &Digest256) {
        let mut shard = self.shard(digest).lock().unwrap_or_else(PoisonError::into_inner);
        shard.pop(digest);
    }

    fn shard(&self, digest: &Digest256) -> &Mutex<LruCache<Digest256, Arc<Identity>>> {
        &self.shards[usize::from(digest[0]) % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_is_bounded_and_keeps_the_tokens_in_use() {
        let cache = TokenCache::default();
        let identity = Arc::new(Identity::of_subject("alice"));
        let used = digest("used");
        cache.put(used, identity.clone());
        for number in 0..40_000 {
            cache.put(digest(&number.to_string()), identity.clone());
            assert!(cache.get(&used).is_some(), "removed after {number}");
        }
        let kept: usize = cache.shards.iter().map(|shard| shard.lock().expect("no panic").len()).sum();
        assert_eq!(kept, SHARDS * SHARD_TOKENS.get());
    }
}
