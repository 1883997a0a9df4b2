//! AVX-512 with VNNI.
//!
//! `vpdpbusd` multiplies unsigned by signed codes. A signed code `r` becomes unsigned as `r + 128`, which is one XOR of its top bit, and
//! `Σ (r + 128) q = Σ r q + 128 Σ q`: the second term depends on the query only, and is taken off at the end. Nothing saturates: a product
//! lies within −128 × 255 …= 127 × 255, which an `i16` holds; four of them are added in an `i32`; and `vpdpbusd` (unlike `vpdpbusds`) wraps, so
//! even a lane that overflowed on the way would be right in the end, as the result fits.

#![allow(clippy::wildcard_imports, reason = "intrinsics: some forty names with one prefix")]

use std::arch::x86_64::*;

use super::avx2::{self, unpack};
use super::{AHEAD_ROWS, GATHER, ROWS, ROWS_AT_ONCE, prefetch, token_methods, walks};
use crate::kernel::{F32_LANES, fold_16};

/// AVX-512 with VNNI: Ice Lake, Zen 4 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Avx512Vnni(());

impl Avx512Vnni {
    pub fn new() -> Option<Self> {
        let usable = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        usable.then_some(Self(()))
    }
}

token_methods!(Avx512Vnni);

/// Codes in a register.
const WIDTH: usize = 64;

/// What all products with one query share: `128 Σ q`, which the offset of the rows adds.
struct Prepared<'q> {
    query: &'q [i8],
    offset: i32,
}

impl<'q> Prepared<'q> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn new(query: &'q [i8]) -> Self {
        let ones = _mm512_set1_epi8(1);
        let (blocks, tail) = query.as_chunks::<WIDTH>();
        let mut sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, load_tail(tail));
        for block in blocks {
            sums = _mm512_dpbusd_epi32(sums, ones, load(block));
        }
        Self { query, offset: _mm512_reduce_add_epi32(sums) * 128 }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn dot_4<const WALK: u8>(&self, rows: [&[i8]; ROWS_AT_ONCE]) -> [i32; ROWS_AT_ONCE] {
        let (query_blocks, query_tail) = self.query.as_chunks::<WIDTH>();
        let mut sums = [_mm512_setzero_si512(); ROWS_AT_ONCE];
        for (sums, row) in sums.iter_mut().zip(&rows) {
            *sums = raw_sums(query_blocks, row.as_chunks::<WIDTH>().0);
        }
        if !query_tail.is_empty() {
            add_raw_tails(&mut sums, query_tail, rows);
        }
        unpack(_mm_sub_epi32(sum_4(sums), _mm_set1_epi32(self.offset)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn dot_1(&self, row: &[i8]) -> i32 {
        let (query_blocks, query_tail) = self.query.as_chunks::<WIDTH>();
        let (row_blocks, row_tail) = row.as_chunks::<WIDTH>();
        let sums = add_raw_tail(raw_sums(query_blocks, row_blocks), query_tail, row_tail);
        _mm512_reduce_add_epi32(sums).wrapping_sub(self.offset)
    }
}

walks!("avx512f,avx512bw,avx512vnni");

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_impl(a: &[i8], b: &[i8]) -> i32 {
    Prepared::new(a).dot_1(b)
}

/// `Σ (r + 128) q` over whole blocks, in sixteen lanes, wrapping.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn raw_sums(query: &[[i8; WIDTH]], row: &[[i8; WIDTH]]) -> __m512i {
    let top_bit = _mm512_set1_epi8(-128);
    let mut sums = _mm512_setzero_si512();
    for (q, r) in query.iter().zip(row) {
        sums = _mm512_dpbusd_epi32(sums, _mm512_xor_si512(load(r), top_bit), load(q));
    }
    sums
}

/// Adds the rests of four rows. Kept out of the walk over rows, which is small enough to be inlined without it.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_raw_tails(sums: &mut [__m512i; ROWS_AT_ONCE], query: &[i8], rows: [&[i8]; ROWS_AT_ONCE]) {
    for (sums, row) in sums.iter_mut().zip(&rows) {
        *sums = add_raw_tail(*sums, query, row.as_chunks::<WIDTH>().1);
    }
}

/// Adds the rest of one row. The query's lanes past its tail are 0, so what the offset makes of the row's lanes there does not count.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_raw_tail(sums: __m512i, query: &[i8], row: &[i8]) -> __m512i {
    let row = _mm512_xor_si512(load_tail(row), _mm512_set1_epi8(-128));
    _mm512_dpbusd_epi32(sums, row, load_tail(query))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(block: &[i8; WIDTH]) -> __m512i {
    // SAFETY: the reference covers the 64 bytes read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

/// Fewer than 64 codes, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_tail(tail: &[i8]) -> __m512i {
    assert!(tail.len() < WIDTH, "a whole block is no tail");
    // SAFETY: the mask lets exactly the slice's bytes be read.
    unsafe { _mm512_maskz_loadu_epi8((1 << tail.len()) - 1, tail.as_ptr()) }
}

/// The sums of four registers' lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_4(sums: [__m512i; ROWS_AT_ONCE]) -> __m128i {
    let [a, b, c, d] = sums;
    let halves = |sum| _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum));
    let (a, b, c, d) = (halves(a), halves(b), halves(c), halves(d));
    avx2::sum_4([a, b, c, d])
}

#[target_feature(enable = "avx512f")]
fn dot_f32_impl(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_tail) = a.as_chunks::<F32_LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<F32_LANES>();
    let mut sums = [_mm512_setzero_ps(); 4];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        let (a, _) = a.as_chunks::<16>();
        let (b, _) = b.as_chunks::<16>();
        for register in 0..4 {
            let product = _mm512_mul_ps(load_f32(&a[register]), load_f32(&b[register]));
            sums[register] = _mm512_add_ps(sums[register], product);
        }
    }
    for (register, (a, b)) in a_tail.chunks(16).zip(b_tail.chunks(16)).enumerate() {
        let product = _mm512_mul_ps(load_f32_tail(a), load_f32_tail(b));
        sums[register] = _mm512_add_ps(sums[register], product);
    }
    let [s0, s1, s2, s3] = sums;
    let folded = _mm512_add_ps(_mm512_add_ps(s0, s2), _mm512_add_ps(s1, s3));
    let mut lanes = [0.0; 16];
    // SAFETY: the array holds the 16 floats written; the store needs no alignment.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), folded) };
    fold_16(lanes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(block: &[f32; 16]) -> __m512 {
    // SAFETY: the reference covers the 16 floats read; the load needs no alignment.
    unsafe { _mm512_loadu_ps(block.as_ptr()) }
}

/// At most 16 floats, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32_tail(tail: &[f32]) -> __m512 {
    assert!(tail.len() <= 16, "more than a register");
    let mask = ((1_u32 << tail.len()) - 1) as __mmask16;
    // SAFETY: the mask lets exactly the slice's floats be read.
    unsafe { _mm512_maskz_loadu_ps(mask, tail.as_ptr()) }
}
