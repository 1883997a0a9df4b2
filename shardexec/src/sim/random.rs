//! The seed's numbers: xoshiro256** (Blackman and Vigna, 2018), its state filled by SplitMix64 (Steele, Lea and Flood, 2014).
//!
//! Every concern draws from a stream of its own, derived from the seed: one more draw in the disk model does not shift what the
//! network does, so that a failing seed stays recognisable while the model grows.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What a stream of numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Concern {
    /// Which core runs next, for how many polls, and which task.
    Schedule = 1,
    /// What polls cost.
    Cost,
    /// Drift, skew and origins of clocks.
    Clock,
    /// Latencies and faults of one disk, and what a crash leaves of it.
    Disk,
    /// Delays, segments, ports and faults of the network.
    Network,
    /// What strikes a process: loss of power, kill, pause, jumps of its clock.
    Process,
    /// What programs draw themselves.
    Program,
}

/// One step of SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// xoshiro256**.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator whose state SplitMix64 makes of `seed`.
    pub fn new(seed: u64) -> Rng {
        let mut state = seed;
        Rng(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// The stream of `seed` for one concern of one owner (a node, a core's start).
    pub(super) fn stream(seed: u64, concern: Concern, owner: u64) -> Rng {
        let mut state = seed ^ (concern as u64).rotate_right(8);
        let mixed = split_mix(&mut state) ^ owner;
        Rng::new(mixed)
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, by multiplication: the bias is below `bound` / 2^64.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An index below `len`.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `range`, both ends included.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = (*range.start(), *range.end());
        assert!(low <= high, "an empty range");
        if high - low == u64::MAX { self.next_u64() } else { low + self.below(high - low + 1) }
    }

    /// A duration in `range`, both ends included.
    pub fn duration(&mut self, range: RangeInclusive<Duration>) -> Duration {
        let ns = |duration: &Duration| duration.as_nanos() as u64;
        Duration::from_nanos(self.within(ns(range.start())..=ns(range.end())))
    }

    /// True in `ppm` of a million cases. Draws nothing when that is never.
    pub fn chance(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// True in half of all cases.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// Random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Puts `items` in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithms_are_the_published_ones() {
        // SplitMix64 from 1234567: the numbers that its reference implementation prints.
        let mut state = 1_234_567;
        let numbers: [u64; 3] = std::array::from_fn(|_| split_mix(&mut state));
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        // xoshiro256** from the state 1, 2, 3, 4, likewise.
        let mut rng = Rng([1, 2, 3, 4]);
        let numbers: [u64; 4] = std::array::from_fn(|_| rng.next_u64());
        assert_eq!(numbers, [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |concern, owner| Rng::stream(7, concern, owner).next_u64();
        assert_eq!(first(Concern::Disk, 1), first(Concern::Disk, 1));
        assert_ne!(first(Concern::Disk, 1), first(Concern::Disk, 2));
        assert_ne!(first(Concern::Disk, 1), first(Concern::Network, 1));
        assert_ne!(Rng::stream(8, Concern::Disk, 1).next_u64(), first(Concern::Disk, 1));
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_all_of_it() {
        let mut rng = Rng::new(3);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[rng.within(10..=14) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|&count| count > 120), "{seen:?}");
        assert!(!rng.chance(0) && rng.chance(1_000_000));
        let hits = (0..10_000).filter(|_| rng.chance(100_000)).count();
        assert!((800..1200).contains(&hits), "{hits} of 10,000 at a tenth");
        let mut items: Vec<u32> = (0..50).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
