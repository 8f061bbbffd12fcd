//! Sets of bytes, as ranges.

use std::collections::BTreeMap;

/// Ranges that neither touch nor overlap: ends by beginnings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn of(begin: u64, end: u64) -> Self {
        let mut ranges = Self::default();
        ranges.add(begin, end);
        ranges
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Beginnings and ends, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(begin, end)| (*begin, *end))
    }

    pub(super) fn add(&mut self, mut begin: u64, mut end: u64) {
        if begin >= end {
            return;
        }
        while let Some((other, other_end)) = self.0.range(..=end).next_back()
            && *other_end >= begin
        {
            let other = *other;
            (begin, end) = (begin.min(other), end.max(*other_end));
            self.0.remove(&other);
        }
        self.0.insert(begin, end);
    }

    pub(super) fn remove(&mut self, begin: u64, end: u64) {
        if begin >= end {
            return;
        }
        while let Some((other, other_end)) = self.0.range(..end).next_back()
            && *other_end > begin
        {
            let (other, other_end) = (*other, *other_end);
            self.0.remove(&other);
            if other < begin {
                self.0.insert(other, begin);
            }
            if other_end > end {
                self.0.insert(end, other_end);
            }
        }
    }

    pub(super) fn add_all(&mut self, others: &Self) {
        others.iter().for_each(|(begin, end)| self.add(begin, end));
    }

    pub(super) fn remove_all(&mut self, others: &Self) {
        others.iter().for_each(|(begin, end)| self.remove(begin, end));
    }

    /// What is within a range.
    pub(super) fn within(&self, begin: u64, end: u64) -> Self {
        // The last one that begins before may reach into it.
        let first = self.0.range(..=begin).next_back().map_or(begin, |(begin, _)| *begin);
        let mut found = Self::default();
        if first < end {
            for (other, other_end) in self.0.range(first..end) {
                found.add(begin.max(*other), end.min(*other_end));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges.iter().collect()
    }

    #[test]
    fn ranges_are_what_a_set_of_bytes_is() {
        // Splitmix64, against a bitmap.
        let mut seed = 1u64;
        let mut next = |limit: u64| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (z ^ (z >> 31)) % limit
        };
        let (mut ranges, mut bits) = (Ranges::default(), [false; 64]);
        for _ in 0..2000 {
            let (a, b) = (next(65), next(65));
            let (begin, end) = (a.min(b), a.max(b));
            let add = next(2) == 0;
            match add {
                true => ranges.add(begin, end),
                false => ranges.remove(begin, end),
            }
            bits[begin as usize..end as usize].fill(add);
            let inside = |at: u64| ranges.iter().any(|(begin, end)| (begin..end).contains(&at));
            assert!((0..64).all(|at| inside(at) == bits[at as usize]));
            assert!(all(&ranges).windows(2).all(|pair| pair[0].1 < pair[1].0), "they touch");
            let within = ranges.within(begin, end);
            let there = |at: u64| within.iter().any(|(begin, end)| (begin..end).contains(&at));
            let expected = |at: u64| bits[at as usize] && (begin..end).contains(&at);
            assert!((0..64).all(|at| there(at) == expected(at)));
        }
    }
}
