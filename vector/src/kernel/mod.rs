//! SIMD kernels: inner products of int8 codes and of f32 vectors, one result whatever the machine.
//!
//! ```text
//!   Kernel::detect() ── once ──> Kernel (Copy, 1 byte) ── match ──> avx512 │ avx2 │ neon │ scalar
//!                                                                   each built only after its feature check
//! ```
//!
//! **One result.** An int8 inner product is exact integer arithmetic, so every width gives the same number; no instruction used here
//! saturates (each module says why). An f32 inner product depends on the order of its additions, so that order is fixed: lane `i` of
//! [`F32_LANES`] sums the products `i, i + 64, i + 128, …` (multiplied, then added: never fused, so that machines without FMA agree), and
//! the lanes are folded in halves, 64 → 32 → … → 1. A missing tail counts as zeros, which change nothing because no lane ever holds −0.
//! So replicas on different machines order their answers alike.
//!
//! **Safety.** The only unsafe code of this crate: calls into functions compiled for a feature, whose tokens exist only where the feature
//! does (the pattern of memchr's `arch/x86_64`), loads through raw pointers, and the byte view of [`CodeLine`].
//!
//! **Limits.** Codes per product: [`CODES_MAX`], so that no sum of extreme codes leaves an `i32`.

mod lines;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use lines::{CODES_PER_LINE, CodeLine, codes, codes_mut};

/// Most codes in one int8 product: 131,071 × 128 × 128 is the last sum that an `i32` holds.
pub const CODES_MAX: usize = (i32::MAX / (128 * 128)) as usize;

/// Lanes over which an f32 product is summed, on every machine: four 512-bit registers.
pub const F32_LANES: usize = 64;

/// The kernels of one instruction set. Copy it around: it is a resolved choice, not a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Arch);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arch {
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Scalar,
}

/// Runs one method of the chosen instruction set.
macro_rules! dispatch {
    ($kernel:expr, $method:ident ( $($argument:expr),* )) => {
        match $kernel.0 {
            #[cfg(target_arch = "x86_64")]
            Arch::Avx512(token) => token.$method($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Arch::Avx2(token) => token.$method($($argument),*),
            #[cfg(target_arch = "aarch64")]
            Arch::Neon(token) => token.$method($($argument),*),
            Arch::Scalar => scalar::$method($($argument),*),
        }
    };
}

impl Kernel {
    /// The fastest kernels that this machine runs. Resolve it once, at start.
    pub fn detect() -> Self {
        *Self::available().first().expect("the scalar kernels run everywhere")
    }

    /// All kernels that this machine runs, the fastest first; the last is scalar. For tests and benches that force one.
    pub fn available() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(x86::Avx512Vnni::new().map(Arch::Avx512));
            kernels.extend(x86::Avx2::new().map(Arch::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        kernels.extend(neon::Neon::new().map(Arch::Neon));
        kernels.push(Arch::Scalar);
        kernels.into_iter().map(Self).collect()
    }

    /// `"avx512vnni"`, `"avx2"`, `"neon"` or `"scalar"`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Arch::Avx512(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Arch::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Arch::Neon(_) => "neon",
            Arch::Scalar => "scalar",
        }
    }

    /// Exact inner product of two code vectors of one length, at most [`CODES_MAX`].
    ///
    /// # Panics
    /// When the lengths differ or pass the limit.
    pub fn dot_i8(self, a: &[i8], b: &[i8]) -> i32 {
        assert_eq!(a.len(), b.len(), "vectors of one index have one dimension");
        assert!(a.len() <= CODES_MAX, "{} codes, at most {CODES_MAX}", a.len());
        dispatch!(self, dot_i8(a, b))
    }

    /// Exact inner products of `query` with consecutive rows: `out[i]` is that of `rows[i × d ..][.. d]`, d = `query.len()`.
    ///
    /// # Panics
    /// When `rows` does not hold exactly `out.len()` rows, or d is 0 or over [`CODES_MAX`].
    pub fn dot_i8_rows(self, query: &[i8], rows: &[i8], out: &mut [i32]) {
        assert!(!query.is_empty(), "a row has at least one code");
        assert!(query.len() <= CODES_MAX, "{} codes, at most {CODES_MAX}", query.len());
        assert_eq!(rows.len(), query.len() * out.len(), "whole rows, as many as results");
        dispatch!(self, dot_i8_rows(query, rows, out));
    }

    /// Exact inner products of `query` with chosen rows: `out[i]` is that of `codes[chosen[i] × d ..][.. d]`, d = `query.len()`. Rows that
    /// come next are fetched ahead, so the order of `chosen` hardly matters.
    ///
    /// # Panics
    /// When `chosen` and `out` differ in length, a row lies outside `codes`, or d is 0 or over [`CODES_MAX`].
    pub fn dot_i8_gather(self, query: &[i8], codes: &[i8], chosen: &[u32], out: &mut [i32]) {
        assert!(!query.is_empty(), "a row has at least one code");
        assert!(query.len() <= CODES_MAX, "{} codes, at most {CODES_MAX}", query.len());
        assert_eq!(chosen.len(), out.len(), "as many results as rows");
        dispatch!(self, dot_i8_gather(query, codes, chosen, out));
    }

    /// Inner product of two f32 vectors of one length, in the fixed order of additions that the module describes: the same bits on every
    /// machine as long as no intermediate overflows.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of one index have one dimension");
        dispatch!(self, dot_f32(a, b))
    }

    /// Asks the cache for a row that will be read soon. A hint: changes no result.
    #[inline]
    pub fn prefetch<T>(self, row: &[T]) {
        #[cfg(target_arch = "x86_64")]
        x86::prefetch(row);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }
}

/// Folds lanes in halves. Every kernel ends here once it is down to 16 lanes, so the order of additions is one.
#[inline]
fn fold_16(mut lanes: [f32; 16]) -> f32 {
    let mut half = 8;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
