//! The one place where clients take randomness: the operating system.

use rustix::rand::{GetRandomFlags, getrandom};

/// Eight random bytes. Clients name their session with them, so two clients that draw the same number would take
/// each other's writes for retries: the odds are 1 in 2^64 for each pair.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    loop {
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(8) => return u64::from_le_bytes(bytes),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("getrandom never fails for 8 bytes on Linux 3.17 and later: {error}"),
        }
    }
}
