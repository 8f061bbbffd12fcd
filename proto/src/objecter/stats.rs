//! What is counted: plain numbers, as they are touched for every operation.

use std::time::Duration;

use crate::msg::osd_op::flag;

/// How many times something took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How often it took less than 2^i µs, and not less than half of that. The last one has all that took longer.
    pub buckets: [u64; Self::BUCKETS],
    /// How long it took altogether, in microseconds.
    pub sum: u64,
}

impl Histogram {
    /// Up to 2^25 µs, half a minute, and one more.
    pub const BUCKETS: usize = 27;

    #[inline]
    fn add(&mut self, took: Duration) {
        let micros = took.as_micros() as u64;
        let bits = (u64::BITS - micros.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get_mut(bits.min(Self::BUCKETS - 1)) {
            *bucket += 1;
        }
        self.sum += micros;
    }

    /// How often altogether.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Below what time (µs) this share of all was; 0 if there was nothing.
    pub fn below(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= wanted && seen > 0 {
                return 1 << i;
            }
        }
        0
    }
}

/// Operations of one kind that were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Those that were not refused: an object that is not there is an answer, too.
    pub done: u64,
    /// Those with any other error.
    pub failed: u64,
    /// What they carried or asked for, in bytes.
    pub bytes: u64,
    /// From their submission to their answer.
    pub latency: Histogram,
}

/// Everything that is counted, since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations that change nothing.
    pub reads: OpStats,
    /// Operations that may.
    pub writes: OpStats,
    /// Operations sent again.
    pub resent: u64,
    /// Operations that an OSD sent elsewhere.
    pub redirected: u64,
    /// Operations that ended without an answer.
    pub unanswered: u64,
    /// Backoffs that OSDs asked for.
    pub backoffs: u64,
    /// Sessions established.
    pub sessions_opened: u64,
    /// Sessions that were lost or could not be established.
    pub sessions_lost: u64,
    /// Maps that were looked at.
    pub maps: u64,
}

impl Stats {
    /// Counts an answer.
    #[inline]
    pub(super) fn count(&mut self, flags: u32, bytes: u64, took: Duration, result: i32) {
        const ENOENT: i32 = -2;
        let stats = match flags & flag::WRITE {
            0 => &mut self.reads,
            _ => &mut self.writes,
        };
        match result {
            0.. | ENOENT => stats.done += 1,
            _ => stats.failed += 1,
        }
        stats.bytes += bytes;
        stats.latency.add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_by_powers_of_two() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.below(0.5)), (0, 0));
        for micros in [0, 1, 2, 3, 4, 1000, 100_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.buckets[..4], [1, 1, 2, 1]);
        assert_eq!((histogram.buckets[10], histogram.buckets[26]), (1, 1));
        assert_eq!((histogram.count(), histogram.sum), (7, 100_001_010));
        assert_eq!(
            (histogram.below(0.5), histogram.below(0.8), histogram.below(1.0)),
            (4, 1024, 1 << 26)
        );
    }
}
