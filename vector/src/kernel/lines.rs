//! Codes in whole cache lines, so that a row starts where a line starts and a 64-byte load never straddles two.

/// Codes in one line; row strides are multiples of it.
pub const CODES_PER_LINE: usize = 64;

/// One cache line of codes. A `Vec` of them is a 64-byte-aligned code array without an allocator of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CodeLine(pub [i8; CODES_PER_LINE]);

const _: () = assert!(size_of::<CodeLine>() == CODES_PER_LINE && align_of::<CodeLine>() == CODES_PER_LINE);

impl CodeLine {
    /// Padding, and what a deleted row leaves behind.
    pub const ZERO: Self = Self([0; CODES_PER_LINE]);
}

/// The codes of consecutive lines, 64-byte aligned.
#[inline]
pub fn codes(lines: &[CodeLine]) -> &[i8] {
    // SAFETY: a CodeLine is exactly 64 i8 without padding (asserted above), so n lines are 64 n initialised codes in one allocation.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// The same for writing.
#[inline]
pub fn codes_mut(lines: &mut [CodeLine]) -> &mut [i8] {
    // SAFETY: as in `codes`; any i8 is valid in a CodeLine, and the exclusive borrow moves on to the result.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
