//! NEON, which every aarch64 has.
//!
//! `smull` makes exact `i16` products of codes (at most 128 × 128 = 2¹⁴), `sadalp` adds pairs of them into `i32` lanes: nothing saturates.

#![allow(clippy::wildcard_imports, reason = "intrinsics: some twenty names with one prefix")]

use std::arch::aarch64::*;

use super::{F32_LANES, fold_16};

/// Codes in a register.
const WIDTH: usize = 16;

/// Exists only where NEON does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    #[inline]
    pub fn dot_i8(self, a: &[i8], b: &[i8]) -> i32 {
        // SAFETY: the token exists only if `new` found NEON on this machine.
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

#[target_feature(enable = "neon")]
fn rows_impl(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        *out = dot_impl(query, row);
    }
}

#[target_feature(enable = "neon")]
fn gather_impl(query: &[i8], codes: &[i8], chosen: &[u32], out: &mut [i32]) {
    for (&row, out) in chosen.iter().zip(out) {
        *out = dot_impl(query, &codes[row as usize * query.len()..][..query.len()]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn dot_impl(a: &[i8], b: &[i8]) -> i32 {
    let (a_pairs, a_tail) = a.as_chunks::<{ 2 * WIDTH }>();
    let (b_pairs, b_tail) = b.as_chunks::<{ 2 * WIDTH }>();
    // Two sums, so that one addition need not wait for the one before.
    let (mut even, mut odd) = (vdupq_n_s32(0), vdupq_n_s32(0));
    for (a, b) in a_pairs.iter().zip(b_pairs) {
        let (a, _) = a.as_chunks::<WIDTH>();
        let (b, _) = b.as_chunks::<WIDTH>();
        even = add_products(even, load(&a[0]), load(&b[0]));
        odd = add_products(odd, load(&a[1]), load(&b[1]));
    }
    for (a, b) in a_tail.chunks(WIDTH).zip(b_tail.chunks(WIDTH)) {
        even = add_products(even, load(&pad(a)), load(&pad(b)));
    }
    vaddvq_s32(vaddq_s32(even, odd))
}

/// Adds 16 products to four lanes.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    vpadalq_s16(sum, vmull_high_s8(a, b))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(block: &[i8; WIDTH]) -> int8x16_t {
    // SAFETY: the reference covers the 16 bytes read; the load needs no alignment.
    unsafe { vld1q_s8(block.as_ptr()) }
}

/// At most 16 codes, zeros behind them.
#[inline]
fn pad(tail: &[i8]) -> [i8; WIDTH] {
    let mut padded = [0; WIDTH];
    padded[..tail.len()].copy_from_slice(tail);
    padded
}

#[target_feature(enable = "neon")]
fn dot_f32_impl(a: &[f32], b: &[f32]) -> f32 {
    let (a_blocks, a_tail) = a.as_chunks::<F32_LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<F32_LANES>();
    let mut sums = [vdupq_n_f32(0.0); F32_LANES / 4];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        add_products_f32(&mut sums, a, b);
    }
    if !a_tail.is_empty() {
        let (mut a, mut b) = ([0.0; F32_LANES], [0.0; F32_LANES]);
        a[..a_tail.len()].copy_from_slice(a_tail);
        b[..b_tail.len()].copy_from_slice(b_tail);
        add_products_f32(&mut sums, &a, &b);
    }
    // Register r holds lanes 4 r …: 64 → 32 adds register r + 8, 32 → 16 adds register r + 4.
    for register in 0..8 {
        sums[register] = vaddq_f32(sums[register], sums[register + 8]);
    }
    let mut lanes = [0.0; 16];
    let (quarters, _) = lanes.as_chunks_mut::<4>();
    for (register, quarter) in quarters.iter_mut().enumerate() {
        // SAFETY: the reference covers the 4 floats written; the store needs no alignment.
        unsafe { vst1q_f32(quarter.as_mut_ptr(), vaddq_f32(sums[register], sums[register + 4])) };
    }
    fold_16(lanes)
}

/// Multiplied, then added: `vfmaq_f32` would round once instead of twice and disagree with machines that have no FMA.
#[inline]
#[target_feature(enable = "neon")]
fn add_products_f32(sums: &mut [float32x4_t; F32_LANES / 4], a: &[f32; F32_LANES], b: &[f32; F32_LANES]) {
    let (a, _) = a.as_chunks::<4>();
    let (b, _) = b.as_chunks::<4>();
    for register in 0..F32_LANES / 4 {
        // SAFETY: each reference covers the 4 floats read; the loads need no alignment.
        let (a, b) = unsafe { (vld1q_f32(a[register].as_ptr()), vld1q_f32(b[register].as_ptr())) };
        sums[register] = vaddq_f32(sums[register], vmulq_f32(a, b));
    }
}
