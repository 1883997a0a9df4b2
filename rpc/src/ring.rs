//! The ring that maps namespaces to shards: consistent hashing with virtual nodes, shared by server and clients.
//!
//! ```text
//!   0 ────●───────●──●─────────●────────●───── 2^64        ● virtual node (shard, replica): SipHash-2-4, KEY_VNODE
//!             ▲──────▶                                     ▲ namespace: SipHash-2-4, KEY_NAMESPACE
//!             namespace   its shard: the first virtual node at or after its hash, wrapping around
//! ```
//!
//! Everything here is part of the wire contract (PROTOCOL.md, section "Ring"): a client that computes another shard
//! than the server only loses the direct connection, but a server that computes another shard than its predecessor
//! would look for data where it is not. So the function is fixed byte by byte and has test vectors.
//!
//! Invariants: points are strictly ordered by (point, shard, replica); each shard has exactly `vnodes` points; adding
//! a shard moves keys only to it, removing one moves only its keys.
//! Limits: [`SHARDS_MAX`] shards, [`RING_VNODES_MAX`] virtual nodes each.
//! Source: Karger et al., "Consistent Hashing and Random Trees", STOC 1997.

use siphasher::sip::SipHasher24;

use crate::ids::ShardId;
use crate::limits::{RING_VNODES_DEFAULT, RING_VNODES_MAX, SHARDS_MAX};

/// First half of both SipHash keys: `gristml1` as little-endian bytes.
const KEY_0: u64 = u64::from_le_bytes(*b"gristml1");
/// Second half of the key for virtual nodes. Of 0 to 5999 the one whose rings of 2 to 64 shards at 150 virtual nodes
/// are most even: the fullest shard owns at most 1.162 times its fair share of the circle (a random key: about 1.25).
const KEY_1_VNODE: u64 = 3982;
/// Second half of the key for namespaces. Differs from the other so that a name never meets a virtual node's point.
const KEY_1_NAMESPACE: u64 = u64::from_le_bytes(*b"namespac");

/// One virtual node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualNode {
    /// Its place on the circle.
    pub point: u64,
    /// Whose it is.
    pub shard: ShardId,
    /// 0 to the number of virtual nodes per shard less one.
    pub replica: u32,
}

impl VirtualNode {
    /// The virtual node `replica` of a shard: SipHash-2-4 of shard and replica, each as four little-endian bytes.
    pub fn new(shard: ShardId, replica: u32) -> VirtualNode {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&shard.0.to_le_bytes());
        bytes[4..].copy_from_slice(&replica.to_le_bytes());
        VirtualNode { point: SipHasher24::new_with_keys(KEY_0, KEY_1_VNODE).hash(&bytes), shard, replica }
    }
}

/// A namespace's place on the circle.
pub fn namespace_point(namespace: &[u8]) -> u64 {
    SipHasher24::new_with_keys(KEY_0, KEY_1_NAMESPACE).hash(namespace)
}

/// The ring. Equal sets of shards and equal `vnodes` give equal rings, whatever the order of the changes.
///
/// ```
/// use gristmill_rpc::{ids::ShardId, ring::Ring};
/// let mut ring = Ring::new(8, 150);
/// let before = ring.shard_of("tenant-7").expect("the ring has shards");
/// ring.add_shard(ShardId(8));
/// let after = ring.shard_of("tenant-7").expect("the ring has shards");
/// assert!(after == before || after == ShardId(8));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    vnodes: u32,
    nodes: Vec<VirtualNode>,
}

impl Default for Ring {
    /// No shards, the default number of virtual nodes.
    fn default() -> Ring {
        Ring::empty(RING_VNODES_DEFAULT)
    }
}

impl Ring {
    /// A ring of the shards 0 to `shards - 1`.
    ///
    /// # Panics
    /// If `vnodes` is 0 or a limit is passed: what comes from a peer or a file is checked before.
    pub fn new(shards: u32, vnodes: u32) -> Ring {
        assert!(shards <= SHARDS_MAX, "{shards} shards, at most {SHARDS_MAX}");
        let mut ring = Ring::empty(vnodes);
        ring.nodes.reserve_exact(shards as usize * vnodes as usize);
        for shard in 0..shards {
            ring.nodes.extend((0..vnodes).map(|replica| VirtualNode::new(ShardId(shard), replica)));
        }
        ring.nodes.sort_unstable();
        ring
    }

    /// A ring without shards.
    ///
    /// # Panics
    /// If `vnodes` is 0 or over [`RING_VNODES_MAX`].
    pub fn empty(vnodes: u32) -> Ring {
        assert!((1..=RING_VNODES_MAX).contains(&vnodes), "{vnodes} virtual nodes, expected 1 to {RING_VNODES_MAX}");
        Ring { vnodes, nodes: Vec::new() }
    }

    /// Adds a shard; `false` if it was there. About one key in (shards + 1) moves, each to the new shard.
    ///
    /// # Panics
    /// If the ring is full or the id is [`ShardId::ANY`].
    pub fn add_shard(&mut self, shard: ShardId) -> bool {
        assert_ne!(shard, ShardId::ANY, "ANY is not a shard");
        if self.contains(shard) {
            return false;
        }
        assert!(self.shards() < SHARDS_MAX, "over {SHARDS_MAX} shards");
        self.nodes.extend((0..self.vnodes).map(|replica| VirtualNode::new(shard, replica)));
        self.nodes.sort_unstable();
        true
    }

    /// Removes a shard; `false` if it was not there. Only its keys move, spread over the others.
    pub fn remove_shard(&mut self, shard: ShardId) -> bool {
        let before = self.nodes.len();
        self.nodes.retain(|node| node.shard != shard);
        self.nodes.len() != before
    }

    /// The shard of a namespace; `None` only where the ring has no shards.
    pub fn shard_of(&self, namespace: &str) -> Option<ShardId> {
        self.shard_at(namespace_point(namespace.as_bytes()))
    }

    /// The shard that owns a place on the circle.
    pub fn shard_at(&self, point: u64) -> Option<ShardId> {
        let at = self.nodes.partition_point(|node| node.point < point);
        self.nodes.get(at).or_else(|| self.nodes.first()).map(|node| node.shard)
    }

    /// Whether a shard is on the ring.
    pub fn contains(&self, shard: ShardId) -> bool {
        self.nodes.binary_search(&VirtualNode::new(shard, 0)).is_ok()
    }

    /// Number of shards.
    pub fn shards(&self) -> u32 {
        (self.nodes.len() / self.vnodes as usize) as u32
    }

    /// Virtual nodes per shard.
    pub fn vnodes(&self) -> u32 {
        self.vnodes
    }

    /// All virtual nodes, in the order of their points.
    pub fn nodes(&self) -> &[VirtualNode] {
        &self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u32 = 1_000_000;

    fn shards_of_keys(ring: &Ring, keys: u32) -> Vec<u32> {
        (0..keys).map(|key| ring.shard_of(&format!("namespace-{key}")).expect("shards").0).collect()
    }

    /// The vectors of PROTOCOL.md. SipHash-2-4 itself is pinned by the vectors of its paper (Aumasson, Bernstein 2012).
    #[test]
    fn the_hash_is_the_documented_one() {
        let key: [u8; 16] = std::array::from_fn(|at| at as u8);
        let input: [u8; 15] = std::array::from_fn(|at| at as u8);
        assert_eq!(SipHasher24::new_with_key(&key).hash(&input), 0xa129_ca61_49be_45e5);

        let vnode = |shard, replica| VirtualNode::new(ShardId(shard), replica).point;
        assert_eq!(vnode(0, 0), 0x694e_dc3a_fa25_a2ad);
        assert_eq!(vnode(7, 149), 0xa4ea_6426_c00b_e4e4);
        assert_eq!(namespace_point(b"a"), 0x02bb_4223_7158_d4ad);
        assert_eq!(namespace_point("müller".as_bytes()), 0x307c_3106_653e_0f3b);
        let ring = Ring::new(8, 150);
        let shards: Vec<u32> =
            ["a", "b", "default", "tenant-7", "müller"].map(|name| ring.shard_of(name).expect("shards").0).to_vec();
        assert_eq!(shards, [0, 3, 6, 5, 3]);
    }

    /// P-01: 1 M keys on 8 shards, max/mean below 1.2.
    #[test]
    fn a_million_keys_spread_evenly_over_eight_shards() {
        let ring = Ring::new(8, 150);
        let mut load = [0_u32; 8];
        for shard in shards_of_keys(&ring, KEYS) {
            load[shard as usize] += 1;
        }
        assert_eq!(load.iter().sum::<u32>(), KEYS);
        let (max, mean) = (*load.iter().max().expect("eight"), KEYS / 8);
        assert!(f64::from(max) / f64::from(mean) < 1.2, "loads {load:?}");
    }

    /// The share of the circle itself, so independent of any sample of keys.
    #[test]
    fn every_ring_up_to_64_shards_is_even() {
        for shards in 2..=64_u32 {
            let ring = Ring::new(shards, 150);
            let mut share = vec![0_u128; shards as usize];
            let mut previous = ring.nodes().last().expect("nodes").point;
            for node in ring.nodes() {
                share[node.shard.0 as usize] += u128::from(node.point.wrapping_sub(previous));
                previous = node.point;
            }
            let fair = (1_u128 << 64) / u128::from(shards);
            let max = *share.iter().max().expect("shards");
            assert!(max * 1000 < fair * 1163, "{shards} shards: the fullest owns {max} of a fair {fair}");
        }
    }

    /// P-10: a ninth shard takes at most 1/9 + 3 % of the keys, and no key moves between old shards.
    #[test]
    fn adding_a_shard_moves_keys_only_to_it() {
        let mut ring = Ring::new(8, 150);
        let before = shards_of_keys(&ring, KEYS / 10);
        assert!(ring.add_shard(ShardId(8)));
        let after = shards_of_keys(&ring, KEYS / 10);
        let moved: Vec<u32> = before.iter().zip(&after).filter(|(a, b)| a != b).map(|(_, b)| *b).collect();
        assert!(moved.iter().all(|shard| *shard == 8));
        let share = moved.len() as f64 / before.len() as f64;
        assert!(share > 0.05 && share <= 1.0 / 9.0 + 0.03, "moved {share}");

        assert!(ring.remove_shard(ShardId(8)));
        assert_eq!(shards_of_keys(&ring, KEYS / 10), before);
    }

    #[test]
    fn the_order_of_changes_does_not_matter() {
        let mut ring = Ring::default();
        for shard in [5, 0, 3, 1, 4, 2] {
            assert!(ring.add_shard(ShardId(shard)));
            assert!(!ring.add_shard(ShardId(shard)), "a second time");
        }
        assert_eq!(ring, Ring::new(6, 150));
        assert_eq!((ring.shards(), ring.vnodes(), ring.nodes().len()), (6, 150, 900));
        assert!(ring.contains(ShardId(5)) && !ring.contains(ShardId(6)));
        assert!(!ring.remove_shard(ShardId(6)));
    }

    #[test]
    fn the_circle_wraps_around() {
        let ring = Ring::new(3, 2);
        let (first, last) = (ring.nodes()[0], ring.nodes()[5]);
        assert_eq!(ring.shard_at(0), Some(first.shard));
        assert_eq!(ring.shard_at(first.point), Some(first.shard), "a point belongs to itself");
        assert_eq!(ring.shard_at(last.point), Some(last.shard));
        assert_eq!(ring.shard_at(last.point + 1), Some(first.shard));
        assert_eq!(ring.shard_at(u64::MAX), Some(first.shard));
        assert_eq!(Ring::default().shard_of("a"), None);
    }
}
