//! Values and names of the workload. A value says which write it comes from and can be checked byte by byte, so that a torn, mixed or
//! misplaced one is seen wherever it is read.

use super::history::{GrainKey, KeyId, ValueId};
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::Grain;

/// First of the numbers of namespaces that hold grains.
pub const GRAIN_SPACE: u16 = 1000;
/// First of the numbers of namespaces whose values expire.
pub const EXPIRING_SPACE: u16 = 2000;

/// A namespace's name.
pub fn space_name(space: u16) -> String {
    format!("space-{space}")
}

/// A key's bytes.
pub fn key_bytes(key: KeyId) -> Vec<u8> {
    format!("key-{:04}", key.key).into_bytes()
}

/// The key of a namespace that has these bytes.
pub fn key_of(space: u16, bytes: &[u8]) -> Option<KeyId> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(KeyId { space, key: text.strip_prefix("key-")?.parse().ok()? })
}

/// A value of `length` bytes, at least 16: its number, its length, and bytes that follow from both.
pub fn value_bytes(value: ValueId, length: usize) -> Vec<u8> {
    let length = length.max(16);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&value.0.to_le_bytes());
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
    bytes.extend((16..length).map(|at| filler(value, at)));
    bytes
}

fn filler(value: ValueId, at: usize) -> u8 {
    (value.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 8 * 8)) as u8 ^ at as u8
}

/// The number in a value, if every byte is as it was made.
pub fn value_of(bytes: &[u8]) -> Option<ValueId> {
    let (head, rest) = bytes.split_at_checked(16)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
    let value = ValueId(word(0));
    let whole = word(8) == bytes.len() as u64 && (16..).zip(rest).all(|(at, &byte)| byte == filler(value, at));
    whole.then_some(value)
}

/// A grain's id.
pub fn grain_id(grain: GrainKey) -> GrainId {
    GrainId::from_name(&format!("grain-{}-{}", grain.space, grain.key))
}

/// The word that a grain's text has and no other's.
pub fn word(value: ValueId) -> String {
    format!("word{}", value.0)
}

/// A grain with a word of its own, a vector, a relation and a tag.
pub fn grain(key: GrainKey, value: ValueId) -> Grain {
    // Small whole numbers: the same in every build.
    let part = |modulus: u64| (1 + value.0 % modulus) as f32;
    Grain {
        id: grain_id(key),
        namespace: space_name(key.space),
        subject: format!("subject {}", key.key),
        text: Some(format!("the {} of subject {} among many", word(value), key.key)),
        vector: Some(vec![part(7), part(5), part(3), 0.25]),
        relations: vec![gristmill_rpc::schema::Relation { predicate: "has".to_owned(), object: word(value) }],
        tags: vec![format!("client-{}", key.key % 4)],
        payload: value_bytes(value, 40),
    }
}

/// The value that a grain was made of, if it is whole.
pub fn grain_value(key: GrainKey, found: &Grain) -> Option<ValueId> {
    let value = value_of(&found.payload)?;
    (*found == grain(key, value)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_again_and_a_damaged_one_is_not() {
        for length in [0, 16, 17, 300] {
            let bytes = value_bytes(ValueId(77), length);
            assert_eq!(value_of(&bytes), Some(ValueId(77)));
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 4;
                assert_ne!(value_of(&damaged), Some(ValueId(77)), "byte {at} of {length}");
            }
            assert_eq!(value_of(&bytes[..bytes.len() - 1]), None);
        }
        let key = KeyId { space: 3, key: 12 };
        assert_eq!(key_of(3, &key_bytes(key)), Some(key));
        assert_eq!(key_of(3, b"other"), None);
        let mut whole = grain(key, ValueId(5));
        assert_eq!(grain_value(key, &whole), Some(ValueId(5)));
        whole.tags.clear();
        assert_eq!(grain_value(key, &whole), None);
    }
}
