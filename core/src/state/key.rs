//! Stored keys: how everything that apply produces is laid out in one ordered key space.
//!
//! ```text
//!  table u8 | partition u64 | namespace id u32 | item                            | !index u64 | !op u16
//!  \___________ head, 13 bytes _____________/   \__ per table, see [`Table`] __/  \___ stamp, 10 bytes ___/
//!  \______________________ logical key ________________________________________/
//! ```
//!
//! All integers big-endian, so byte order is logical order: by table, then partition, then namespace, then item, then the
//! *newest* version first (the stamp is inverted). The partition is a hash of the namespace, so a shard owns contiguous
//! ranges of each table. The memory store keeps one version of each logical key and carries the stamp beside it; tables
//! on disk write it out. State roots always cover the whole key.
//!
//! A variable part is *escaped*: `00` becomes `00 FF`, and `00 01` ends it. Escaped parts sort as their bytes do, none is
//! a prefix of another, and whatever follows cannot change the order of the parts before it. (The scheme of CockroachDB's
//! `util/encoding`.) Without zero bytes, the common case, it costs two bytes.

use gristmill_rpc::ids::GrainId;
use std::borrow::Cow;

/// Bytes of the part that all keys begin with.
pub const HEAD_BYTES: usize = 13;
/// Bytes of the part that all stored keys end with.
pub const STAMP_BYTES: usize = 10;
/// Bytes of a subject token.
pub const SUBJECT_TOKEN_BYTES: usize = 16;

const ESCAPED: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const ESCAPED_END: u8 = 0x01;

/// What a key space holds. The number is the first byte of a stored key and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// The shard's own record (applied position, clock, root). Item: empty.
    Meta = 0x01,
    /// The ranges of partitions that the shard owns. Item: empty.
    Owned = 0x02,
    /// Namespaces by name; namespace id 0 in the key. Item: escaped name.
    Namespaces = 0x10,
    /// Live counts of a namespace. Item: empty.
    Counters = 0x11,
    /// Plain values. Item: escaped user key.
    Values = 0x20,
    /// What expires when: the partition's place holds the expiry (ms), the record holds the partition, so that the
    /// shard's whole order of expiry is one scan. Item: escaped user key.
    Expiry = 0x21,
    /// Grains. Item: subject token (16), grain id (16), so that a subject's grains are one range.
    Grains = 0x30,
    /// A grain's subject by its id. Item: grain id (16).
    GrainIds = 0x31,
    /// Relations, subject first. Item: of `core/relation`, for all six orders.
    RelationsSpo = 0x40,
    /// Relations by subject, object, predicate.
    RelationsSop = 0x41,
    /// Relations by predicate, subject, object.
    RelationsPso = 0x42,
    /// Relations by predicate, object, subject.
    RelationsPos = 0x43,
    /// Relations by object, subject, predicate.
    RelationsOsp = 0x44,
    /// Relations by object, predicate, subject.
    RelationsOps = 0x45,
    /// Remembered answers; partition and namespace 0. Item: session u64, sequence u64.
    Answers = 0x50,
    /// The highest sequence that each session's window has forgotten; partition and namespace 0. Item: session u64.
    SessionFloors = 0x51,
}

impl Table {
    /// All tables, in key order.
    pub const ALL: [Table; 16] = [
        Table::Meta,
        Table::Owned,
        Table::Namespaces,
        Table::Counters,
        Table::Values,
        Table::Expiry,
        Table::Grains,
        Table::GrainIds,
        Table::RelationsSpo,
        Table::RelationsSop,
        Table::RelationsPso,
        Table::RelationsPos,
        Table::RelationsOsp,
        Table::RelationsOps,
        Table::Answers,
        Table::SessionFloors,
    ];

    /// The table of a key's first byte.
    pub fn from_byte(byte: u8) -> Option<Table> {
        Self::ALL.into_iter().find(|table| *table as u8 == byte)
    }

    /// Whether the state root covers the table. What can be derived from covered tables is left out: covering it would
    /// cost a hash a key and prove nothing more.
    pub fn in_root(self) -> bool {
        matches!(
            self,
            Table::Owned | Table::Namespaces | Table::Values | Table::Grains | Table::Answers | Table::SessionFloors
        )
    }
}

/// A namespace's number within its shard: given out in the order of first writes, from 1. Zero means "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// In keys that belong to no namespace.
    pub const NONE: NamespaceId = NamespaceId(0);
}

/// Where in the key space something belongs: the part of the head behind the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// Hash of the namespace: a position on the ring.
    pub partition: u64,
    /// The namespace.
    pub namespace: NamespaceId,
}

impl Scope {
    /// Of what belongs to the shard as a whole.
    pub const SHARD: Scope = Scope { partition: 0, namespace: NamespaceId::NONE };
}

/// Which write produced a record: log index and position of the operation within the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The log index: the record's version.
    pub index: u64,
    /// The operation's position in its command; [`Stamp::OP_SESSION`] and above for what apply writes by itself.
    pub op: u16,
}

impl Stamp {
    /// Position of the answer that a session remembers.
    pub const OP_SESSION: u16 = 0xfff0;
    /// Position of the removal of what expired.
    pub const OP_SWEEP: u16 = 0xfff1;
    /// Position of the shard's own bookkeeping.
    pub const OP_META: u16 = 0xfff2;
}

const _: () = assert!(gristmill_rpc::limits::BATCH_OPS_MAX <= Stamp::OP_SESSION as usize);

/// A stand-in for a subject: what keys are sorted by, so that all grains of a subject lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectToken(pub [u8; SUBJECT_TOKEN_BYTES]);

impl SubjectToken {
    /// The token of a subject: the first 16 bytes of its BLAKE3 hash under a fixed key. The same in all namespaces and on
    /// all nodes.
    pub fn of(subject: &str) -> SubjectToken {
        const KEY: &[u8; 32] = b"gristmill subject token v1      ";
        let hash = blake3::keyed_hash(KEY, subject.as_bytes());
        let mut token = [0; SUBJECT_TOKEN_BYTES];
        token.copy_from_slice(&hash.as_bytes()[..SUBJECT_TOKEN_BYTES]);
        SubjectToken(token)
    }
}

/// Why bytes are not a stored key. Keys are only ever read back from our own store, so each means damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Fewer bytes than any key of the table has.
    #[error("stored key of {length} bytes is too short; the store is damaged")]
    Truncated {
        /// The bytes there were.
        length: usize,
    },
    /// The first byte names no table.
    #[error("stored key begins with {found:#04x}, which is no table; the store is damaged or of a newer version")]
    Table {
        /// The byte.
        found: u8,
    },
    /// An escaped part has no end, or a zero byte that is neither escape nor end.
    #[error("stored key has a malformed escape at byte {at}; the store is damaged")]
    Escape {
        /// Position within the escaped part.
        at: usize,
    },
    /// There are bytes where the key should end.
    #[error("stored key goes on for {length} bytes beyond its end; the store is damaged")]
    Trailing {
        /// How many.
        length: usize,
    },
}

/// Appends a head. What follows is the table's item.
pub fn push_head(out: &mut Vec<u8>, table: Table, scope: Scope) {
    out.push(table as u8);
    out.extend_from_slice(&scope.partition.to_be_bytes());
    out.extend_from_slice(&scope.namespace.0.to_be_bytes());
}

/// Appends a variable part, escaped and ended.
pub fn push_escaped(out: &mut Vec<u8>, part: &[u8]) {
    push_escaped_open(out, part);
    out.extend_from_slice(&[ESCAPED, ESCAPED_END]);
}

/// Appends a variable part, escaped but not ended: the common prefix of all parts that begin with it.
pub fn push_escaped_open(out: &mut Vec<u8>, part: &[u8]) {
    for (at, piece) in part.split(|byte| *byte == ESCAPED).enumerate() {
        if at > 0 {
            out.extend_from_slice(&[ESCAPED, ESCAPED_ZERO]);
        }
        out.extend_from_slice(piece);
    }
}

/// Reads an escaped part off the front: (part, what follows it). Borrows where nothing was escaped.
pub fn split_escaped(bytes: &[u8]) -> Result<(Cow<'_, [u8]>, &[u8]), KeyError> {
    let mut unescaped: Option<Vec<u8>> = None;
    let mut from = 0;
    loop {
        let rest = &bytes[from..];
        let zero = from + rest.iter().position(|byte| *byte == ESCAPED).ok_or(KeyError::Escape { at: bytes.len() })?;
        match bytes.get(zero + 1) {
            Some(&ESCAPED_ZERO) => {
                let part = unescaped.get_or_insert_default();
                part.extend_from_slice(&bytes[from..zero]);
                part.push(0);
                from = zero + 2;
            }
            Some(&ESCAPED_END) => {
                let last = &bytes[from..zero];
                let part = match unescaped {
                    None => Cow::Borrowed(last),
                    Some(mut part) => {
                        part.extend_from_slice(last);
                        Cow::Owned(part)
                    }
                };
                return Ok((part, &bytes[zero + 2..]));
            }
            _ => return Err(KeyError::Escape { at: zero }),
        }
    }
}

/// Appends the stamp that ends a stored key.
pub fn push_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.extend_from_slice(&(!stamp.index).to_be_bytes());
    out.extend_from_slice(&(!stamp.op).to_be_bytes());
}

/// Logical key of a table's single record in a scope.
pub fn single(table: Table, scope: Scope) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES);
    push_head(&mut out, table, scope);
    out
}

/// Logical key of a namespace's own record.
pub fn namespace(partition: u64, name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + name.len() + 2);
    push_head(&mut out, Table::Namespaces, Scope { partition, namespace: NamespaceId::NONE });
    push_escaped(&mut out, name.as_bytes());
    out
}

/// Logical key of a plain value.
pub fn value(scope: Scope, user_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + user_key.len() + 2);
    push_head(&mut out, Table::Values, scope);
    push_escaped(&mut out, user_key);
    out
}

/// Logical key of the mark that a plain value expires.
pub fn expiry(expires_ms: u64, namespace: NamespaceId, user_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + user_key.len() + 2);
    push_head(&mut out, Table::Expiry, Scope { partition: expires_ms, namespace });
    push_escaped(&mut out, user_key);
    out
}

/// Logical key of a grain.
pub fn grain(scope: Scope, subject: SubjectToken, id: GrainId) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + SUBJECT_TOKEN_BYTES + 16);
    push_head(&mut out, Table::Grains, scope);
    out.extend_from_slice(&subject.0);
    out.extend_from_slice(&id.0);
    out
}

/// Logical key under which a grain's subject token is found by its id.
pub fn grain_id(scope: Scope, id: GrainId) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + 16);
    push_head(&mut out, Table::GrainIds, scope);
    out.extend_from_slice(&id.0);
    out
}

/// Logical key of a remembered answer.
pub fn answer(session: u64, sequence: u64) -> Vec<u8> {
    let mut out = answers_of(session);
    out.extend_from_slice(&sequence.to_be_bytes());
    out
}

/// What the keys of all remembered answers of a session begin with.
pub fn answers_of(session: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + 16);
    push_head(&mut out, Table::Answers, Scope::SHARD);
    out.extend_from_slice(&session.to_be_bytes());
    out
}

/// Logical key of a session's floor.
pub fn session_floor(session: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + 8);
    push_head(&mut out, Table::SessionFloors, Scope::SHARD);
    out.extend_from_slice(&session.to_be_bytes());
    out
}

/// A logical key, taken apart as far as all tables agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalKey<'a> {
    /// What it is a key of.
    pub table: Table,
    /// Where it belongs. ([`Table::Expiry`] keeps a time in the partition's place.)
    pub scope: Scope,
    /// The table's own part.
    pub item: &'a [u8],
}

impl<'a> LogicalKey<'a> {
    /// Takes a logical key apart.
    pub fn decode(bytes: &'a [u8]) -> Result<LogicalKey<'a>, KeyError> {
        let truncated = KeyError::Truncated { length: bytes.len() };
        let (table, rest) = bytes.split_first().ok_or(truncated)?;
        let (partition, rest) = rest.split_first_chunk().ok_or(truncated)?;
        let (namespace, item) = rest.split_first_chunk().ok_or(truncated)?;
        Ok(LogicalKey {
            table: Table::from_byte(*table).ok_or(KeyError::Table { found: *table })?,
            scope: Scope {
                partition: u64::from_be_bytes(*partition),
                namespace: NamespaceId(u32::from_be_bytes(*namespace)),
            },
            item,
        })
    }

    /// The item of a table whose item is one escaped part.
    pub fn escaped_item(&self) -> Result<Cow<'a, [u8]>, KeyError> {
        let (part, rest) = split_escaped(self.item)?;
        if rest.is_empty() { Ok(part) } else { Err(KeyError::Trailing { length: rest.len() }) }
    }

    /// The item of a table whose item has a fixed length.
    pub fn fixed_item<const N: usize>(&self) -> Result<[u8; N], KeyError> {
        match <[u8; N]>::try_from(self.item) {
            Ok(item) => Ok(item),
            Err(_) if self.item.len() > N => Err(KeyError::Trailing { length: self.item.len() - N }),
            Err(_) => Err(KeyError::Truncated { length: HEAD_BYTES + self.item.len() }),
        }
    }
}

/// Takes a stored key apart: (logical key, stamp).
pub fn split_stamp(stored: &[u8]) -> Result<(&[u8], Stamp), KeyError> {
    let (logical, stamp) =
        stored.split_last_chunk::<STAMP_BYTES>().ok_or(KeyError::Truncated { length: stored.len() })?;
    let [i0, i1, i2, i3, i4, i5, i6, i7, o0, o1] = *stamp;
    let index = !u64::from_be_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
    Ok((logical, Stamp { index, op: !u16::from_be_bytes([o0, o1]) }))
}

/// The first key after all keys that begin with `prefix`; `None` where there is no such key.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;
    use proptest::prelude::*;

    const SCOPE: Scope = Scope { partition: 0x0102_0304_0506_0708, namespace: NamespaceId(9) };

    /// Bytes that exercise the escape: few values, zeroes and their neighbours among them.
    fn tricky() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()], 0..8)
    }

    fn stored(user_key: &[u8], stamp: Stamp) -> Vec<u8> {
        let mut key = value(SCOPE, user_key);
        push_stamp(&mut key, stamp);
        key
    }

    /// Stores outlive the code: a changed byte here is a changed format.
    #[test]
    fn bytes_are_golden() {
        let key = stored(b"a\0b", Stamp { index: 5, op: 2 });
        assert_eq!(hex(&key), "200102030405060708000000096100ff620001fffffffffffffffafffd");
        let token = SubjectToken([0xaa; 16]);
        assert_eq!(
            hex(&grain(SCOPE, token, GrainId([0xbb; 16]))),
            format!("30010203040506070800000009{}{}", "aa".repeat(16), "bb".repeat(16))
        );
        assert_eq!(hex(&answer(1, 2)), format!("50{}00000000000000010000000000000002", "00".repeat(12)));
        assert_eq!(hex(&expiry(7, NamespaceId(9), b"k")), "210000000000000007000000096b0001");
        assert_eq!(hex(&SubjectToken::of("john").0), "ba1e643c384fc1a76c98eaf0e90845c3");
    }

    #[test]
    fn tables_are_listed_in_key_order() {
        assert!(Table::ALL.is_sorted());
        for byte in 0..=u8::MAX {
            let listed = Table::ALL.iter().filter(|table| **table as u8 == byte).count();
            assert_eq!(Table::from_byte(byte).map_or(0, |_| 1), listed);
        }
    }

    #[test]
    fn damaged_keys_are_refused_by_name() {
        assert_eq!(LogicalKey::decode(&[]), Err(KeyError::Truncated { length: 0 }));
        assert_eq!(LogicalKey::decode(&[0x20; 12]), Err(KeyError::Truncated { length: 12 }));
        assert_eq!(LogicalKey::decode(&[0x7f; 13]), Err(KeyError::Table { found: 0x7f }));
        assert_eq!(split_escaped(b"ab"), Err(KeyError::Escape { at: 2 }));
        assert_eq!(split_escaped(b"ab\0"), Err(KeyError::Escape { at: 2 }));
        assert_eq!(split_escaped(b"ab\0\x02"), Err(KeyError::Escape { at: 2 }));
        assert_eq!(split_stamp(&[0; 9]), Err(KeyError::Truncated { length: 9 }));
        let mut long = value(SCOPE, b"k");
        long.push(7);
        let decoded = LogicalKey::decode(&long).expect("head is intact");
        assert_eq!(decoded.escaped_item(), Err(KeyError::Trailing { length: 1 }));
        assert_eq!(decoded.fixed_item::<2>(), Err(KeyError::Trailing { length: 2 }));
        assert_eq!(decoded.fixed_item::<8>(), Err(KeyError::Truncated { length: HEAD_BYTES + 4 }));
    }

    #[test]
    fn prefix_end_is_the_first_key_beyond() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }

    proptest! {
        /// Byte order of stored keys is: scope, then user key, then newest first.
        #[test]
        fn byte_order_is_logical_order(
            a in (0u64..3, 0u32..3, tricky(), 0u64..3, 0u16..3),
            b in (0u64..3, 0u32..3, tricky(), 0u64..3, 0u16..3),
        ) {
            let encode = |(partition, namespace, key, index, op): &(u64, u32, Vec<u8>, u64, u16)| {
                let mut out = value(Scope { partition: *partition, namespace: NamespaceId(*namespace) }, key);
                push_stamp(&mut out, Stamp { index: *index, op: *op });
                out
            };
            let logical = |(partition, namespace, key, index, op): (u64, u32, Vec<u8>, u64, u16)| {
                (partition, namespace, key, core::cmp::Reverse((index, op)))
            };
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), logical(a).cmp(&logical(b)));
        }

        #[test]
        fn decode_gives_back_what_encode_took(user_key in tricky(), index: u64, op: u16) {
            let key = stored(&user_key, Stamp { index, op });
            let (logical, stamp) = split_stamp(&key).expect("valid");
            prop_assert_eq!(stamp, Stamp { index, op });
            let decoded = LogicalKey::decode(logical).expect("valid");
            prop_assert_eq!((decoded.table, decoded.scope), (Table::Values, SCOPE));
            prop_assert_eq!(decoded.escaped_item().expect("valid"), user_key);
        }

        /// A prefix scan sees exactly the keys that begin with the prefix.
        #[test]
        fn open_prefixes_select_exactly(prefix in tricky(), user_key in tricky()) {
            let mut open = single(Table::Values, SCOPE);
            push_escaped_open(&mut open, &prefix);
            prop_assert_eq!(value(SCOPE, &user_key).starts_with(&open), user_key.starts_with(&prefix));
        }

        /// No escaped part is a prefix of another, so parts can follow each other.
        #[test]
        fn escaped_parts_are_prefix_free(a in tricky(), b in tricky()) {
            let escape = |part: &[u8]| { let mut out = Vec::new(); push_escaped(&mut out, part); out };
            prop_assert_eq!(escape(&a).starts_with(&escape(&b)), a == b);
        }

        #[test]
        fn prefix_end_bounds_the_prefix(prefix in tricky(), key in tricky()) {
            let inside = key >= prefix && prefix_end(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            if let Ok(key) = LogicalKey::decode(&bytes) {
                let _ = key.escaped_item();
            }
            let _ = split_stamp(&bytes);
        }
    }
}
