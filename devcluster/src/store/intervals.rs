//! Sets of byte ranges: what a clone of an object still shares with the next newer one.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use proto::denc::{Decode, Encode, Put, Reader, Result};

/// A set of ranges, none of which touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals {
    /// Start to end.
    map: BTreeMap<u64, u64>,
}

impl Intervals {
    /// One range.
    pub fn of(offset: u64, len: u64) -> Self {
        let mut set = Self::default();
        set.insert(offset, len);
        set
    }

    /// Adds a range.
    pub fn insert(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (mut start, mut end) = (offset, offset.saturating_add(len));
        if let Some((&before, &before_end)) = self.map.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&inner, &inner_end)) = self.map.range(start..=end).next() {
            end = end.max(inner_end);
            self.map.remove(&inner);
        }
        self.map.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        if len == 0 {
            return;
        }
        if let Some((_, before_end)) = self.map.range_mut(..offset).next_back()
            && *before_end > offset
        {
            let tail = *before_end;
            *before_end = offset;
            if tail > end {
                self.map.insert(end, tail);
            }
        }
        while let Some((&inner, &inner_end)) = self.map.range(offset..end).next() {
            self.map.remove(&inner);
            if inner_end > end {
                self.map.insert(end, inner_end);
            }
        }
    }

    /// Takes out all of `other`'s ranges.
    pub fn subtract(&mut self, other: &Self) {
        for (offset, len) in other.iter() {
            self.remove(offset, len);
        }
    }

    /// Keeps what is in `other` as well.
    pub fn intersect(&mut self, other: &Self) {
        let mut kept = Self::default();
        for (&start, &end) in &self.map {
            let first = other.map.range(..=start).next_back().map_or(start, |(&first, _)| first);
            for (&other_start, &other_end) in other.map.range(first..end) {
                let from = start.max(other_start);
                let to = end.min(other_end);
                kept.insert(from, to.saturating_sub(from));
            }
        }
        *self = kept;
    }

    /// The ranges, as offsets and lengths.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.map.iter().map(|(&start, &end)| (start, end - start))
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl Encode for Intervals {
    fn encode(&self, w: &mut BytesMut) {
        w.put_count(self.map.len());
        for (offset, len) in self.iter() {
            w.put_u64_le(offset);
            w.put_u64_le(len);
        }
    }
}

impl Decode for Intervals {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let mut set = Self::default();
        for _ in 0..r.count(16)? {
            set.insert(r.u64()?, r.u64()?);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(set: &Intervals) -> Vec<bool> {
        let mut bits = vec![false; 128];
        for (offset, len) in set.iter() {
            bits[offset as usize..][..len as usize].fill(true);
        }
        bits
    }

    proptest! {
        #[test]
        fn behaves_like_a_bit_array(
            steps in proptest::collection::vec((any::<bool>(), 0..100u64, 0..28u64), 0..30),
            others in proptest::collection::vec((0..100u64, 0..28u64), 0..8),
        ) {
            let mut set = Intervals::default();
            let mut bits = vec![false; 128];
            for (add, offset, len) in steps {
                bits[offset as usize..][..len as usize].fill(add);
                if add { set.insert(offset, len) } else { set.remove(offset, len) }
            }
            prop_assert_eq!(model(&set), bits.clone());
            let mut other = Intervals::default();
            others.into_iter().for_each(|(offset, len)| other.insert(offset, len));
            let mut both = set.clone();
            both.intersect(&other);
            let expected: Vec<bool> =
                bits.iter().zip(model(&other)).map(|(a, b)| *a && b).collect();
            prop_assert_eq!(model(&both), expected);
            set.subtract(&other);
            let expected: Vec<bool> =
                bits.iter().zip(model(&other)).map(|(a, b)| *a && !b).collect();
            prop_assert_eq!(model(&set), expected);
            prop_assert!(set.iter().zip(set.iter().skip(1)).all(|(a, b)| a.0 + a.1 < b.0));
        }
    }
}
