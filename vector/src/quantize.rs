//! int8 codes for f32 vectors: one symmetric scale for a whole index.
//!
//! ```text
//!   x ──(÷ scale, round half to even, clamp to ±127)──> codes        scale = unit_max_abs(d) · 2^exponent / 127
//!    └─────────── x − scale · codes ──> its length: the error that an exact search bounds with
//! ```
//!
//! **Which scale.** Components of unit vectors shrink with the dimension as 1/√d, so exponent 0 clamps at [`unit_max_abs`], a constant
//! number of standard deviations, chosen by measurement (see there). Vectors that were not scaled to length 1 need another magnitude:
//! [`ScaleRule`] moves the exponent, by whole powers of two, so that at most one row in eight is clamped. It is a function of the rows
//! pushed and deleted, in order, so replicas that apply one log agree on every code.
//!
//! **Determinism.** Multiplication, addition and square root are IEEE 754 f32 and f64, never fused, summed in a fixed order: one vector
//! and one exponent give one code on every machine.
//!
//! A per-component scale would follow the data closer but needs the data first; one scale keeps products of any two codes comparable,
//! which the graph index needs.

use crate::kernel::CodeLine;
use crate::limits::{COMPONENT_ABS_MAX, DIMENSION_MAX};
use crate::{VectorError, kernel};

/// Largest code; −128 is not used, so that the scale is symmetric.
pub const CODE_MAX: i8 = 127;

/// Standard deviations of a unit vector's components (1/√d each) that exponent 0 keeps unclamped.
///
/// Measured on 100,000 sentence embeddings (all-MiniLM-L6-v2, 384-d), whose largest components have the median 3.2 and the 99.99th
/// percentile 5.2: at 4, the mean error is least (0.0093), but 3.6 % of the rows are clamped, and the largest error of nearly every block of
/// 64 is twice that; at 5, 0.03 % are clamped and the errors are 0.0113 to 0.0119; at 6, none and 0.0136.
const UNIT_SPREAD: f32 = 5.0;

/// Exponents that the rule may choose; accepted components need no more.
pub const EXPONENT_MAX: i8 = 64;

/// Below this the vectors are zeros for every purpose.
pub const EXPONENT_MIN: i8 = -64;

/// Adding and taking off 1.5 × 2²³ rounds a float of small magnitude half to even; in between its low bits are the integer.
const ROUNDER: f32 = 12_582_912.0;

/// Sums run over this many lanes, folded in order.
const LANES: usize = 8;

/// Largest component that exponent 0 codes without clamping: 5/√d, at most 1.
pub fn unit_max_abs(dimension: usize) -> f32 {
    (UNIT_SPREAD / (dimension as f32).sqrt()).min(1.0)
}

/// Refuses what cannot be compared.
pub fn check(vector: &[f32], dimension: usize) -> Result<(), VectorError> {
    if vector.len() != dimension {
        return Err(VectorError::WrongDimension { expected: dimension, given: vector.len() });
    }
    // Without an early exit the test of a whole vector is a few SIMD instructions.
    if vector.iter().fold(true, |accepted, &value| accepted & is_accepted(value)) {
        return Ok(());
    }
    let component = vector.iter().position(|&value| !is_accepted(value)).expect("the fold found one");
    let value = vector[component];
    Err(if value.is_finite() {
        VectorError::TooLarge { component, value }
    } else {
        VectorError::NotFinite { component, value }
    })
}

/// False for NaN too, which compares as nothing.
fn is_accepted(value: f32) -> bool {
    value.abs() <= COMPONENT_ABS_MAX
}

/// Refuses dimensions that no index has.
pub fn check_dimension(dimension: usize) -> Result<(), VectorError> {
    match dimension {
        0 => Err(VectorError::DimensionZero),
        1..=DIMENSION_MAX => Ok(()),
        _ => Err(VectorError::DimensionTooLarge { dimension }),
    }
}

/// Scales a checked vector to length 1.
pub fn normalise(vector: &mut [f32]) -> Result<(), VectorError> {
    let length = length(vector);
    if length == 0.0 {
        return Err(VectorError::ZeroLength);
    }
    let inverse = 1.0 / length;
    for value in vector {
        *value = (f64::from(*value) * inverse) as f32;
    }
    Ok(())
}

/// Euclidean length in f64, which squares of f32 neither overflow nor underflow.
fn length(vector: &[f32]) -> f64 {
    sum_lanes(vector, |&value| f64::from(value) * f64::from(value)).sqrt()
}

/// Magnitude of the largest component of a checked vector. The bits of finite floats without their sign order as the floats do, and integers
/// have a SIMD maximum without regard for NaN.
fn max_abs(vector: &[f32]) -> f32 {
    f32::from_bits(vector.iter().fold(0, |max, value| max.max(value.abs().to_bits())))
}

/// A sum in a fixed order that compilers can vectorise.
fn sum_lanes<T>(values: &[T], term: impl Fn(&T) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (blocks, tail) = values.as_chunks::<LANES>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += term(value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane += term(value);
    }
    lanes.iter().sum()
}

/// Rounds up to f32, past the error of the f64 that it comes from: for bounds.
pub(crate) fn round_up(value: f64) -> f32 {
    (value as f32).next_up()
}

/// A fixed scale for vectors of one dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    dimension: usize,
    exponent: i8,
    scale: f32,
}

/// What coding a vector lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// Components that were cut off at ±127.
    pub clamped: u32,
    /// Upper bound of ‖x − scale · codes‖₂.
    pub error: f32,
    /// Upper bound of ‖x‖₂.
    pub length: f32,
}

impl Quantizer {
    /// The quantizer of one exponent.
    ///
    /// # Panics
    /// When the exponent is outside [`EXPONENT_MIN`]`..=`[`EXPONENT_MAX`].
    pub fn new(dimension: usize, exponent: i8) -> Result<Self, VectorError> {
        check_dimension(dimension)?;
        assert!((EXPONENT_MIN..=EXPONENT_MAX).contains(&exponent), "exponent {exponent}");
        // 2^exponent by its bits: `powi` promises no precision.
        let power = f32::from_bits(((127 + i32::from(exponent)) as u32) << 23);
        let scale = unit_max_abs(dimension) * power / f32::from(CODE_MAX);
        Ok(Self { dimension, exponent, scale })
    }

    /// Components of the vectors coded.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Powers of two above the scale of unit vectors.
    pub fn exponent(&self) -> i8 {
        self.exponent
    }

    /// What one step of a code stands for.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The smallest exponent that codes a checked vector without clamping; none for zeros, which any exponent codes.
    pub fn exponent_needed(vector: &[f32]) -> Option<i8> {
        let max_abs = max_abs(vector);
        if max_abs == 0.0 {
            return None;
        }
        let ratio = max_abs / unit_max_abs(vector.len());
        // The exponent field of the float, rounded up unless the ratio is a power of two; a subnormal ratio is below the range anyway.
        let bits = ratio.to_bits();
        let floor = (bits >> 23) as i32 - 127;
        let ceiling = floor + i32::from(bits & 0x7F_FFFF != 0);
        Some(ceiling.clamp(i32::from(EXPONENT_MIN), i32::from(EXPONENT_MAX)) as i8)
    }

    /// Codes a checked vector; `codes` may be longer, its rest becomes 0.
    ///
    /// # Panics
    /// When the vector is of another dimension, or `codes` is too short.
    pub fn encode(&self, vector: &[f32], codes: &mut [i8]) -> Encoded {
        assert_eq!(vector.len(), self.dimension, "checked when it came in");
        encode_with(self.scale, vector, codes)
    }
}

fn encode_with(scale: f32, vector: &[f32], codes: &mut [i8]) -> Encoded {
    let (codes, padding) = codes.split_at_mut(vector.len());
    padding.fill(0);
    let mut coder =
        Coder { scale, inverse: 1.0 / scale, squares: [0.0; LANES], error_squares: [0.0; LANES], clamped: [0; LANES] };
    let (blocks, tail) = vector.as_chunks::<LANES>();
    let (code_blocks, code_tail) = codes.as_chunks_mut::<LANES>();
    for (values, codes) in blocks.iter().zip(code_blocks) {
        *codes = coder.encode(values);
    }
    // Zeros behind the tail are coded as zeros and lose nothing.
    let mut values = [0.0; LANES];
    values[..tail.len()].copy_from_slice(tail);
    code_tail.copy_from_slice(&coder.encode(&values)[..tail.len()]);
    Encoded {
        clamped: coder.clamped.iter().sum(),
        error: round_up(coder.error_squares.iter().sum::<f64>().sqrt()),
        length: round_up(coder.squares.iter().sum::<f64>().sqrt()),
    }
}

/// Codes block by block, in a shape that compilers vectorise, and sums up what is lost.
struct Coder {
    scale: f32,
    inverse: f32,
    squares: [f64; LANES],
    error_squares: [f64; LANES],
    clamped: [u32; LANES],
}

impl Coder {
    #[inline]
    fn encode(&mut self, values: &[f32; LANES]) -> [i8; LANES] {
        let limit = f32::from(CODE_MAX);
        let mut codes = [0; LANES];
        for lane in 0..LANES {
            let steps = values[lane] * self.inverse;
            self.clamped[lane] += u32::from(steps.abs() > limit + 0.5);
            // Accepted components are numbers, for which this is a clamp in two SIMD instructions.
            let bounded = if steps > limit { limit } else { steps };
            let bounded = if bounded < -limit { -limit } else { bounded };
            let shifted = bounded + ROUNDER;
            codes[lane] = shifted.to_bits() as i8;
            let value = f64::from(values[lane]);
            let residue = value - f64::from(shifted - ROUNDER) * f64::from(self.scale);
            self.squares[lane] += value * value;
            self.error_squares[lane] += residue * residue;
        }
        codes
    }
}

/// A query in codes of its own scale, which is finer than the index's because it has only itself to fit.
#[derive(Clone, Debug)]
pub struct QueryCode {
    /// Codes, padded with zeros to whole lines.
    lines: Vec<CodeLine>,
    /// What one step stands for.
    pub scale: f32,
    /// Upper bound of ‖q − scale · codes‖₂.
    pub error: f32,
    /// Upper bound of ‖q‖₂.
    pub length: f32,
}

impl QueryCode {
    /// Codes a checked query.
    pub fn new(query: &[f32]) -> Self {
        let max_abs = max_abs(query);
        // A scale that underflows to 0, or a query of zeros, still needs a scale; 1 codes both as zeros, and the error bound says so.
        let scale = max_abs / f32::from(CODE_MAX);
        let scale = if scale.is_normal() && (1.0 / scale).is_finite() { scale } else { 1.0 };
        let mut lines = vec![CodeLine::ZERO; query.len().div_ceil(kernel::CODES_PER_LINE)];
        let Encoded { error, length, .. } = encode_with(scale, query, kernel::codes_mut(&mut lines));
        Self { lines, scale, error, length }
    }

    /// The codes, padded to whole lines as rows are.
    pub fn codes(&self) -> &[i8] {
        kernel::codes(&self.lines)
    }
}

/// Chooses the exponent of an index from the rows it holds.
///
/// At most one row in eight is clamped: more, and the exponent grows at once; when two powers of two less would clamp at most one row in
/// sixteen, it shrinks. Between the two lies a sixteenth of the rows, so a change of exponent, which codes every row again, is paid for by
/// the pushes and deletes since the last.
#[derive(Clone, Debug)]
pub struct ScaleRule {
    exponent: i8,
    rows: u32,
    needing: [u32; EXPONENTS],
}

const EXPONENTS: usize = (EXPONENT_MAX as i16 - EXPONENT_MIN as i16 + 1) as usize;

/// One row in this many may be clamped before the exponent grows.
const CLAMPED_ONE_IN_GROW: u32 = 8;

/// One row in this many may be clamped after the exponent shrank.
const CLAMPED_ONE_IN_SHRINK: u32 = 16;

/// Powers of two that a shrink is worth.
const SHRINK_STEPS: i8 = 2;

impl Default for ScaleRule {
    /// Starts at the exponent of unit vectors.
    fn default() -> Self {
        Self { exponent: 0, rows: 0, needing: [0; EXPONENTS] }
    }
}

impl ScaleRule {
    /// The exponent in force.
    pub fn exponent(&self) -> i8 {
        self.exponent
    }

    /// Counts a row that comes in, by its [`Quantizer::exponent_needed`].
    pub fn add(&mut self, needed: Option<i8>) {
        if let Some(needed) = needed {
            self.needing[slot(needed)] += 1;
            self.rows += 1;
            self.adjust();
        }
    }

    /// Counts a row that goes.
    ///
    /// # Panics
    /// When no such row came in.
    pub fn remove(&mut self, needed: Option<i8>) {
        if let Some(needed) = needed {
            assert!(self.needing[slot(needed)] > 0, "a row that came in with exponent {needed}");
            self.needing[slot(needed)] -= 1;
            self.rows -= 1;
            self.adjust();
        }
    }

    /// Rows that the exponent in force clamps.
    pub fn rows_clamped(&self) -> u32 {
        self.needing[slot(self.exponent) + 1..].iter().sum()
    }

    fn adjust(&mut self) {
        if self.rows == 0 {
            return;
        }
        let grown = self.smallest(self.rows / CLAMPED_ONE_IN_GROW);
        let shrunk = self.smallest(self.rows / CLAMPED_ONE_IN_SHRINK);
        if grown > self.exponent {
            self.exponent = grown;
        } else if shrunk <= self.exponent - SHRINK_STEPS {
            self.exponent = shrunk;
        }
    }

    /// The smallest exponent that clamps at most `clamped_max` rows.
    fn smallest(&self, clamped_max: u32) -> i8 {
        let mut clamped = 0;
        for exponent in (EXPONENT_MIN..=EXPONENT_MAX).rev() {
            clamped += self.needing[slot(exponent)];
            if clamped > clamped_max {
                return exponent;
            }
        }
        EXPONENT_MIN
    }
}

fn slot(exponent: i8) -> usize {
    (i16::from(exponent) - i16::from(EXPONENT_MIN)) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantizer(dimension: usize, exponent: i8) -> Quantizer {
        Quantizer::new(dimension, exponent).expect("a good dimension")
    }

    /// Codes and loss, the plain way.
    fn naive(quantizer: &Quantizer, vector: &[f32]) -> (Vec<i8>, f64) {
        let scale = f64::from(quantizer.scale());
        let codes: Vec<i8> =
            vector.iter().map(|&x| (f64::from(x) / scale).round().clamp(-127.0, 127.0) as i8).collect();
        let squares = vector.iter().zip(&codes).map(|(&x, &code)| (f64::from(x) - f64::from(code) * scale).powi(2));
        let error = squares.sum::<f64>().sqrt();
        (codes, error)
    }

    #[test]
    fn golden_codes_never_change() {
        let vector = [0.0, 0.01, -0.01, 0.25, -0.25, 1.0, -1.0, 0.123_456, 1e-30];
        let mut codes = [7; 12];
        let encoded = quantizer(9, 0).encode(&vector, &mut codes);
        assert_eq!(codes, [0, 1, -1, 32, -32, 127, -127, 16, 0, 0, 0, 0]);
        assert_eq!(encoded.clamped, 0);
        let encoded = quantizer(9, -1).encode(&vector, &mut codes);
        assert_eq!(codes, [0, 3, -3, 64, -64, 127, -127, 31, 0, 0, 0, 0]);
        assert_eq!(encoded.clamped, 2);
    }

    #[test]
    fn codes_round_to_the_nearest_step() {
        let quantizer = quantizer(1, 0);
        let step = quantizer.scale();
        for (steps, expected) in [(0.4999, 0), (1.4, 1), (2.6, 3), (-0.4, 0), (-2.6, -3)] {
            let mut code = [0];
            quantizer.encode(&[steps * step], &mut code);
            assert_eq!(code[0], expected, "{steps}");
        }
    }

    #[test]
    fn a_vector_of_the_wrong_kind_is_named() {
        assert_eq!(check(&[1.0; 3], 4), Err(VectorError::WrongDimension { expected: 4, given: 3 }));
        assert_eq!(check(&[1.0, f32::INFINITY], 2), Err(VectorError::NotFinite { component: 1, value: f32::INFINITY }));
        assert_eq!(check(&[-2e15, 1.0], 2), Err(VectorError::TooLarge { component: 0, value: -2e15 }));
        assert_eq!(check(&[COMPONENT_ABS_MAX, -COMPONENT_ABS_MAX], 2), Ok(()));
        assert_eq!(check_dimension(0), Err(VectorError::DimensionZero));
        assert_eq!(check_dimension(DIMENSION_MAX), Ok(()));
    }

    #[test]
    fn normalising_reaches_length_one_from_any_magnitude() {
        for magnitude in [1e-40_f32, 1e-20, 1.0, 1e15] {
            let mut vector: Vec<f32> = (1..=100).map(|value| value as f32 * magnitude / 100.0).collect();
            normalise(&mut vector).expect("it has a length");
            assert!((length(&vector) - 1.0).abs() < 1e-6, "from {magnitude}");
        }
        assert_eq!(normalise(&mut [0.0, -0.0]), Err(VectorError::ZeroLength));
    }

    #[test]
    fn an_outlier_leaves_the_scale_and_a_crowd_moves_it() {
        let mut rule = ScaleRule::default();
        for _ in 0..80 {
            rule.add(Some(0));
        }
        for _ in 0..11 {
            rule.add(Some(5));
        }
        assert_eq!((rule.exponent(), rule.rows_clamped()), (0, 11));
        rule.add(Some(3));
        assert_eq!((rule.exponent(), rule.rows_clamped()), (3, 11), "12 of 92 would be clamped, 11 may");
        for _ in 0..1000 {
            rule.add(None);
        }
        assert_eq!(rule.exponent(), 3, "zeros need no scale");
    }

    #[test]
    fn the_first_vector_sets_the_magnitude() {
        let mut rule = ScaleRule::default();
        rule.add(Some(20));
        assert_eq!(rule.exponent(), 20);
        let mut rule = ScaleRule::default();
        rule.add(Some(-20));
        assert_eq!(rule.exponent(), -20);
        rule.remove(Some(-20));
        assert_eq!(rule.exponent(), -20, "an empty index keeps its scale");
    }

    /// A row that comes and goes at the edge must not code all rows anew each time.
    #[test]
    fn the_scale_does_not_flutter() {
        let mut rule = ScaleRule::default();
        (0..700).for_each(|_| rule.add(Some(0)));
        (0..100).for_each(|_| rule.add(Some(9)));
        assert_eq!(rule.exponent(), 0);
        let mut moves = 0;
        let mut last = rule.exponent();
        for _ in 0..100 {
            rule.add(Some(9));
            moves += u32::from(std::mem::replace(&mut last, rule.exponent()) != rule.exponent());
            rule.remove(Some(9));
            moves += u32::from(std::mem::replace(&mut last, rule.exponent()) != rule.exponent());
        }
        assert_eq!((moves, rule.exponent()), (1, 9));
        (0..60).for_each(|_| rule.remove(Some(9)));
        assert_eq!(rule.exponent(), 0, "once the crowd is gone, the scale returns");
    }

    proptest! {
        #[test]
        fn codes_are_the_nearest_and_the_error_is_an_upper_bound(
            vector in prop::collection::vec(-2.0_f32..2.0, 1..200),
            exponent in -6_i8..6,
        ) {
            let quantizer = quantizer(vector.len(), exponent);
            let mut codes = vec![99; vector.len().next_multiple_of(64)];
            let encoded = quantizer.encode(&vector, &mut codes);
            let (expected, _) = naive(&quantizer, &vector);
            for (code, expected) in codes.iter().zip(&expected) {
                prop_assert!((i16::from(*code) - i16::from(*expected)).abs() <= 1, "halves may round either way");
            }
            prop_assert!(codes[vector.len()..].iter().all(|&code| code == 0));
            let scale = f64::from(quantizer.scale());
            let squares = vector.iter().zip(&codes).map(|(&x, &code)| (f64::from(x) - f64::from(code) * scale).powi(2));
            let lost = squares.sum::<f64>().sqrt();
            prop_assert!(f64::from(encoded.error) >= lost);
            prop_assert!(f64::from(encoded.error) <= lost * 1.000_001 + 1e-30);
            prop_assert!(f64::from(encoded.length) >= length(&vector));
            if encoded.clamped == 0 {
                prop_assert!(lost <= scale * (vector.len() as f64).sqrt() * 0.500_01);
            }
        }

        #[test]
        fn the_needed_exponent_is_the_smallest_that_does_not_clamp(
            vector in prop::collection::vec(-1.0_f32..1.0, 1..64),
            magnitude in -40_i32..40,
        ) {
            let vector: Vec<f32> = vector.iter().map(|value| value * 2.0_f32.powi(magnitude)).collect();
            let max_abs = vector.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            prop_assume!(max_abs > 1e-15);
            let needed = Quantizer::exponent_needed(&vector).expect("not zeros");
            let limit = f64::from(unit_max_abs(vector.len())) * 2.0_f64.powi(i32::from(needed));
            prop_assert!(f64::from(max_abs) <= limit * 1.000_001);
            prop_assert!(f64::from(max_abs) > limit * 0.499_999);
        }

        #[test]
        fn a_query_loses_at_most_half_a_step_a_component(query in prop::collection::vec(-1e3_f32..1e3, 1..200)) {
            let code = QueryCode::new(&query);
            prop_assert_eq!(code.codes().len(), query.len().next_multiple_of(64));
            let half_step = f64::from(code.scale) / 2.0;
            prop_assert!(f64::from(code.error) <= half_step * (query.len() as f64).sqrt() * 1.000_1 + 1e-30);
        }
    }
}
