//! Buffers that operations own while the kernel may touch them.
//!
//! [`AlignedBuf`] is a growable byte vector whose memory starts on a [`BUF_ALIGN`] boundary and whose capacity is a multiple
//! of it, as O_DIRECT wants. [`IoBuf`] is what an [`Op`](crate::driver::Op) carries: one of those, a shared one, or a plain `Vec`.
//!
//! Invariant: bytes `0..len` are initialised; bytes `len..capacity` may not be and are never handed out.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of memory, offset and length for direct I/O throughout gristmill, in bytes.
pub const BUF_ALIGN: usize = 4096;

/// Largest single buffer, in bytes: nothing in a storage engine should ask for more at once.
pub const BUF_BYTES_MAX: usize = 1 << 30;

/// Bytes on the heap, aligned to [`BUF_ALIGN`].
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory exclusively, like a `Vec<u8>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads initialised bytes.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer with room for at least `bytes`, rounded up to a multiple of [`BUF_ALIGN`].
    ///
    /// # Panics
    /// When `bytes` exceeds [`BUF_BYTES_MAX`].
    pub fn with_capacity(bytes: usize) -> AlignedBuf {
        assert!(bytes <= BUF_BYTES_MAX, "a buffer of {bytes} bytes exceeds the limit of {BUF_BYTES_MAX}");
        let capacity = bytes.next_multiple_of(BUF_ALIGN);
        if capacity == 0 {
            return AlignedBuf { start: NonNull::dangling(), len: 0, capacity: 0 };
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuf { start, len: 0, capacity }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.set_len(len);
        buf
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit without another allocation.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shrinks or grows within the capacity; new bytes are zero.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "length {len} exceeds capacity {}", self.capacity);
        if len > self.len {
            // SAFETY: `self.len..len` lies within the allocation, which is exclusively ours.
            unsafe { self.start.as_ptr().add(self.len).write_bytes(0, len - self.len) };
        }
        self.len = len;
    }

    /// Shrinks or grows, allocating if need be; new bytes are zero.
    #[inline]
    pub fn resize(&mut self, len: usize) {
        self.reserve(len.saturating_sub(self.len));
        self.set_len(len);
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The bytes between the length and the capacity: whoever fills them says so by [`AlignedBuf::assume_init_up_to`].
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `len..capacity` lies within the allocation; with capacity 0 the pointer is dangling and the length 0.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(self.len).cast(), self.capacity - self.len) }
    }

    /// Grows the length without touching the bytes.
    ///
    /// # Safety
    /// Bytes up to `len` have been written.
    ///
    /// # Panics
    /// When `len` is below the length or above the capacity.
    pub unsafe fn assume_init_up_to(&mut self, len: usize) {
        assert!(self.len <= len && len <= self.capacity, "{len} is not within {}..={}", self.len, self.capacity);
        self.len = len;
    }

    /// Makes room for `additional` more bytes; grows at least twofold.
    #[inline]
    pub fn reserve(&mut self, additional: usize) {
        if additional > self.capacity - self.len {
            self.grow(additional);
        }
    }

    #[cold]
    fn grow(&mut self, additional: usize) {
        let needed = self.len.checked_add(additional).expect("a buffer's length fits usize");
        let mut grown = AlignedBuf::with_capacity(needed.max((self.capacity * 2).min(BUF_BYTES_MAX)));
        // SAFETY: both regions hold at least `self.len` bytes and belong to different allocations.
        unsafe { self.start.as_ptr().copy_to_nonoverlapping(grown.start.as_ptr(), self.len) };
        grown.len = self.len;
        *self = grown;
    }

    /// Appends `bytes`, allocating if need be.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: reserve made room for `bytes.len()` after `self.len`; a borrowed slice cannot overlap memory that we own mutably.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(self.start.as_ptr().add(self.len), bytes.len()) };
        self.len += bytes.len();
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BUF_ALIGN).expect("capacity is bounded by BUF_BYTES_MAX")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: allocated in `with_capacity` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `0..len` is initialised; with capacity 0 the pointer is dangling and `len` is 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and we hold the buffer mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Default for AlignedBuf {
    fn default() -> AlignedBuf {
        AlignedBuf::with_capacity(0)
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> AlignedBuf {
        AlignedBuf::from(&self[..])
    }
}

impl From<&[u8]> for AlignedBuf {
    fn from(bytes: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        buf
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// The memory of an operation in flight.
#[derive(Debug)]
pub enum IoBuf {
    /// For files; required when the file is direct.
    Aligned(AlignedBuf),
    /// For sockets, and files that are not direct.
    Vec(Vec<u8>),
    /// For writes only: the submitter goes on reading the bytes while the kernel does (a log batch that is in flight).
    Shared(Arc<AlignedBuf>),
}

impl IoBuf {
    /// The bytes in use.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            IoBuf::Aligned(buf) => buf,
            IoBuf::Vec(buf) => buf,
            IoBuf::Shared(buf) => buf,
        }
    }

    /// The bytes in use.
    ///
    /// # Panics
    /// When the buffer is shared: such a buffer serves writes only.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            IoBuf::Aligned(buf) => buf,
            IoBuf::Vec(buf) => buf,
            IoBuf::Shared(_) => panic!("a shared buffer is read-only"),
        }
    }

    /// The bytes between the length and the capacity.
    ///
    /// # Panics
    /// When the buffer is shared: such a buffer serves writes only.
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        match self {
            IoBuf::Aligned(buf) => buf.spare_capacity_mut(),
            IoBuf::Vec(buf) => buf.spare_capacity_mut(),
            IoBuf::Shared(_) => panic!("a shared buffer is read-only"),
        }
    }

    /// Grows the length without touching the bytes.
    ///
    /// # Safety
    /// Bytes up to `len` have been written.
    ///
    /// # Panics
    /// When `len` is above the capacity, or the buffer is shared.
    pub unsafe fn assume_init_up_to(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} exceeds capacity {}", self.capacity());
        match self {
            // SAFETY: the caller has written the bytes.
            IoBuf::Aligned(buf) => unsafe { buf.assume_init_up_to(len) },
            // SAFETY: as above, and `len` is within the capacity.
            IoBuf::Vec(buf) => unsafe { buf.set_len(len) },
            IoBuf::Shared(_) => panic!("a shared buffer is read-only"),
        }
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True when no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that fit without another allocation.
    pub fn capacity(&self) -> usize {
        match self {
            IoBuf::Aligned(buf) => buf.capacity(),
            IoBuf::Vec(buf) => buf.capacity(),
            IoBuf::Shared(buf) => buf.capacity(),
        }
    }
}

impl From<AlignedBuf> for IoBuf {
    fn from(buf: AlignedBuf) -> IoBuf {
        IoBuf::Aligned(buf)
    }
}

impl From<Arc<AlignedBuf>> for IoBuf {
    fn from(buf: Arc<AlignedBuf>) -> IoBuf {
        IoBuf::Shared(buf)
    }
}

impl From<Vec<u8>> for IoBuf {
    fn from(buf: Vec<u8>) -> IoBuf {
        IoBuf::Vec(buf)
    }
}

/// A buffer that an operation can own: it goes in as one type and comes back as the same.
pub trait OwnedBuf: sealed::Sealed + 'static {
    /// For the way in.
    fn into_io(self) -> IoBuf;
    /// For the way out.
    fn from_io(buf: IoBuf) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::AlignedBuf {}
    impl Sealed for super::IoBuf {}
    impl Sealed for std::sync::Arc<super::AlignedBuf> {}
    impl Sealed for Vec<u8> {}
}

impl OwnedBuf for AlignedBuf {
    fn into_io(self) -> IoBuf {
        IoBuf::Aligned(self)
    }
    fn from_io(buf: IoBuf) -> AlignedBuf {
        match buf {
            IoBuf::Aligned(buf) => buf,
            IoBuf::Vec(_) | IoBuf::Shared(_) => unreachable!("a driver hands back the buffer it was given"),
        }
    }
}

impl OwnedBuf for Vec<u8> {
    fn into_io(self) -> IoBuf {
        IoBuf::Vec(self)
    }
    fn from_io(buf: IoBuf) -> Vec<u8> {
        match buf {
            IoBuf::Vec(buf) => buf,
            IoBuf::Aligned(_) | IoBuf::Shared(_) => unreachable!("a driver hands back the buffer it was given"),
        }
    }
}

/// A buffer that an operation may also fill.
pub trait OwnedBufMut: OwnedBuf {}

impl OwnedBufMut for AlignedBuf {}
impl OwnedBufMut for Vec<u8> {}

impl OwnedBuf for Arc<AlignedBuf> {
    fn into_io(self) -> IoBuf {
        IoBuf::Shared(self)
    }
    fn from_io(buf: IoBuf) -> Arc<AlignedBuf> {
        match buf {
            IoBuf::Shared(buf) => buf,
            IoBuf::Aligned(_) | IoBuf::Vec(_) => unreachable!("a driver hands back the buffer it was given"),
        }
    }
}

impl OwnedBuf for IoBuf {
    fn into_io(self) -> IoBuf {
        self
    }
    fn from_io(buf: IoBuf) -> IoBuf {
        buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_capacity_rounded() {
        for bytes in [1, 4095, 4096, 4097, 100_000] {
            let buf = AlignedBuf::with_capacity(bytes);
            assert_eq!(buf.start.as_ptr() as usize % BUF_ALIGN, 0);
            assert_eq!(buf.capacity(), bytes.next_multiple_of(BUF_ALIGN));
            assert!(buf.is_empty());
        }
        assert_eq!(AlignedBuf::with_capacity(0).capacity(), 0);
    }

    #[test]
    fn growing_zero_fills_what_an_earlier_use_left_behind() {
        let mut buf = AlignedBuf::from(&[0xff; 64][..]);
        buf.set_len(8);
        buf.set_len(64);
        assert_eq!(&buf[..8], [0xff; 8]);
        assert_eq!(&buf[8..], [0; 56]);
    }

    #[test]
    fn appending_keeps_content_across_reallocation() {
        let mut buf = AlignedBuf::default();
        let mut expected = Vec::new();
        for round in 0..300u32 {
            let chunk = vec![round as u8; (round * 7 % 113) as usize];
            buf.extend_from_slice(&chunk);
            expected.extend_from_slice(&chunk);
        }
        assert_eq!(&buf[..], &expected[..]);
        assert_eq!(&buf.clone()[..], &expected[..]);
        buf.clear();
        assert!(buf.is_empty() && buf.capacity() >= expected.len());
    }

    #[test]
    fn a_shared_buffer_stays_readable_elsewhere() {
        let bytes = Arc::new(AlignedBuf::from(&b"batch"[..]));
        let in_flight = IoBuf::from(Arc::clone(&bytes));
        assert_eq!(in_flight.as_slice(), &bytes[..]);
        assert_eq!(in_flight.len(), 5);
    }

    #[test]
    #[should_panic(expected = "read-only")]
    fn a_shared_buffer_is_never_written_to() {
        IoBuf::from(Arc::new(AlignedBuf::zeroed(8))).as_mut_slice();
    }

    #[test]
    #[should_panic(expected = "exceeds capacity")]
    fn set_len_refuses_to_pass_the_capacity() {
        AlignedBuf::with_capacity(10).set_len(4097);
    }
}
