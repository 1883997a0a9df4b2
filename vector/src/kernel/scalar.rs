//! Portable kernels: the fallback, and the shape that the compiler vectorises with whatever the target guarantees.

use super::{F32_LANES, fold_16};

/// Products of two codes fit an `i16` (at most 128 × 128 = 2¹⁴), their sum an `i32` up to `CODES_MAX`.
pub(super) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(i16::from(a) * i16::from(b))).sum()
}

pub(super) fn dot_i8_rows(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        *out = dot_i8(query, row);
    }
}

pub(super) fn dot_i8_gather(query: &[i8], codes: &[i8], chosen: &[u32], out: &mut [i32]) {
    for (&row, out) in chosen.iter().zip(out) {
        *out = dot_i8(query, &codes[row as usize * query.len()..][..query.len()]);
    }
}

pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; F32_LANES];
    let (a_blocks, a_tail) = a.as_chunks::<F32_LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<F32_LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..F32_LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += a * b;
    }
    let mut folded = [0.0; 16];
    for lane in 0..16 {
        folded[lane] = (lanes[lane] + lanes[lane + 32]) + (lanes[lane + 16] + lanes[lane + 48]);
    }
    fold_16(folded)
}
