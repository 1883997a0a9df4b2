//! A frame's body: bytes that are 16-byte aligned, owned, shared by `Arc`, and read in place.
//!
//! ```text
//!   client: T --archive--> Body --frame--> | wire |  --FrameDecoder--> Body --access--> &ArchivedT
//!                                                                       └── the same bytes: mesh, log, apply
//! ```
//!
//! Invariants: the first byte of a [`Body`] lies on a multiple of 16; its bytes never change once it exists; moving it
//! moves one pointer and cloning it counts a reference, so it crosses cores without an allocation.
//! Checking is linear in the length: the checker never visits a byte twice, follows references at most
//! [`ARCHIVE_DEPTH_MAX`] deep and allocates nothing.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;

use rkyv::api::high::{HighSerializer, to_bytes_in};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Failure, Fallible, Strategy};
use rkyv::ser::allocator::ArenaHandle;
use rkyv::ser::{Allocator, Writer};
use rkyv::util::AlignedVec;
use rkyv::validation::Validator;
use rkyv::validation::archive::ArchiveValidator;
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::{Archive, Deserialize, Place, Portable, Serialize};

use crate::limits::ARCHIVE_DEPTH_MAX;

/// Alignment of a body's first byte.
pub const BODY_ALIGNMENT: usize = 16;

/// The buffer that a body is built in.
pub type BodyBuffer = AlignedVec<BODY_ALIGNMENT>;

/// The checker that runs over a body: bounds, alignment, tags, UTF-8, depth.
pub type BodyValidator<'a> = Strategy<Validator<ArchiveValidator<'a>, ()>, Failure>;

/// The serializer that a body is built by.
pub type BodySerializer<'a> = HighSerializer<BodyBuffer, ArenaHandle<'a>, Failure>;

/// The body of a frame.
#[derive(Clone)]
pub struct Body {
    bytes: Arc<BodyBuffer>,
}

/// Why a body cannot be read as its message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The bytes do not begin on a multiple of 16. Copy them into a [`Body`].
    #[error("body is misaligned: it begins {remainder} bytes after a multiple of {BODY_ALIGNMENT}; copy it first")]
    Misaligned {
        /// The address modulo 16.
        remainder: usize,
    },
    /// The bytes are not an archive of the type: a reference out of bounds, an unknown tag, text that is not UTF-8.
    #[error("body of {length} bytes is not a valid {expected}; was it archived with the same schema version?")]
    Invalid {
        /// The archived type's name.
        expected: &'static str,
        /// Bytes of the body.
        length: usize,
    },
    /// The value is too large for an archive: its references span 2 GiB at the most.
    #[error("value does not fit into one body; split it")]
    TooLarge,
}

impl Body {
    /// A body of the same bytes as a slice, which may lie anywhere.
    pub fn copy_from(bytes: &[u8]) -> Body {
        let mut buffer = BodyBuffer::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        Body::from(buffer)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.as_slice()
    }
}

impl From<BodyBuffer> for Body {
    fn from(buffer: BodyBuffer) -> Body {
        Body { bytes: Arc::new(buffer) }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Body) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Body {}

impl fmt::Debug for Body {
    /// The length only: bodies hold what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("bytes", &self.len()).finish()
    }
}

/// Inside another message a body is a list of bytes: those of the command inside an entry, for example. It is copied into the
/// archive as it is, and copied out of it into aligned memory of its own.
impl Archive for Body {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<ArchivedVec<u8>>) {
        ArchivedVec::resolve_from_len(self.len(), resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> Serialize<S> for Body {
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::<u8>::serialize_from_slice(self.as_slice(), serializer)
    }
}

impl<D: Fallible + ?Sized> Deserialize<Body, D> for ArchivedVec<u8> {
    fn deserialize(&self, _deserializer: &mut D) -> Result<Body, D::Error> {
        Ok(Body::copy_from(self.as_slice()))
    }
}

/// Archives a message.
///
/// # Panics
/// If the value is over 2 GiB: for what a user gives, take [`try_archive`].
pub fn archive<T: for<'a> Serialize<BodySerializer<'a>>>(value: &T) -> Body {
    try_archive(value).expect("messages that we build ourselves are bounded by limits.rs")
}

/// Archives a message of any size.
pub fn try_archive<T: for<'a> Serialize<BodySerializer<'a>>>(value: &T) -> Result<Body, BodyError> {
    match to_bytes_in::<_, Failure>(value, BodyBuffer::new()) {
        Ok(buffer) => Ok(Body::from(buffer)),
        Err(Failure) => Err(BodyError::TooLarge),
    }
}

/// Archives a message that takes about `capacity` bytes, without moving what was written as it grows.
///
/// # Panics
/// As [`archive`].
pub fn archive_sized<T: for<'a> Serialize<BodySerializer<'a>>>(value: &T, capacity: usize) -> Body {
    let archived = to_bytes_in::<_, Failure>(value, BodyBuffer::with_capacity(capacity));
    Body::from(archived.expect("messages that we build ourselves are bounded by limits.rs"))
}

/// Reads a body in place, after checking every byte of it that the type refers to.
pub fn access<A>(body: &Body) -> Result<&A, BodyError>
where
    A: Portable + for<'a> CheckBytes<BodyValidator<'a>>,
{
    access_bytes(body.as_slice())
}

/// The same for bytes that lie elsewhere, for example in a log segment. They must begin on a multiple of 16.
pub fn access_bytes<A>(bytes: &[u8]) -> Result<&A, BodyError>
where
    A: Portable + for<'a> CheckBytes<BodyValidator<'a>>,
{
    let remainder = bytes.as_ptr().addr() % BODY_ALIGNMENT;
    if remainder != 0 && !bytes.is_empty() {
        return Err(BodyError::Misaligned { remainder });
    }
    let depth = NonZeroUsize::new(ARCHIVE_DEPTH_MAX);
    let mut validator = Validator::new(ArchiveValidator::with_max_depth(bytes, depth), ());
    rkyv::api::access_with_context::<A, _, Failure>(bytes, &mut validator)
        .map_err(|Failure| BodyError::Invalid { expected: short_name(std::any::type_name::<A>()), length: bytes.len() })
}

/// `ArchivedHello` out of `gristmill_rpc::schema::ArchivedHello`.
pub(crate) fn short_name(name: &'static str) -> &'static str {
    let name = name.rsplit("::").next().unwrap_or(name);
    name.strip_prefix("Archived").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{ArchivedCommand, ArchivedGetRequest, Command, GetRequest, Operation};

    fn request() -> GetRequest {
        GetRequest { namespace: "a rather long namespace".to_owned(), key: b"and a key".to_vec() }
    }

    #[test]
    fn bodies_are_aligned_shared_and_sendable() {
        fn sendable<T: Send + Sync>(_: &T) {}
        for length in [0, 1, 15, 16, 17, 4096, 100_000] {
            let body = Body::copy_from(&vec![7; length]);
            sendable(&body);
            assert_eq!(body.len(), length);
            assert!(length == 0 || body.as_ptr().addr().is_multiple_of(BODY_ALIGNMENT));
            assert_eq!(body.clone().as_ptr(), body.as_ptr(), "a clone shares the bytes");
        }
    }

    #[test]
    fn what_is_archived_is_read_in_place() {
        let body = archive(&request());
        let archived = access::<ArchivedGetRequest>(&body).expect("valid");
        assert_eq!(archived.namespace, "a rather long namespace");
        assert_eq!(archived.key.as_slice(), b"and a key");
        assert!(body.as_ptr_range().contains(&archived.key.as_ptr()), "no copy");
    }

    #[test]
    fn misaligned_bytes_are_refused() {
        let bytes = archive(&request());
        let mut buffer = BodyBuffer::new();
        buffer.extend_from_slice(&[0; 16]);
        for shift in 1..16 {
            buffer.resize(shift, 0);
            buffer.extend_from_slice(&bytes);
            let error = access_bytes::<ArchivedGetRequest>(&buffer[shift..]).expect_err("misaligned");
            assert_eq!(error, BodyError::Misaligned { remainder: shift });
        }
    }

    #[test]
    fn truncated_and_foreign_bodies_are_refused() {
        let body = archive(&request());
        for length in 0..body.len() {
            let cut = Body::copy_from(&body[..length]);
            let error = access::<ArchivedGetRequest>(&cut).expect_err("truncated");
            assert_eq!(error, BodyError::Invalid { expected: "GetRequest", length });
        }
        assert!(access::<ArchivedCommand>(&body).is_err(), "another type");
    }

    /// An archive in which many references share one target would cost far more to walk than its bytes suggest.
    #[test]
    fn references_to_the_same_bytes_are_refused() {
        let key = vec![1; 64];
        let delete = || Operation::Delete { namespace: "shared-namespace".to_owned(), key: key.clone() };
        let body = archive(&Command { operations: vec![delete(), delete()] });
        let archived = access::<ArchivedCommand>(&body).expect("valid");
        let (first, second) = (&archived.operations[0], &archived.operations[1]);
        let offset_of = |op: &crate::schema::ArchivedOperation| match op {
            crate::schema::ArchivedOperation::Delete { key, .. } => {
                (std::ptr::from_ref(key).addr() - body.as_ptr().addr(), key.as_ptr().addr())
            }
            _ => unreachable!("both are deletes"),
        };
        let ((_, target), (field, _)) = (offset_of(first), offset_of(second));
        let mut bytes = body.to_vec();
        let relative = target as i64 - (body.as_ptr().addr() + field) as i64;
        bytes[field..field + 4].copy_from_slice(&(relative as i32).to_le_bytes());
        assert!(access::<ArchivedCommand>(&Body::copy_from(&bytes)).is_err());
    }
}
