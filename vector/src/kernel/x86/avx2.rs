//! AVX2.
//!
//! `vpmaddubsw` would add two products in a saturating `i16` (2 × 128 × 128 = 2¹⁵ does not fit). So codes are widened to `i16` first and
//! `vpmaddwd` adds pairs of exact products in an `i32`.

#![allow(clippy::wildcard_imports, reason = "intrinsics: some forty names with one prefix")]

use std::arch::x86_64::*;

use super::{AHEAD_ROWS, GATHER, ROWS, ROWS_AT_ONCE, prefetch, token_methods, walks};
use crate::kernel::{F32_LANES, fold_16};

/// AVX2: Haswell, Zen and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Avx2(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

token_methods!(Avx2);

/// Codes that fill a register once widened to `i16`.
const WIDTH: usize = 16;

/// Nothing to compute ahead; keeps the shape of the AVX-512 kernels.
struct Prepared<'q> {
    query: &'q [i8],
}

impl<'q> Prepared<'q> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(query: &'q [i8]) -> Self {
        Self { query }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot_4<const WALK: u8>(&self, rows: [&[i8]; ROWS_AT_ONCE]) -> [i32; ROWS_AT_ONCE] {
        let mut sums = [_mm256_setzero_si256(); ROWS_AT_ONCE];
        for (sums, row) in sums.iter_mut().zip(&rows) {
            *sums = lane_sums(self.query, row);
        }
        unpack(sum_4(sums))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot_1(&self, row: &[i8]) -> i32 {
        dot_impl(self.query, row)
    }
}

walks!("avx2");

#[inline]
#[target_feature(enable = "avx2")]
fn dot_impl(a: &[i8], b: &[i8]) -> i32 {
    let sums = lane_sums(a, b);
    let zeros = _mm256_setzero_si256();
    _mm_cvtsi128_si32(sum_4([sums, zeros, zeros, zeros]))
}

/// The inner product in eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn lane_sums(a: &[i8], b: &[i8]) -> __m256i {
    let (a_pairs, a_tail) = a.as_chunks::<{ 2 * WIDTH }>();
    let (b_pairs, b_tail) = b.as_chunks::<{ 2 * WIDTH }>();
    // Two sums, so that one addition need not wait for the one before.
    let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (a, b) in a_pairs.iter().zip(b_pairs) {
        let (a, _) = a.as_chunks::<WIDTH>();
        let (b, _) = b.as_chunks::<WIDTH>();
        even = _mm256_add_epi32(even, _mm256_madd_epi16(widen(&a[0]), widen(&b[0])));
        odd = _mm256_add_epi32(odd, _mm256_madd_epi16(widen(&a[1]), widen(&b[1])));
    }
    for (a, b) in a_tail.chunks(WIDTH).zip(b_tail.chunks(WIDTH)) {
        even = _mm256_add_epi32(even, _mm256_madd_epi16(widen(&pad(a)), widen(&pad(b))));
    }
    _mm256_add_epi32(even, odd)
}

/// 16 codes as `i16`.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(block: &[i8; WIDTH]) -> __m256i {
    // SAFETY: the reference covers the 16 bytes read; the load needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(block.as_ptr().cast()) })
}

/// At most 16 codes, zeros behind them.
#[inline]
fn pad(tail: &[i8]) -> [i8; WIDTH] {
    let mut padded = [0; WIDTH];
    padded[..tail.len()].copy_from_slice(tail);
    padded
}

/// The sums of four registers' lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_4(sums: [__m256i; ROWS_AT_ONCE]) -> __m128i {
    let [a, b, c, d] = sums;
    let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn unpack(lanes: __m128i) -> [i32; ROWS_AT_ONCE] {
    let mut out = [0; ROWS_AT_ONCE];
    // SAFETY: the array holds the 16 bytes written; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), lanes) };
    out
}

#[target_feature(enable = "avx2")]
fn dot_f32_impl(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_tail) = a.as_chunks::<F32_LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<F32_LANES>();
    let mut sums = [_mm256_setzero_ps(); F32_LANES / 8];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        add_products(&mut sums, a, b);
    }
    if !a_tail.is_empty() {
        let (mut a, mut b) = ([0.0; F32_LANES], [0.0; F32_LANES]);
        a[..a_tail.len()].copy_from_slice(a_tail);
        b[..b_tail.len()].copy_from_slice(b_tail);
        add_products(&mut sums, &a, &b);
    }
    // Register r holds lanes 8 r …: 64 → 32 adds register r + 4, 32 → 16 adds register r + 2.
    for register in 0..4 {
        sums[register] = _mm256_add_ps(sums[register], sums[register + 4]);
    }
    let mut lanes = [0.0; 16];
    // SAFETY: the array holds the 2 × 8 floats written; the stores need no alignment.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[0], sums[2]));
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), _mm256_add_ps(sums[1], sums[3]));
    }
    fold_16(lanes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_products(sums: &mut [__m256; F32_LANES / 8], a: &[f32; F32_LANES], b: &[f32; F32_LANES]) {
    let (a, _) = a.as_chunks::<8>();
    let (b, _) = b.as_chunks::<8>();
    for register in 0..F32_LANES / 8 {
        let product = _mm256_mul_ps(load_f32(&a[register]), load_f32(&b[register]));
        sums[register] = _mm256_add_ps(sums[register], product);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(block: &[f32; 8]) -> __m256 {
    // SAFETY: the reference covers the 8 floats read; the load needs no alignment.
    unsafe { _mm256_loadu_ps(block.as_ptr()) }
}
