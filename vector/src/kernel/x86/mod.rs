//! x86_64: what the two instruction sets share, which is the walk over rows and the tokens' methods.
//!
//! Rows are read strictly one after the other, although scoring four side by side would load the query once for four and is a third
//! faster from the L1 cache: out of memory four streams read a third slower than one, because the hardware prefetchers follow one best
//! (and asking for lines ahead of them only gets in their way). Four rows at a time pays in the sums of their lanes.

mod avx2;
mod avx512;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512Vnni;

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Rows scored together: the sums of their lanes are made at once.
const ROWS_AT_ONCE: usize = 4;

/// How many rows ahead a gather asks for its rows: no hardware foresees those.
const AHEAD_ROWS: usize = 8;

const LINE_BYTES: usize = 64;

// The product of four rows is made once for each walk, so that it has one caller, into which the compiler then inlines it.
const ROWS: u8 = 0;
const GATHER: u8 = 1;

/// Asks for every line of `row`, into all cache levels.
#[inline]
pub(super) fn prefetch<T>(row: &[T]) {
    let start = row.as_ptr().cast::<i8>();
    for offset in (0..size_of_val(row)).step_by(LINE_BYTES) {
        // SAFETY: SSE is part of x86_64; a prefetch reads nothing, so it may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset)) };
    }
}

/// Writes the walks over rows, which differ only in the products of four rows and of one.
macro_rules! walks {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn rows_impl(query: &[i8], rows: &[i8], out: &mut [i32]) {
            let dimension = query.len();
            let prepared = Prepared::new(query);
            let (out_groups, out_tail) = out.as_chunks_mut::<ROWS_AT_ONCE>();
            let mut groups = rows.chunks_exact(ROWS_AT_ONCE * dimension);
            for (group, out) in groups.by_ref().zip(out_groups) {
                let (r0, rest) = group.split_at(dimension);
                let (r1, rest) = rest.split_at(dimension);
                let (r2, r3) = rest.split_at(dimension);
                *out = prepared.dot_4::<ROWS>([r0, r1, r2, r3]);
            }
            for (row, out) in groups.remainder().chunks_exact(dimension).zip(out_tail) {
                *out = prepared.dot_1(row);
            }
        }

        #[target_feature(enable = $features)]
        fn gather_impl(query: &[i8], codes: &[i8], chosen: &[u32], out: &mut [i32]) {
            let dimension = query.len();
            let prepared = Prepared::new(query);
            let row = |row: u32| &codes[row as usize * dimension..][..dimension];
            for &first in chosen.iter().take(AHEAD_ROWS) {
                prefetch(row(first));
            }
            let (out_groups, out_tail) = out.as_chunks_mut::<ROWS_AT_ONCE>();
            let (groups, tail) = chosen.as_chunks::<ROWS_AT_ONCE>();
            for (index, (&[c0, c1, c2, c3], out)) in groups.iter().zip(out_groups).enumerate() {
                for &next in chosen.iter().skip(index * ROWS_AT_ONCE + AHEAD_ROWS).take(ROWS_AT_ONCE) {
                    prefetch(row(next));
                }
                *out = prepared.dot_4::<GATHER>([row(c0), row(c1), row(c2), row(c3)]);
            }
            for (&one, out) in tail.iter().zip(out_tail) {
                *out = prepared.dot_1(row(one));
            }
        }
    };
}

/// Writes the safe methods of a token over the functions compiled for its features.
macro_rules! token_methods {
    ($token:ident) => {
        impl $token {
            #[inline]
            pub fn dot_i8(self, a: &[i8], b: &[i8]) -> i32 {
                // SAFETY: the token exists only if `new` found the features on this machine.
                unsafe { dot_impl(a, b) }
            }

            #[inline]
            pub fn dot_i8_rows(self, query: &[i8], rows: &[i8], out: &mut [i32]) {
                // SAFETY: as above.
                unsafe { rows_impl(query, rows, out) }
            }

            #[inline]
            pub fn dot_i8_gather(self, query: &[i8], codes: &[i8], chosen: &[u32], out: &mut [i32]) {
                // SAFETY: as above.
                unsafe { gather_impl(query, codes, chosen, out) }
            }

            #[inline]
            pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
                // SAFETY: as above.
                unsafe { dot_f32_impl(a, b) }
            }
        }
    };
}

use {token_methods, walks};
