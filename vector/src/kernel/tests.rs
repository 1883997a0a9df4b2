//! Every kernel against the naive version, and properties that hold whatever the width.

use proptest::prelude::*;

use super::*;

/// In `i64`, one by one: nothing to get wrong.
fn naive_dot(a: &[i8], b: &[i8]) -> i64 {
    a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum()
}

/// The fixed order of additions, written from its definition.
fn naive_dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = vec![0.0_f32; F32_LANES];
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[index % F32_LANES] += a * b;
    }
    while lanes.len() > 1 {
        let upper = lanes.split_off(lanes.len() / 2);
        for (lower, upper) in lanes.iter_mut().zip(upper) {
            *lower += upper;
        }
    }
    lanes[0]
}

/// A small deterministic generator (splitmix64): tests repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn codes(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| self.next() as i8).collect()
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

#[test]
fn the_last_kernel_is_scalar_and_the_first_is_detected() {
    let kernels = Kernel::available();
    assert_eq!(kernels.last().map(|kernel| kernel.name()), Some("scalar"));
    assert_eq!(kernels.first(), Some(&Kernel::detect()));
}

#[test]
fn every_length_and_misalignment_gives_the_naive_product() {
    let mut random = Random(1);
    let (a, b) = (random.codes(1200), random.codes(1200));
    for kernel in Kernel::available() {
        for length in 0..=1100 {
            let (a, b) = (&a[length % 67..][..length], &b[length % 31..][..length]);
            assert_eq!(i64::from(kernel.dot_i8(a, b)), naive_dot(a, b), "{} at length {length}", kernel.name());
        }
    }
}

#[test]
fn extreme_codes_do_not_saturate_at_any_length() {
    for (left, right) in [(-128, -128), (127, 127), (-127, 127), (-128, 127), (127, -128), (-127, -127)] {
        let (a, b) = (vec![left; CODES_MAX], vec![right; CODES_MAX]);
        for kernel in Kernel::available() {
            for length in (0..=300).chain([384, 1023, 4096, CODES_MAX]) {
                let expected = i64::from(left) * i64::from(right) * length as i64;
                let found = kernel.dot_i8(&a[..length], &b[..length]);
                assert_eq!(i64::from(found), expected, "{} {left} × {right} × {length}", kernel.name());
            }
        }
    }
}

#[test]
fn batches_equal_products_one_by_one() {
    let mut random = Random(2);
    for dimension in [1, 15, 16, 17, 63, 64, 65, 100, 384, 768, 1000] {
        for count in 0..=11 {
            let offset = count % 5; // rows that start anywhere
            let query = random.codes(dimension);
            let all = random.codes(offset + count * dimension);
            let rows = &all[offset..];
            let expected: Vec<i64> = rows.chunks_exact(dimension).map(|row| naive_dot(&query, row)).collect();
            let chosen: Vec<u32> = (0..count as u32).rev().collect();
            for kernel in Kernel::available() {
                let mut out = vec![i32::MIN; count];
                kernel.dot_i8_rows(&query, rows, &mut out);
                assert!(out.iter().map(|&dot| i64::from(dot)).eq(expected.iter().copied()), "{} rows", kernel.name());
                let mut out = vec![i32::MIN; count];
                kernel.dot_i8_gather(&query, rows, &chosen, &mut out);
                assert!(
                    out.iter().map(|&dot| i64::from(dot)).eq(expected.iter().rev().copied()),
                    "{} gather",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn f32_products_have_the_same_bits_on_every_kernel_at_every_length() {
    let mut random = Random(3);
    let (a, b) = (random.floats(1200), random.floats(1200));
    for kernel in Kernel::available() {
        for length in 0..=1100 {
            let (a, b) = (&a[length % 17..][..length], &b[length % 5..][..length]);
            let (found, expected) = (kernel.dot_f32(a, b), naive_dot_f32(a, b));
            assert_eq!(found.to_bits(), expected.to_bits(), "{} at length {length}", kernel.name());
        }
    }
}

#[test]
fn f32_products_are_close_to_the_real_number() {
    let mut random = Random(4);
    let (a, b) = (random.floats(1000), random.floats(1000));
    let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    for kernel in Kernel::available() {
        assert!((f64::from(kernel.dot_f32(&a, &b)) - exact).abs() < 1e-4, "{}", kernel.name());
    }
}

#[test]
#[should_panic(expected = "one dimension")]
fn lengths_that_differ_are_our_own_bug() {
    Kernel::detect().dot_i8(&[1, 2], &[1]);
}

#[test]
#[should_panic(expected = "range end index")]
fn a_chosen_row_outside_the_codes_is_our_own_bug() {
    Kernel::detect().dot_i8_gather(&[1; 64], &[1; 128], &[2], &mut [0]);
}

#[test]
fn lines_are_aligned_views_of_the_same_codes() {
    let mut lines = vec![CodeLine::ZERO; 3];
    assert_eq!(lines.as_ptr().addr() % 64, 0);
    codes_mut(&mut lines)[65] = -7;
    assert_eq!(lines[1].0[1], -7);
    assert_eq!(codes(&lines).len(), 192);
    assert_eq!(codes(&lines)[65], -7);
}

proptest! {
    #[test]
    fn products_are_symmetric_and_linear_in_sign(pairs in prop::collection::vec((-127_i8..=127, -127_i8..=127), 0..700)) {
        let (a, b): (Vec<i8>, Vec<i8>) = pairs.into_iter().unzip();
        let negated: Vec<i8> = a.iter().map(|&code| -code).collect();
        for kernel in Kernel::available() {
            let product = kernel.dot_i8(&a, &b);
            prop_assert_eq!(i64::from(product), naive_dot(&a, &b));
            prop_assert_eq!(kernel.dot_i8(&b, &a), product);
            prop_assert_eq!(kernel.dot_i8(&negated, &b), -product);
            prop_assert!(kernel.dot_i8(&a, &a) >= 0);
        }
    }

    #[test]
    fn padding_with_zeros_changes_nothing(a in prop::collection::vec(any::<i8>(), 1..300), zeros in 0_usize..130) {
        let mut padded = a.clone();
        padded.resize(a.len() + zeros, 0);
        let mut other = a.clone();
        other.reverse();
        let expected = Kernel::detect().dot_i8(&a, &other);
        other.resize(a.len() + zeros, 127);
        for kernel in Kernel::available() {
            prop_assert_eq!(kernel.dot_i8(&padded, &other), expected);
        }
    }
}
