//! The bytes of the small records: plain values, namespaces, counters, answers, the shard's own record.
//!
//! All little-endian. Layouts (a `?` marks what is there only if a flag says so):
//!
//! ```text
//! value      0 layout u8 = 1   1 flags u8 (1: expires)   2? expires u64, ms since the epoch   .. the user's bytes
//! namespace  0 layout u8 = 1   1 id u32     5 dimensions u32 (0: not fixed yet)                9 end
//! counters   0 layout u8 = 1   1 values u64 9 grains u64  17 values that expire u64            25 end
//! meta       0 layout u8 = 1   1 term u64   9 index u64   17 HLC physical ms u64  25 HLC logical u32
//!           29 root accumulator, 128 bytes                157 end
//! ```
//!
//! Grains have a layout of their own (`grain.rs`), answers too (`session.rs`).

use super::hlc::Hlc;
use super::key::NamespaceId;
use super::root::{ACCUMULATOR_BYTES, RootAccumulator};
use super::store::StoreError;

const LAYOUT: u8 = 1;
const VALUE_EXPIRES: u8 = 1;

/// Takes integers off the front of a record.
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Of a record of any layout.
    pub(super) fn new(what: &'static str, record: &'a [u8]) -> Reader<'a> {
        Reader { what, rest: record }
    }

    /// Of a record that begins with the one layout that this build knows.
    fn with_layout(what: &'static str, record: &'a [u8]) -> Result<Reader<'a>, StoreError> {
        let mut reader = Reader::new(what, record);
        if reader.u8()? != LAYOUT {
            return Err(reader.malformed("unknown layout"));
        }
        Ok(reader)
    }

    pub(super) fn malformed(&self, detail: &'static str) -> StoreError {
        StoreError::Record { what: self.what, detail }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (front, back) = self.rest.split_first_chunk().ok_or(self.malformed("too short"))?;
        self.rest = back;
        Ok(*front)
    }

    pub(super) fn u8(&mut self) -> Result<u8, StoreError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, StoreError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, StoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn end(self) -> Result<(), StoreError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("trailing bytes")) }
    }
}

/// A plain value, read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ValueRef<'a> {
    /// When it expires; `None` means never.
    pub(super) expires_ms: Option<u64>,
    /// The user's bytes.
    pub(super) bytes: &'a [u8],
}

impl<'a> ValueRef<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + self.bytes.len());
        out.extend_from_slice(&[LAYOUT, if self.expires_ms.is_some() { VALUE_EXPIRES } else { 0 }]);
        if let Some(expires_ms) = self.expires_ms {
            out.extend_from_slice(&expires_ms.to_le_bytes());
        }
        out.extend_from_slice(self.bytes);
        out
    }

    pub(super) fn decode(record: &'a [u8]) -> Result<ValueRef<'a>, StoreError> {
        let mut reader = Reader::with_layout("value", record)?;
        let expires_ms = match reader.u8()? {
            0 => None,
            VALUE_EXPIRES => Some(reader.u64()?),
            _ => return Err(reader.malformed("unknown flags")),
        };
        Ok(ValueRef { expires_ms, bytes: reader.rest })
    }

    /// Whether it is gone at a time.
    pub(super) fn expired_at(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }
}

/// A namespace's record; its name is in the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NamespaceRecord {
    pub(super) id: NamespaceId,
    /// Of all its vectors; `None` until the first.
    pub(super) dimensions: Option<u32>,
}

impl NamespaceRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![LAYOUT];
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.dimensions.unwrap_or(0).to_le_bytes());
        out
    }

    pub(super) fn decode(record: &[u8]) -> Result<NamespaceRecord, StoreError> {
        let mut reader = Reader::with_layout("namespace", record)?;
        let (id, dimensions) = (NamespaceId(reader.u32()?), reader.u32()?);
        reader.end()?;
        Ok(NamespaceRecord { id, dimensions: (dimensions != 0).then_some(dimensions) })
    }
}

/// Live records of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Plain values, those that have expired but are not swept yet among them.
    pub values: u64,
    /// Grains.
    pub grains: u64,
    /// Plain values that expire one day.
    pub expiring: u64,
}

impl Counters {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![LAYOUT];
        for count in [self.values, self.grains, self.expiring] {
            out.extend_from_slice(&count.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(record: &[u8]) -> Result<Counters, StoreError> {
        let mut reader = Reader::with_layout("counters", record)?;
        let counters = Counters { values: reader.u64()?, grains: reader.u64()?, expiring: reader.u64()? };
        reader.end()?;
        Ok(counters)
    }
}

/// Where a log entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Term of its log id.
    pub term: u64,
    /// Index of its log id.
    pub index: u64,
}

/// The shard's own record: what a restart from the store goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) applied: Position,
    pub(super) hlc: Hlc,
    pub(super) root: RootAccumulator,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(29 + ACCUMULATOR_BYTES);
        out.push(LAYOUT);
        out.extend_from_slice(&self.applied.term.to_le_bytes());
        out.extend_from_slice(&self.applied.index.to_le_bytes());
        out.extend_from_slice(&self.hlc.physical_ms.to_le_bytes());
        out.extend_from_slice(&self.hlc.logical.to_le_bytes());
        out.extend_from_slice(&self.root.encode());
        out
    }

    pub(super) fn decode(record: &[u8]) -> Result<Meta, StoreError> {
        let mut reader = Reader::with_layout("meta", record)?;
        let meta = Meta {
            applied: Position { term: reader.u64()?, index: reader.u64()? },
            hlc: Hlc { physical_ms: reader.u64()?, logical: reader.u32()? },
            root: RootAccumulator::decode(&reader.array()?),
        };
        reader.end()?;
        Ok(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;

    /// Stores outlive the code: a changed byte here is a changed format.
    #[test]
    fn bytes_are_golden() {
        let forever = ValueRef { expires_ms: None, bytes: b"v" };
        let expiring = ValueRef { expires_ms: Some(0x0102), bytes: b"v" };
        let namespace = NamespaceRecord { id: NamespaceId(3), dimensions: Some(384) };
        let counters = Counters { values: 1, grains: 2, expiring: 3 };
        let root = RootAccumulator::decode(&[0xab; ACCUMULATOR_BYTES]);
        let hlc = Hlc { physical_ms: 5, logical: 6 };
        let meta = Meta { applied: Position { term: 1, index: 2 }, hlc, root };
        assert_eq!(hex(&forever.encode()), "010076");
        assert_eq!(hex(&expiring.encode()), "0101020100000000000076");
        assert_eq!(hex(&namespace.encode()), "010300000080010000");
        assert_eq!(hex(&counters.encode()), "01010000000000000002000000000000000300000000000000");
        let head = "0101000000000000000200000000000000050000000000000006000000";
        assert_eq!(hex(&meta.encode()), [head, &"ab".repeat(128)].concat());

        assert_eq!(ValueRef::decode(&forever.encode()), Ok(forever));
        assert_eq!(ValueRef::decode(&expiring.encode()), Ok(expiring));
        assert_eq!(NamespaceRecord::decode(&namespace.encode()), Ok(namespace));
        assert_eq!(Counters::decode(&counters.encode()), Ok(counters));
        assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
    }

    #[test]
    fn malformed_records_are_refused() {
        let error = |result: Result<(), StoreError>| match result {
            Err(StoreError::Record { what, detail }) => (what, detail),
            other => panic!("not refused: {other:?}"),
        };
        assert_eq!(error(ValueRef::decode(&[2, 0]).map(drop)), ("value", "unknown layout"));
        assert_eq!(error(ValueRef::decode(&[1, 2]).map(drop)), ("value", "unknown flags"));
        assert_eq!(error(ValueRef::decode(&[1, 1, 9]).map(drop)), ("value", "too short"));
        assert_eq!(error(NamespaceRecord::decode(&[1; 8]).map(drop)), ("namespace", "too short"));
        assert_eq!(error(Counters::decode(&[1; 26]).map(drop)), ("counters", "trailing bytes"));
        assert_eq!(error(Meta::decode(&[]).map(drop)), ("meta", "too short"));
    }

    #[test]
    fn a_value_is_gone_from_its_expiry_on() {
        let value = ValueRef { expires_ms: Some(10), bytes: b"" };
        assert!(!value.expired_at(9) && value.expired_at(10));
        assert!(!ValueRef { expires_ms: None, bytes: b"" }.expired_at(u64::MAX));
    }
}
