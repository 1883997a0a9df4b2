//! A grain as the store keeps it, and as apply hands it to the indexes.
//!
//! Built once, from the archived command, by copying its parts; read in place ever after, by reads, by the indexes when
//! they are fed and when they are rebuilt. Namespace, id and version are in the key.
//!
//! ```text
//!  0 layout u8 = 1   1 flags u8 (1: text, 2: vector)   2 reserved u16 = 0   4 subject bytes u32   8 text bytes u32
//! 12 dimensions u32  16 relations u32  20 tags u32     24 payload bytes u32 28 reserved u32 = 0
//! 32 vector, f32 each | u32 lengths: predicate and object of each relation, then each tag
//!    | subject | text | predicates and objects | tags | payload
//! ```
//!
//! All little-endian.

use super::store::StoreError;
use gristmill_rpc::schema::{ArchivedGrain, Grain, Relation};

const LAYOUT: u8 = 1;
const FLAG_TEXT: u8 = 1;
const FLAG_VECTOR: u8 = 2;
const HEADER_BYTES: usize = 32;

/// Where a grain record's parts come from: an archived grain in apply, an owned one in tests and tools.
pub trait GrainSource {
    /// The subject.
    fn subject(&self) -> &str;
    /// The text.
    fn text(&self) -> Option<&str>;
    /// The vector.
    fn vector(&self) -> Option<impl ExactSizeIterator<Item = f32> + '_>;
    /// Predicate and object of each relation.
    fn relations(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone + '_;
    /// The tags.
    fn tags(&self) -> impl ExactSizeIterator<Item = &str> + Clone + '_;
    /// The payload.
    fn payload(&self) -> &[u8];
}

impl GrainSource for ArchivedGrain {
    fn subject(&self) -> &str {
        &self.subject
    }
    fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
    fn vector(&self) -> Option<impl ExactSizeIterator<Item = f32> + '_> {
        self.vector.as_ref().map(|vector| vector.iter().map(|x| x.to_native()))
    }
    fn relations(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone + '_ {
        self.relations.iter().map(|relation| (&*relation.predicate, &*relation.object))
    }
    fn tags(&self) -> impl ExactSizeIterator<Item = &str> + Clone + '_ {
        self.tags.iter().map(|tag| &**tag)
    }
    fn payload(&self) -> &[u8] {
        &self.payload
    }
}

impl GrainSource for Grain {
    fn subject(&self) -> &str {
        &self.subject
    }
    fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
    fn vector(&self) -> Option<impl ExactSizeIterator<Item = f32> + '_> {
        self.vector.as_ref().map(|vector| vector.iter().copied())
    }
    fn relations(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone + '_ {
        self.relations.iter().map(|relation| (&*relation.predicate, &*relation.object))
    }
    fn tags(&self) -> impl ExactSizeIterator<Item = &str> + Clone + '_ {
        self.tags.iter().map(|tag| &**tag)
    }
    fn payload(&self) -> &[u8] {
        &self.payload
    }
}

/// The bytes of a grain record.
pub fn encode_grain(source: &impl GrainSource) -> Vec<u8> {
    let (subject, text, payload) = (source.subject(), source.text(), source.payload());
    let (relations, tags) = (source.relations(), source.tags());
    let dimensions = source.vector().map_or(0, |vector| vector.len());
    let lengths = relations.clone().flat_map(|(predicate, object)| [predicate, object]).chain(tags.clone());
    let strings: usize = lengths.clone().map(|part| 4 + part.len()).sum();
    let text_bytes = text.map_or(0, str::len);
    let total = HEADER_BYTES + 4 * dimensions + strings + subject.len() + text_bytes + payload.len();

    let mut out = Vec::with_capacity(total);
    let flags = if text.is_some() { FLAG_TEXT } else { 0 } | if source.vector().is_some() { FLAG_VECTOR } else { 0 };
    out.extend_from_slice(&[LAYOUT, flags, 0, 0]);
    for length in [subject.len(), text_bytes, dimensions, relations.len(), tags.len(), payload.len(), 0] {
        out.extend_from_slice(&(length as u32).to_le_bytes());
    }
    if let Some(vector) = source.vector() {
        vector.for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    }
    lengths.clone().for_each(|part| out.extend_from_slice(&(part.len() as u32).to_le_bytes()));
    out.extend_from_slice(subject.as_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
    lengths.for_each(|part| out.extend_from_slice(part.as_bytes()));
    out.extend_from_slice(payload);
    assert_eq!(out.len(), total, "grain record has the length computed for it");
    out
}

/// A grain, read in place from its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrainRef<'a> {
    vector: Option<&'a [[u8; 4]]>,
    relation_lengths: &'a [[[u8; 4]; 2]],
    tag_lengths: &'a [[u8; 4]],
    subject: &'a str,
    text: Option<&'a str>,
    relations: &'a str,
    tags: &'a str,
    payload: &'a [u8],
}

impl<'a> GrainRef<'a> {
    /// Checks a record and gives access to its parts.
    pub fn decode(record: &'a [u8]) -> Result<GrainRef<'a>, StoreError> {
        let mut parts = Parts { rest: record };
        let header = parts.take(HEADER_BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let count_at = |at: usize| u32_at(at) as usize;
        if header[0] != LAYOUT
            || header[1] & !(FLAG_TEXT | FLAG_VECTOR) != 0
            || header[2..4] != [0; 2]
            || u32_at(28) != 0
        {
            return Err(damaged("unknown layout"));
        }
        let vector = parts.array::<4>(count_at(12))?;
        let (relation_lengths, _) = parts.array::<4>(count_at(16).saturating_mul(2))?.as_chunks::<2>();
        let tag_lengths = parts.array::<4>(count_at(20))?;
        let subject = parts.text(count_at(4))?;
        let text = parts.text(count_at(8))?;
        let relations = parts.texts(relation_lengths.as_flattened())?;
        let tags = parts.texts(tag_lengths)?;
        let payload = parts.take(count_at(24))?;
        if !parts.rest.is_empty() {
            return Err(damaged("trailing bytes"));
        }
        Ok(GrainRef {
            vector: (header[1] & FLAG_VECTOR != 0).then_some(vector),
            relation_lengths,
            tag_lengths,
            subject,
            text: (header[1] & FLAG_TEXT != 0).then_some(text),
            relations,
            tags,
            payload,
        })
    }

    /// The subject.
    pub fn subject(&self) -> &'a str {
        self.subject
    }

    /// The text, where the grain has one.
    pub fn text(&self) -> Option<&'a str> {
        self.text
    }

    /// Number of dimensions of the vector, where the grain has one.
    pub fn dimensions(&self) -> Option<usize> {
        self.vector.map(<[_]>::len)
    }

    /// The vector, where the grain has one.
    pub fn vector(&self) -> Option<impl ExactSizeIterator<Item = f32> + Clone + 'a> {
        self.vector.map(|vector| vector.iter().map(|x| f32::from_le_bytes(*x)))
    }

    /// Predicate and object of each relation; the grain's subject is the subject of each.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> + Clone + 'a {
        let mut rest = self.relations;
        self.relation_lengths
            .iter()
            .map(move |[predicate, object]| (split_front(&mut rest, *predicate), split_front(&mut rest, *object)))
    }

    /// The tags.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = &'a str> + Clone + 'a {
        let mut rest = self.tags;
        self.tag_lengths.iter().map(move |length| split_front(&mut rest, *length))
    }

    /// The application's bytes.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// An owned grain, for answers.
    pub fn to_grain(&self, namespace: &str, id: gristmill_rpc::ids::GrainId) -> Grain {
        Grain {
            id,
            namespace: namespace.into(),
            subject: self.subject.into(),
            text: self.text.map(Into::into),
            vector: self.vector().map(Iterator::collect),
            relations: self
                .relations()
                .map(|(predicate, object)| Relation { predicate: predicate.into(), object: object.into() })
                .collect(),
            tags: self.tags().map(Into::into).collect(),
            payload: self.payload.into(),
        }
    }
}

/// Takes a part off the front whose length and boundaries `GrainRef::decode` checked.
fn split_front<'a>(rest: &mut &'a str, length: [u8; 4]) -> &'a str {
    let (front, back) = rest.split_at(u32::from_le_bytes(length) as usize);
    *rest = back;
    front
}

fn damaged(detail: &'static str) -> StoreError {
    StoreError::Record { what: "grain", detail }
}

struct Parts<'a> {
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], StoreError> {
        let (front, back) = self.rest.split_at_checked(length).ok_or(damaged("too short"))?;
        self.rest = back;
        Ok(front)
    }

    fn array<const N: usize>(&mut self, count: usize) -> Result<&'a [[u8; N]], StoreError> {
        Ok(self.take(count.saturating_mul(N))?.as_chunks::<N>().0)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, StoreError> {
        str::from_utf8(self.take(length)?).map_err(|_| damaged("not UTF-8"))
    }

    /// The concatenation of several texts, with each boundary checked.
    fn texts(&mut self, lengths: &[[u8; 4]]) -> Result<&'a str, StoreError> {
        let total = lengths.iter().map(|length| u64::from(u32::from_le_bytes(*length))).sum::<u64>();
        let all = self.text(usize::try_from(total).unwrap_or(usize::MAX))?;
        let mut end = 0;
        for length in lengths {
            end += u32::from_le_bytes(*length) as usize;
            if !all.is_char_boundary(end) {
                return Err(damaged("a part ends within a character"));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;
    use gristmill_rpc::ids::GrainId;
    use proptest::prelude::*;

    pub(crate) fn grain() -> impl Strategy<Value = Grain> {
        let text = || "[a-zé☃]{0,6}";
        (
            text(),
            prop::option::of(text()),
            prop::option::of(prop::collection::vec(-1f32..1.0, 0..5)),
            prop::collection::vec((text(), text()), 0..4),
            prop::collection::vec(text(), 0..4),
            prop::collection::vec(any::<u8>(), 0..20),
        )
            .prop_map(|(subject, text, vector, relations, tags, payload)| Grain {
                id: GrainId([7; 16]),
                namespace: "ns".into(),
                subject,
                text,
                vector,
                relations: relations.into_iter().map(|(predicate, object)| Relation { predicate, object }).collect(),
                tags,
                payload,
            })
    }

    /// Stores outlive the code: a changed byte here is a changed format.
    #[test]
    fn bytes_are_golden() {
        let grain = Grain {
            id: GrainId([7; 16]),
            namespace: "ns".into(),
            subject: "su".into(),
            text: Some("txt".into()),
            vector: Some(vec![1.0]),
            relations: vec![Relation { predicate: "p".into(), object: "ob".into() }],
            tags: vec!["tag".into()],
            payload: vec![9],
        };
        let header = "01030000020000000300000001000000010000000100000001000000000000000000803f";
        assert_eq!(
            hex(&encode_grain(&grain)),
            [header, "010000000200000003000000", "7375", "747874", "70", "6f62", "746167", "09"].concat()
        );
    }

    proptest! {
        #[test]
        fn decode_gives_back_what_encode_took(grain in grain()) {
            let record = encode_grain(&grain);
            let view = GrainRef::decode(&record).expect("own bytes");
            prop_assert_eq!(view.to_grain("ns", grain.id), grain.clone());
            let archive = rkyv::to_bytes::<rkyv::rancor::Error>(&grain).expect("archives");
            let archived = rkyv::access::<ArchivedGrain, rkyv::rancor::Error>(&archive).expect("own bytes");
            prop_assert_eq!(encode_grain(archived), record, "same bytes from the archive as from the owned grain");
        }

        /// Damage is found or harmless, never a panic: each accessor is walked.
        #[test]
        fn damaged_records_never_panic(grain in grain(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut record = encode_grain(&grain);
            prop_assert!(GrainRef::decode(&record[..cut.index(record.len())]).is_err());
            let at = at.index(record.len());
            record[at] = byte;
            if let Ok(view) = GrainRef::decode(&record) {
                let _ = view.to_grain("ns", grain.id);
            }
        }
    }
}
