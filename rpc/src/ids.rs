//! Identifiers that appear on the wire. Fixed width, little-endian once archived, never `usize`.

use siphasher::sip128::SipHasher24;

use rkyv::{Archive, Deserialize, Serialize};

/// A shard: one Raft group and the state behind it. Dense from 0 to the number of shards less one.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct ShardId(pub u32);

impl ShardId {
    /// "Route it for me": the server picks the shard from the request's namespace.
    pub const ANY: ShardId = ShardId(u32::MAX);
}

/// A grain's identity inside its namespace, chosen by the writer. Writing the same id again replaces the grain.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord))]
pub struct GrainId(pub [u8; 16]);

impl GrainId {
    /// An id made from a name that the application already has: SipHash-2-4 with 128 bits under a fixed key.
    ///
    /// Equal names give equal ids everywhere. It is not a cryptographic hash: where strangers choose names, they can
    /// make two that collide.
    ///
    /// ```
    /// use gristmill_rpc::ids::GrainId;
    /// assert_eq!(GrainId::from_name("wn:n07690152"), GrainId::from_name("wn:n07690152"));
    /// assert_ne!(GrainId::from_name("a"), GrainId::from_name("b"));
    /// ```
    pub fn from_name(name: &str) -> GrainId {
        GrainId(SipHasher24::new_with_keys(NAME_KEY_0, NAME_KEY_1).hash(name.as_bytes()).as_bytes())
    }
}

/// Both halves of the key of [`GrainId::from_name`], as little-endian bytes. Part of the wire contract.
const NAME_KEY_0: u64 = u64::from_le_bytes(*b"gristml1");
const NAME_KEY_1: u64 = u64::from_le_bytes(*b"grain-id");

/// A client session. Together with a sequence number it makes a retried write apply once. Zero means "none".
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct SessionId(pub u64);

impl SessionId {
    /// No session: the write is not deduplicated.
    pub const NONE: SessionId = SessionId(0);
}

/// The version of a value: the Raft log index that wrote it. Grows along a shard's history; zero never occurs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct Version(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_the_documented_ids() {
        let hex =
            |name: &str| GrainId::from_name(name).0.iter().fold(String::new(), |out, byte| format!("{out}{byte:02x}"));
        assert_eq!(hex(""), "b3402e42c72b59dd2c8bead378cc058a");
        assert_eq!(hex("wn:n07690152"), "5ef7085f4472484f2d49cbbd44e4a3e4");
    }
}
