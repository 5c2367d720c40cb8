//! The seeded hash of texts: 64 bits of XXH3 under a secret that each process draws for itself.
//!
//! - *In:* bytes. *Out:* 64 bits that nobody outside can steer. *Bound:* none. *When full:* nothing to fill.
//!
//! The secret takes the place of a seed: a seed makes XXH3 derive such a secret again for every text over 240 bytes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;

use xxhash_rust::xxh3::{SecretInput, xxh3_64_with_secret_input};

/// A map keyed by such a hash; it is not hashed again.
pub(super) type HashedMap<V> = HashMap<u64, V, BuildHasherDefault<AsIs>>;

/// Hands on the u64 it is given.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct AsIs(u64);

/// Hashes texts under the secret of the process.
#[derive(Clone, Copy)]
pub(super) struct TextHash(&'static SecretInput<[u8; 192]>);

impl Default for TextHash {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TextHash {
    /// The secret stays one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextHash")
    }
}

impl TextHash {
    pub(super) fn new() -> Self {
        static SECRET: OnceLock<SecretInput<[u8; 192]>> = OnceLock::new();
        Self(SECRET.get_or_init(|| {
            let mut secret = [0; 192];
            rand::fill(&mut secret[..]);
            SecretInput::new(secret)
        }))
    }

    #[inline]
    pub(super) fn of(self, text: &[u8]) -> u64 {
        xxh3_64_with_secret_input(text, self.0)
    }
}

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
