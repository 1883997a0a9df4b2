//! Randomness as the driver gives it: the system's in production, the seed's in simulation.
#![forbid(unsafe_code)]

use crate::executor::state::with_current;

/// Fills `out`.
///
/// # Panics
/// Outside an executor.
pub fn fill_random(out: &mut [u8]) {
    with_current(|core| core.driver.borrow_mut().fill_random(out));
}

/// 64 random bits.
///
/// # Panics
/// Outside an executor.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}
