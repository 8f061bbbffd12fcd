//! Walking the hierarchy by a rule: the classic step loop, breadth first (`src/crush/mapper.c`).

use std::ops::Range;

use super::hash::hash32_2;
use super::{Algorithm, Bucket, ChooseArgs, CrushMap, ITEM_NONE, ITEM_UNDEF, Op, Rule, Step};
use crate::limits;

/// Memory of a walk, to be kept and used again: nothing is allocated once it has its size.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// How many hashes a mapping may take.
    work: u64,
    /// Whether the last mapping was cut short because it took too many.
    is_exhausted: bool,
    /// The result.
    out: Vec<i32>,
    /// What the next step starts from.
    from: Vec<i32>,
    /// What the current step has chosen.
    chosen: Vec<i32>,
    /// The leaf below each item chosen.
    leaves: Vec<i32>,
    /// Of multi-step-retry rules: what each step has chosen, and what it must forget.
    msr: super::msr::Scratch,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::bounded(limits::CRUSH_WORK)
    }
}

impl Scratch {
    /// For mappings of at most so many hashes each: of a map that nobody vouches for.
    pub fn bounded(work: u64) -> Self {
        Self {
            work,
            is_exhausted: false,
            out: Vec::new(),
            from: Vec::new(),
            chosen: Vec::new(),
            leaves: Vec::new(),
            msr: super::msr::Scratch::default(),
        }
    }

    /// Whether the last mapping was cut short. Then it is not what Ceph would have found, who goes on.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }
}

impl CrushMap {
    /// Maps input `x` by a rule to at most `result_max` items: devices, or [`ITEM_NONE`] where a positional rule found
    /// none (and buckets, if the rule ends on those).
    ///
    /// `weights` are the devices' reweights, 16.16 fixed point: 0x10000 is in, 0 is out, and a device beyond the end
    /// is out. A rule that does not exist or makes no sense gives nothing.
    pub fn do_rule<'s>(
        &self,
        rule: u32,
        x: u32,
        result_max: usize,
        weights: &[u32],
        choose_args: Option<&ChooseArgs>,
        scratch: &'s mut Scratch,
    ) -> &'s [i32] {
        scratch.out.clear();
        scratch.is_exhausted = false;
        if let Some(rule) = self.rule(rule).filter(|_| result_max > 0) {
            let mut walk = Walk { map: self, x, weights, choose_args, work_left: scratch.work };
            if rule.kind.is_msr() {
                walk.msr(rule, result_max, &mut scratch.msr, &mut scratch.out);
            } else {
                walk.steps(rule, result_max, scratch);
            }
            scratch.is_exhausted = walk.work_left == 0;
        }
        &scratch.out
    }
}

/// What stays the same during one walk, and how much longer it may take.
pub(super) struct Walk<'a> {
    pub(super) map: &'a CrushMap,
    pub(super) x: u32,
    weights: &'a [u32],
    choose_args: Option<&'a ChooseArgs>,
    pub(super) work_left: u64,
}

/// How hard the steps of a rule try: the map's tunables, until a step sets them.
#[derive(Clone, Copy)]
struct Tries {
    total: u32,
    /// For the search for a leaf; 0 until set.
    leaf: u32,
    local: u32,
    local_fallback: u32,
    vary_r: u32,
    is_stable: bool,
}

/// What a search is for.
#[derive(Clone, Copy)]
struct Search {
    /// How many items; above 0.
    numrep: u32,
    /// Of which type.
    kind: i32,
    /// The outer attempt, where this is the search for a leaf.
    parent_r: u32,
    /// Descents before a place is given up.
    tries: u32,
    /// Likewise for the search for a leaf under each item found.
    leaf_tries: u32,
}

/// A place of a positional step, and how often it was tried.
#[derive(Clone, Copy)]
struct Place {
    rep: usize,
    round: u32,
    /// The one that decides about `choose_args`: where the search begins.
    position: usize,
}

/// How the attempt to fill one place of a positional step ends.
enum Attempt {
    Found(i32),
    /// Try the place again.
    Failed,
    /// The map is malformed there, or the work used up: the place stays empty.
    Dead,
}

impl<'a> Walk<'a> {
    /// The classic step loop (`crush_do_rule_no_retry`).
    fn steps(&mut self, rule: &Rule, result_max: usize, scratch: &mut Scratch) {
        for list in [&mut scratch.from, &mut scratch.chosen, &mut scratch.leaves] {
            list.resize(result_max, ITEM_NONE);
        }
        let mut tries = Tries::new(self.map);
        let mut from_len = 0;
        for step in &rule.steps {
            let set = u32::try_from(step.arg1).ok();
            match step.op {
                Op::TAKE => {
                    let is_device = (0..self.map.max_devices).contains(&step.arg1);
                    if is_device || self.map.bucket(step.arg1).is_some() {
                        scratch.from.iter_mut().take(1).for_each(|first| *first = step.arg1);
                        from_len = 1;
                    }
                }
                Op::CHOOSE_FIRSTN
                | Op::CHOOSE_INDEP
                | Op::CHOOSELEAF_FIRSTN
                | Op::CHOOSELEAF_INDEP
                    if from_len > 0 =>
                {
                    from_len = self.choose_step(*step, &tries, from_len, scratch);
                    std::mem::swap(&mut scratch.from, &mut scratch.chosen);
                }
                Op::EMIT => {
                    let room = result_max - scratch.out.len();
                    scratch.out.extend(scratch.from.iter().take(from_len.min(room)));
                    from_len = 0;
                }
                Op::SET_CHOOSE_TRIES => tries.total = set.filter(|n| *n > 0).unwrap_or(tries.total),
                Op::SET_CHOOSELEAF_TRIES => {
                    tries.leaf = set.filter(|n| *n > 0).unwrap_or(tries.leaf)
                }
                Op::SET_CHOOSE_LOCAL_TRIES => tries.local = set.unwrap_or(tries.local),
                Op::SET_CHOOSE_LOCAL_FALLBACK_TRIES => {
                    tries.local_fallback = set.unwrap_or(tries.local_fallback);
                }
                Op::SET_CHOOSELEAF_VARY_R => tries.vary_r = set.unwrap_or(tries.vary_r),
                Op::SET_CHOOSELEAF_STABLE => {
                    tries.is_stable = set.map_or(tries.is_stable, |value| value != 0);
                }
                _ => {}
            }
        }
    }

    /// Chooses below each of the first `from_len` items of `scratch.from`; returns how many stand in
    /// `scratch.chosen` then.
    fn choose_step(
        &mut self,
        step: Step,
        tries: &Tries,
        from_len: usize,
        scratch: &mut Scratch,
    ) -> usize {
        let Scratch { from, chosen, leaves, .. } = scratch;
        let is_firstn = matches!(step.op, Op::CHOOSE_FIRSTN | Op::CHOOSELEAF_FIRSTN);
        let is_leaf = matches!(step.op, Op::CHOOSELEAF_FIRSTN | Op::CHOOSELEAF_INDEP);
        // 0 and below count from the size of the result.
        let wanted = i64::from(step.arg1);
        let wanted = if wanted > 0 { wanted } else { wanted + chosen.len() as i64 };
        let Some(numrep) = u32::try_from(wanted).ok().filter(|numrep| *numrep > 0) else {
            return 0;
        };
        let leaf_tries = match tries.leaf {
            0 if is_firstn && self.map.tunables.chooseleaf_descend_once == 0 => tries.total,
            0 => 1,
            set => set,
        };
        let search =
            Search { numrep, kind: step.arg2, parent_r: 0, tries: tries.total, leaf_tries };
        let mut len = 0;
        for item in from.iter().take(from_len) {
            let Some(bucket) = self.map.bucket(*item) else { continue };
            let (Some(chosen), Some(leaves)) = (chosen.get_mut(len..), leaves.get_mut(len..))
            else {
                break;
            };
            len += if is_firstn {
                self.firstn(bucket, &search, tries, chosen, 0, is_leaf.then_some(leaves))
            } else {
                let count = chosen.len().min(numrep as usize);
                self.indep(bucket, &search, chosen, 0..count, is_leaf.then_some(leaves));
                count
            };
        }
        if is_leaf {
            chosen.iter_mut().zip(leaves.iter()).take(len).for_each(|(item, leaf)| *item = *leaf);
        }
        len
    }

    /// Fills `out` from `outpos` on with distinct items, leaving out what cannot be found (`crush_choose_firstn`);
    /// returns where it ends. With `leaves`, each item must have a device below it, which goes there.
    fn firstn(
        &mut self,
        bucket: &'a Bucket,
        search: &Search,
        tries: &Tries,
        out: &mut [i32],
        mut outpos: usize,
        mut leaves: Option<&mut [i32]>,
    ) -> usize {
        let mut rep = if tries.is_stable { 0 } else { outpos as u32 };
        while rep < search.numrep && self.work_left > 0 {
            let Some((taken, [place, ..])) = out.split_at_mut_checked(outpos) else { break };
            let leaves = leaves.as_deref_mut();
            if let Some(item) = self.firstn_item(bucket, rep, search, tries, taken, leaves) {
                *place = item;
                outpos += 1;
            }
            rep += 1;
        }
        outpos
    }

    /// One item that is none of `taken`.
    fn firstn_item(
        &mut self,
        bucket: &'a Bucket,
        rep: u32,
        search: &Search,
        tries: &Tries,
        taken: &[i32],
        mut leaves: Option<&mut [i32]>,
    ) -> Option<i32> {
        let mut failures = 0u32;
        loop {
            let mut node = bucket;
            let mut depth = 0;
            let mut local_failures = 0u32;
            loop {
                let r = rep.wrapping_add(search.parent_r).wrapping_add(failures);
                let size = node.items.len() as u32;
                let mut is_collision = false;
                if size == 0 {
                    self.spend(node)?;
                } else {
                    let by_permutation = tries.local_fallback > 0
                        && local_failures >= size >> 1
                        && local_failures > tries.local_fallback;
                    let item = if by_permutation {
                        self.spend(node)?;
                        node.permuted(self.x, r)?
                    } else {
                        self.choose(node, r, taken.len())?
                    };
                    let kind = self.kind_of(item)?;
                    if kind != search.kind {
                        node = self.child(item, &mut depth)?;
                        continue;
                    }
                    is_collision = taken.contains(&item);
                    if !is_collision {
                        let leaves = leaves.as_deref_mut();
                        if self.has_leaf(item, r, search, tries, taken.len(), leaves)
                            && !(kind == 0 && self.is_out(item))
                        {
                            return Some(item);
                        }
                    }
                }
                failures = failures.wrapping_add(1);
                local_failures = local_failures.wrapping_add(1);
                let is_local = is_collision && local_failures <= tries.local;
                let is_exhaustive = tries.local_fallback > 0
                    && local_failures <= size.wrapping_add(tries.local_fallback);
                if !is_local && !is_exhaustive {
                    break;
                }
            }
            if failures >= search.tries {
                return None;
            }
        }
    }

    /// Whether a device was found below `item`, if one is asked for; it is left in `leaves`.
    fn has_leaf(
        &mut self,
        item: i32,
        r: u32,
        search: &Search,
        tries: &Tries,
        outpos: usize,
        leaves: Option<&mut [i32]>,
    ) -> bool {
        let Some(leaves) = leaves else { return true };
        if item >= 0 {
            leaves.iter_mut().skip(outpos).take(1).for_each(|leaf| *leaf = item);
            return true;
        }
        let Some(bucket) = self.map.bucket(item) else { return false };
        let parent_r = match tries.vary_r {
            0 => 0,
            vary_r => (r as i32).wrapping_shr(vary_r - 1) as u32,
        };
        let numrep = if tries.is_stable { 1 } else { outpos as u32 + 1 };
        let search = Search { numrep, kind: 0, parent_r, tries: search.leaf_tries, ..*search };
        self.firstn(bucket, &search, tries, leaves, outpos, None) > outpos
    }

    /// Fills `places` of `out`, each on its own, with distinct items or [`ITEM_NONE`] (`crush_choose_indep`).
    fn indep(
        &mut self,
        bucket: &'a Bucket,
        search: &Search,
        out: &mut [i32],
        places: Range<usize>,
        mut leaves: Option<&mut [i32]>,
    ) {
        fill(out, &places, |_| ITEM_UNDEF);
        if let Some(leaves) = leaves.as_deref_mut() {
            fill(leaves, &places, |_| ITEM_UNDEF);
        }
        let mut left = places.len();
        let mut round = 0;
        while left > 0 && round < search.tries {
            for rep in places.clone() {
                if out.get(rep) != Some(&ITEM_UNDEF) {
                    continue;
                }
                let taken = out.get(places.clone()).unwrap_or_default();
                let place = Place { rep, round, position: places.start };
                match self.indep_item(bucket, search, place, taken, leaves.as_deref_mut()) {
                    Attempt::Found(item) => fill(out, &(rep..rep + 1), |_| item),
                    Attempt::Failed => continue,
                    Attempt::Dead => {
                        fill(out, &(rep..rep + 1), |_| ITEM_NONE);
                        fill(leaves.as_deref_mut().unwrap_or_default(), &(rep..rep + 1), |_| {
                            ITEM_NONE
                        });
                    }
                }
                left -= 1;
            }
            round += 1;
        }
        let defined = |item| if item == ITEM_UNDEF { ITEM_NONE } else { item };
        fill(out, &places, defined);
        if let Some(leaves) = leaves {
            fill(leaves, &places, defined);
        }
    }

    /// One attempt to fill a place.
    fn indep_item(
        &mut self,
        bucket: &'a Bucket,
        search: &Search,
        place: Place,
        taken: &[i32],
        leaves: Option<&mut [i32]>,
    ) -> Attempt {
        let Place { rep, round, position } = place;
        let mut node = bucket;
        let mut depth = 0;
        let (item, kind, r) = loop {
            let size = node.items.len() as u32;
            if size == 0 {
                return if self.spend(node).is_some() { Attempt::Failed } else { Attempt::Dead };
            }
            // In a permutation whose length is a multiple of the stride, the same items would come again.
            let is_uniform = matches!(node.algorithm, Algorithm::Uniform { .. });
            let is_multiple = is_uniform && size.is_multiple_of(search.numrep);
            let stride = search.numrep + u32::from(is_multiple);
            let r =
                (rep as u32).wrapping_add(search.parent_r).wrapping_add(stride.wrapping_mul(round));
            let Some(item) = self.choose(node, r, position) else { return Attempt::Dead };
            let Some(kind) = self.kind_of(item) else { return Attempt::Dead };
            if kind == search.kind {
                break (item, kind, r);
            }
            let Some(child) = self.child(item, &mut depth) else { return Attempt::Dead };
            node = child;
        };
        if taken.contains(&item) {
            return Attempt::Failed;
        }
        if let Some(leaves) = leaves {
            if item >= 0 {
                // It stays there even if the device turns out to be out, as it does in Ceph.
                fill(leaves, &(rep..rep + 1), |_| item);
            } else {
                let Some(bucket) = self.map.bucket(item) else { return Attempt::Dead };
                let leaf = Search { kind: 0, parent_r: r, tries: search.leaf_tries, ..*search };
                self.indep(bucket, &leaf, leaves, rep..rep + 1, None);
                if leaves.get(rep) == Some(&ITEM_NONE) {
                    return Attempt::Failed;
                }
            }
        }
        if kind == 0 && self.is_out(item) { Attempt::Failed } else { Attempt::Found(item) }
    }

    /// One choice from `bucket`, its work taken from what is left.
    pub(super) fn choose(&mut self, bucket: &Bucket, r: u32, position: usize) -> Option<i32> {
        self.spend(bucket)?;
        let arg = self.choose_args.and_then(|args| args.of_bucket(!bucket.id as usize));
        bucket.choose(self.x, r, arg, position)
    }

    /// Takes a choice from `bucket` from the work that is left; `None` if that is not enough.
    pub(super) fn spend(&mut self, bucket: &Bucket) -> Option<()> {
        self.work_left = self.work_left.saturating_sub(bucket.cost());
        (self.work_left > 0).then_some(())
    }

    /// The type of an item that was chosen; `None` if there is no such device or bucket.
    fn kind_of(&self, item: i32) -> Option<i32> {
        self.map.kind_of(item).map(i32::from)
    }

    /// The bucket to descend into; `None` for a device, and where the hierarchy is too deep to be one.
    pub(super) fn child(&self, item: i32, depth: &mut usize) -> Option<&'a Bucket> {
        *depth += 1;
        if *depth > limits::CRUSH_DEPTH { None } else { self.map.bucket(item) }
    }

    /// Whether a device is marked out, or a reweighted one does not take this input.
    pub(super) fn is_out(&self, item: i32) -> bool {
        match usize::try_from(item).ok().and_then(|device| self.weights.get(device)) {
            None | Some(0) => true,
            Some(0x10000..) => false,
            Some(weight) => hash32_2(self.x, item as u32) & 0xffff >= *weight,
        }
    }
}

impl Tries {
    fn new(map: &CrushMap) -> Self {
        let tunables = &map.tunables;
        Self {
            // The tunable counts retries, the step tries.
            total: tunables.choose_total_tries.wrapping_add(1),
            leaf: 0,
            local: tunables.choose_local_tries,
            local_fallback: tunables.choose_local_fallback_tries,
            vary_r: u32::from(tunables.chooseleaf_vary_r),
            is_stable: tunables.chooseleaf_stable != 0,
        }
    }
}

/// Replaces each item at `places`.
fn fill(list: &mut [i32], places: &Range<usize>, with: impl Fn(i32) -> i32) {
    for item in list.get_mut(places.clone()).unwrap_or_default() {
        *item = with(*item);
    }
}
