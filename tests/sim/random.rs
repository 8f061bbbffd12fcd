//! Randomness from a seed (splitmix64).

use std::sync::{Arc, Mutex, PoisonError};

use proto::types::Entropy;

/// A stream of numbers that a seed and a name determine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Streams of different names have nothing to do with each other: drawing more from one leaves others alone.
    pub(crate) fn new(seed: u64, name: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name.rotate_left(32));
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `low..high`.
    pub(crate) fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() {
            return None;
        }
        of.get(self.within(0..of.len() as u64) as usize)
    }
}

/// The same as keys and nonces are made of. Clones share one stream.
#[derive(Clone, Debug)]
pub(crate) struct SharedRandom(Arc<Mutex<Random>>);

impl SharedRandom {
    pub(crate) fn new(seed: u64, name: u64) -> Self {
        Self(Arc::new(Mutex::new(Random::new(seed, name))))
    }
}

impl Entropy for SharedRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
