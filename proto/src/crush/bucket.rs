//! How each kind of bucket chooses one of its items.

use super::hash::{hash32_3, hash32_4};
use super::ln::ln;
use super::{Algorithm, Bucket, ChooseArg};

/// How many items are hashed at once.
const LANES: usize = 4;

impl Bucket {
    /// The item for input `x` at attempt `r`; `None` from an empty or malformed bucket. `arg` and `position` (in the
    /// result) may replace the weights and ids of a straw2 bucket.
    #[inline]
    pub(super) fn choose(
        &self,
        x: u32,
        r: u32,
        arg: Option<&ChooseArg>,
        position: usize,
    ) -> Option<i32> {
        let index = match &self.algorithm {
            Algorithm::Straw2 { item_weights } => self.straw2(x, r, item_weights, arg, position),
            Algorithm::Uniform { .. } => return self.permuted(x, r),
            Algorithm::List { item_weights, sum_weights } => {
                self.list(x, r, item_weights, sum_weights)
            }
            Algorithm::Tree { node_weights } => {
                // Without any weight it ends at the last leaf, which may be behind the items. Ceph looks there all
                // the same, and its allocator has zeros there.
                let index = self.tree(x, r, node_weights)?;
                return Some(self.items.get(index).copied().unwrap_or(0));
            }
            Algorithm::Straw { straws, .. } => self.straw(x, r, straws),
        };
        self.items.get(index).copied()
    }

    /// How many hashes one choice takes at most.
    #[inline]
    pub(super) fn cost(&self) -> u64 {
        self.items.len() as u64 + 1
    }

    /// The item at place `r` of a random permutation (`bucket_perm_choose`).
    ///
    /// Ceph shuffles a copy of the items, swapping place `p` with a random later one for each `p` in turn. Which item
    /// ends at one place can be traced back through those swaps without a copy.
    pub(super) fn permuted(&self, x: u32, r: u32) -> Option<i32> {
        let size = self.items.len() as u32;
        let place = r.checked_rem(size)?;
        let partner = |p: u32| p + self.hash3(x, self.id, p) % (size - p);
        let mut from = partner(place);
        for p in (0..place).rev() {
            if partner(p) == from {
                from = p;
            }
        }
        self.items.get(from as usize).copied()
    }

    fn list(&self, x: u32, r: u32, item_weights: &[u32], sum_weights: &[u32]) -> usize {
        let weights = item_weights.iter().zip(sum_weights);
        let found = self.items.iter().zip(weights).rposition(|(item, (weight, sum))| {
            let draw = u64::from(self.hash4(x, *item as u32, r) & 0xffff);
            (draw * u64::from(*sum)) >> 16 < u64::from(*weight)
        });
        found.unwrap_or(0)
    }

    fn tree(&self, x: u32, r: u32, node_weights: &[u32]) -> Option<usize> {
        let mut node = node_weights.len() >> 1;
        if node == 0 {
            return None;
        }
        while node & 1 == 0 {
            let weight = node_weights.get(node)?;
            let point = (u64::from(self.hash4(x, node as u32, r)) * u64::from(*weight)) >> 32;
            let half = (1 << node.trailing_zeros()) >> 1;
            let left = node - half;
            node = if point < u64::from(*node_weights.get(left)?) { left } else { node + half };
        }
        Some(node >> 1)
    }

    fn straw(&self, x: u32, r: u32, straws: &[u32]) -> usize {
        let mut best = (0, 0);
        for (index, (item, straw)) in self.items.iter().zip(straws).enumerate() {
            let draw = u64::from(self.hash3(x, *item, r) & 0xffff) * u64::from(*straw);
            if draw > best.1 {
                best = (index, draw);
            }
        }
        best.0
    }

    fn straw2(
        &self,
        x: u32,
        r: u32,
        item_weights: &[u32],
        arg: Option<&ChooseArg>,
        position: usize,
    ) -> usize {
        let (mut weights, mut ids) = (item_weights, self.items.as_slice());
        if let Some(arg) = arg {
            if let Some(set) = arg.weight_sets.get(position).or_else(|| arg.weight_sets.last()) {
                weights = set;
            }
            if !arg.ids.is_empty() {
                ids = &arg.ids;
            }
        }
        let (mut best, mut best_draw) = (0, f64::NEG_INFINITY);
        let chunks = ids.chunks(LANES).zip(weights.chunks(LANES));
        for (first, (ids, weights)) in (0..).step_by(LANES).zip(chunks) {
            let hashes = self.hash3_each(x, ids, r);
            let draws = hashes.iter().zip(weights).take(ids.len());
            for (index, (hash, weight)) in (first..).zip(draws) {
                if *weight == 0 {
                    continue;
                }
                // Ceph passes the weight through an int and divides whole numbers, towards zero. Here |ln| <= 2^48, so
                // the quotient is rounded by less than 1 / weight, the least by which it can miss a whole number:
                // cutting off its fraction gives what Ceph has, and that is needed only where the draw looks better.
                let draw = ln(*hash) as f64 / f64::from(*weight as i32);
                if draw > best_draw && draw.trunc() > best_draw.trunc() {
                    (best, best_draw) = (index, draw);
                }
            }
        }
        best
    }

    /// The hashes of up to [`LANES`] items at once, which compilers turn into vector instructions.
    #[inline(always)]
    fn hash3_each(&self, x: u32, items: &[i32], r: u32) -> [u32; LANES] {
        let mut lanes = [0i32; LANES];
        for (lane, item) in lanes.iter_mut().zip(items) {
            *lane = *item;
        }
        if self.hash != 0 {
            return [0; LANES];
        }
        lanes.map(|item| hash32_3(x, item as u32, r))
    }

    #[inline(always)]
    fn hash3(&self, x: u32, item: i32, r: u32) -> u32 {
        if self.hash == 0 { hash32_3(x, item as u32, r) } else { 0 }
    }

    #[inline]
    fn hash4(&self, x: u32, item: u32, r: u32) -> u32 {
        if self.hash == 0 { hash32_4(x, item, r, self.id as u32) } else { 0 }
    }
}
