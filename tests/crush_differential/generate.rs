//! Draws random CRUSH maps that Ceph's own tools accept, with everything in them that a mapping can depend on.

use std::collections::BTreeMap;

use proto::crush::{
    Algorithm, Bucket, ChooseArg, ChooseArgs, CrushMap, MsrTunables, Op, Rule, RuleKind, Step,
    Tunables,
};

/// A small generator of random numbers (SplitMix64): the same maps from the same seed, everywhere.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn range(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.range(0, len as i64 - 1) as usize
    }

    /// Whether something happens that does so `percent` of the times.
    pub(crate) fn chance(&mut self, percent: i64) -> bool {
        self.range(1, 100) <= percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.index(i + 1));
        }
    }
}

/// A map and what it is asked with.
pub(crate) struct Case {
    pub(crate) map: CrushMap,
    /// Reweights, 16.16 fixed point.
    pub(crate) weights: BTreeMap<i32, u32>,
    pub(crate) pool: Option<i32>,
}

/// What a map is to be like.
struct Style {
    /// Bucket types from the one above devices to the root's.
    kinds: Vec<u16>,
    /// One algorithm for all buckets, or else any.
    algorithm: Option<u8>,
    weights: Weights,
    /// Every path from a root to a device passes every type, and no bucket is empty: without that, Ceph aborts in
    /// multi-step-retry rules.
    is_regular: bool,
    fan_out: i64,
}

#[derive(Clone, Copy)]
enum Weights {
    Equal,
    Mixed,
    Wild,
}

struct Builder<'a> {
    rng: &'a mut Rng,
    style: Style,
    map: CrushMap,
    free_ids: Vec<i32>,
    free_devices: Vec<i32>,
    devices: Vec<i32>,
}

/// Draws a map; with `msr`, one for multi-step-retry rules, which Ceph knows since 19.
pub(crate) fn case(rng: &mut Rng, msr: bool) -> Case {
    let mut kinds: Vec<u16> = vec![];
    for _ in 0..rng.range(1, 5) {
        kinds.push(kinds.last().unwrap_or(&0) + rng.pick(&[1, 1, 1, 2, 7]));
    }
    let levels = kinds.len() as i64;
    let style = Style {
        fan_out: if levels == 1 { rng.range(3, 60) } else { rng.range(2, 14 / levels + 1) },
        kinds,
        algorithm: if rng.chance(60) { Some(rng.range(1, 5) as u8) } else { None },
        weights: rng.pick(&[Weights::Equal, Weights::Mixed, Weights::Mixed, Weights::Wild]),
        is_regular: msr || rng.chance(50),
    };
    let mut free_ids: Vec<i32> = (1..=1000).map(|id| -id).collect();
    let mut free_devices: Vec<i32> = (0..500).collect();
    if rng.chance(50) {
        rng.shuffle(&mut free_devices);
        rng.shuffle(&mut free_ids);
    }
    free_devices.reverse();
    free_ids.reverse();
    let map = CrushMap::default();
    let mut builder = Builder { rng, style, map, free_ids, free_devices, devices: vec![] };
    let root_level = builder.style.kinds.len();
    let mut roots = vec![];
    for _ in 0..builder.rng.pick(&[1, 1, 2]) {
        roots.push(builder.tree(root_level));
    }
    builder.classes(&mut roots);
    builder.names();
    builder.map.tunables = builder.tunables(msr);
    builder.rules(&roots, msr);
    builder.choose_args();
    builder.finish(msr)
}

impl Builder<'_> {
    /// A random bucket `level` levels above the devices, with what is below it; returns its number.
    fn tree(&mut self, level: usize) -> i32 {
        let mut size = self.rng.range(1.max(self.style.fan_out / 2), self.style.fan_out);
        if !self.style.is_regular && self.rng.chance(4) {
            size = 0;
        }
        let mut items = vec![];
        for _ in 0..size {
            // Sometimes a device, or a bucket two types below, stands where a bucket of the next type is expected.
            let below = match level - 1 {
                0 => 0,
                next if !self.style.is_regular && self.rng.chance(5) => self.rng.index(next + 1),
                next => next,
            };
            let shared = below == 0 && !self.devices.is_empty() && self.rng.chance(2);
            let item = match below {
                0 if shared => self.rng.pick(&self.devices),
                0 => match self.free_devices.pop() {
                    Some(device) => {
                        self.devices.push(device);
                        device
                    }
                    None => self.rng.pick(&self.devices),
                },
                _ => self.tree(below),
            };
            if !items.contains(&item) {
                items.push(item);
            }
        }
        let weights = self.weights(&items);
        self.bucket(self.style.kinds[level - 1], items, &weights)
    }

    fn weights(&mut self, items: &[i32]) -> Vec<u32> {
        let natural = self.rng.chance(80);
        let weight = |this: &mut Self, item: &i32| match this.style.weights {
            _ if *item < 0 && natural => this.map.bucket(*item).unwrap().weight,
            Weights::Equal => 0x10000,
            Weights::Mixed if this.rng.chance(5) => 0,
            Weights::Mixed => this.rng.range(0x1000, 0x14_0000) as u32,
            Weights::Wild => match this.rng.range(0, 7) {
                0 => 0,
                1 => this.rng.range(1, 20) as u32,
                2 => this.rng.range(0x100_0000, 0x7fff_ffff) as u32,
                // Ceph takes these for negative numbers.
                3 if this.rng.chance(20) => this.rng.range(0x8000_0000, 0xffff_ffff) as u32,
                _ => this.rng.range(1, 0x10_0000) as u32,
            },
        };
        items.iter().map(|item| weight(self, item)).collect()
    }

    fn bucket(&mut self, kind: u16, items: Vec<i32>, weights: &[u32]) -> i32 {
        let id = self.free_ids.pop().unwrap();
        let mut algorithm =
            self.style.algorithm.unwrap_or_else(|| self.rng.pick(&[1, 2, 3, 4, 5, 5]));
        if algorithm == 3 && (items.is_empty() || items.len() > 60) {
            algorithm = 5;
        }
        // Where a tree has no weight, or more than a number can say, Ceph reads behind its items: what is there is not
        // always zeros.
        let sum = weights.iter().try_fold(0u32, |sum, weight| sum.checked_add(*weight));
        let is_even = items.len().is_power_of_two();
        if algorithm == 3 && !is_even && (sum.is_none() || sum == Some(0) && items.len() > 7) {
            algorithm = 5;
        }
        let weights = weights.to_vec();
        let sums = weights.iter().scan(0u32, |sum, weight| {
            *sum = sum.wrapping_add(*weight);
            Some(*sum)
        });
        let sum_weights: Vec<u32> = sums.collect();
        let weight = sum_weights.last().copied().unwrap_or(0);
        let algorithm = match algorithm {
            1 => Algorithm::Uniform { item_weight: weights.first().copied().unwrap_or(0) },
            2 => Algorithm::List { item_weights: weights, sum_weights },
            3 => Algorithm::Tree { node_weights: tree_nodes(&weights) },
            4 => {
                let straws = weights.iter().map(|weight| {
                    if *weight == 0 { 0 } else { self.rng.range(0x8000, 0x4_0000) as u32 }
                });
                Algorithm::Straw { straws: straws.collect(), item_weights: weights }
            }
            _ => Algorithm::Straw2 { item_weights: weights },
        };
        // No hash but 0 exists; with any other, Ceph hashes everything to 0.
        let hash = u8::from(self.rng.chance(1));
        let at = (-1 - id) as usize;
        if self.map.buckets.len() <= at {
            self.map.buckets.resize(at + 1, None);
        }
        self.map.buckets[at] = Some(Bucket { id, kind, hash, weight, items, algorithm });
        id
    }

    /// Gives devices classes, and each root a shadow tree per class that holds enough of them.
    fn classes(&mut self, roots: &mut Vec<i32>) {
        if !self.rng.chance(35) {
            return;
        }
        let names = ["hdd", "ssd", "nvme"];
        for (class, name) in names.iter().enumerate() {
            self.map.class_names.insert(class as i32, (*name).into());
        }
        for device in self.devices.clone() {
            let class = self.rng.range(0, 3) as i32;
            if class < 3 {
                self.map.item_classes.insert(device, class);
            }
        }
        for root in roots.clone() {
            for class in 0..names.len() as i32 {
                roots.extend(self.shadow(root, class));
            }
        }
    }

    /// The part of a tree that holds devices of a class only.
    fn shadow(&mut self, id: i32, class: i32) -> Option<i32> {
        let bucket = self.map.bucket(id)?.clone();
        let (mut items, mut weights) = (vec![], vec![]);
        for (position, item) in bucket.items.iter().enumerate() {
            if *item < 0 {
                if let Some(child) = self.shadow(*item, class) {
                    items.push(child);
                    weights.push(self.map.bucket(child)?.weight);
                }
            } else if self.map.item_classes.get(item) == Some(&class) {
                items.push(*item);
                weights.push(bucket.item_weight(position));
            }
        }
        // Ceph keeps empty shadows, too, but aborts when a multi-step-retry rule meets one.
        if items.is_empty() && self.style.is_regular || self.free_ids.is_empty() {
            return None;
        }
        let shadow = self.bucket(bucket.kind, items, &weights);
        self.map.class_buckets.entry(id).or_default().insert(class, shadow);
        self.map.item_classes.insert(shadow, class);
        Some(shadow)
    }

    fn names(&mut self) {
        self.map.type_names.insert(0, "osd".into());
        for kind in &self.style.kinds {
            self.map.type_names.insert(i32::from(*kind), format!("type{kind}"));
        }
        for bucket in self.map.buckets.iter().flatten() {
            self.map.item_names.insert(bucket.id, format!("bucket{}", -bucket.id));
        }
        for device in &self.devices {
            self.map.item_names.insert(*device, format!("osd.{device}"));
        }
        for (id, shadows) in &self.map.class_buckets {
            for (class, shadow) in shadows {
                let name = format!("bucket{}~{}", -id, self.map.class_names[class]);
                self.map.item_names.insert(*shadow, name);
            }
        }
    }

    fn tunables(&mut self, msr: bool) -> Tunables {
        let rng = &mut *self.rng;
        let mut tunables = match rng.range(0, 3) {
            0 => Tunables::LEGACY,
            1 | 2 => Tunables::JEWEL,
            _ => Tunables {
                choose_local_tries: rng.pick(&[0, 0, 1, 2, 5]),
                choose_local_fallback_tries: rng.pick(&[0, 0, 1, 3, 5]),
                choose_total_tries: rng.range(0, 60) as u32,
                chooseleaf_descend_once: rng.range(0, 1) as u32,
                chooseleaf_vary_r: rng.range(0, 5) as u8,
                chooseleaf_stable: rng.range(0, 1) as u8,
                straw_calc_version: rng.range(0, 1) as u8,
                allowed_bucket_algs: 0x3e,
                msr: None,
            },
        };
        if msr {
            let (descents, collision_tries) = (rng.range(1, 120) as u32, rng.range(1, 120) as u32);
            tunables.msr = Some(MsrTunables { descents, collision_tries });
        }
        tunables
    }

    fn rules(&mut self, roots: &[i32], msr: bool) {
        for number in 0..self.rng.range(1, 6) {
            if number > 0 && self.rng.chance(10) {
                self.map.rules.push(None);
                continue;
            }
            let is_msr = msr && self.rng.chance(70);
            let kinds: &[u8] = if is_msr { &[4, 5] } else { &[1, 3] };
            let kind = RuleKind(self.rng.pick(kinds));
            let mut steps = vec![];
            self.settings(&mut steps, is_msr);
            for _ in 0..self.rng.pick(&[1, 1, 1, 2, 3]) {
                self.block(&mut steps, roots, is_msr);
            }
            self.map.rule_names.insert(number as i32, format!("rule{number}"));
            self.map.rules.push(Some(Rule { kind, min_size: 1, max_size: 100, steps }));
        }
    }

    fn settings(&mut self, steps: &mut Vec<Step>, is_msr: bool) {
        let settings: &[(Op, i64)] = if is_msr {
            &[(Op::SET_MSR_DESCENTS, 150), (Op::SET_MSR_COLLISION_TRIES, 150)]
        } else {
            &[
                (Op::SET_CHOOSE_TRIES, 120),
                (Op::SET_CHOOSELEAF_TRIES, 10),
                (Op::SET_CHOOSE_LOCAL_TRIES, 4),
                (Op::SET_CHOOSE_LOCAL_FALLBACK_TRIES, 6),
                (Op::SET_CHOOSELEAF_VARY_R, 5),
                (Op::SET_CHOOSELEAF_STABLE, 1),
            ]
        };
        for (op, highest) in settings {
            if self.rng.chance(20) {
                let lowest = if is_msr { 1 } else { -1 };
                let arg1 = self.rng.range(lowest, *highest) as i32;
                steps.push(Step { op: *op, arg1, arg2: 0 });
            }
        }
    }

    /// Steps from a `take` to an `emit`, which end on devices: crushtool corrupts its memory counting buckets.
    fn block(&mut self, steps: &mut Vec<Step>, roots: &[i32], is_msr: bool) {
        let step = |op, arg1: i64, arg2| Step { op, arg1: arg1 as i32, arg2 };
        let mut from = self.rng.pick(roots);
        if self.rng.chance(15) {
            let buckets: Vec<i32> = self.map.buckets.iter().flatten().map(|b| b.id).collect();
            from = self.rng.pick(&buckets);
        }
        if !is_msr && !self.devices.is_empty() && self.rng.chance(4) {
            let device = self.rng.pick(&self.devices);
            steps.extend([step(Op::TAKE, i64::from(device), 0), step(Op::EMIT, 0, 0)]);
            return;
        }
        steps.push(step(Op::TAKE, i64::from(from), 0));
        let top = self.map.bucket(from).unwrap().kind;
        let mut level = self.style.kinds.iter().position(|kind| *kind == top).unwrap();
        let mut ends_on_leaves = false;
        while level > 0 && self.rng.chance(55) && !ends_on_leaves {
            level = self.rng.index(level);
            let kind = i32::from(self.style.kinds[level]);
            if is_msr {
                steps.push(step(Op::CHOOSE_MSR, self.rng.pick(&[0, 1, 2, 2, 3, 3, 4]), kind));
                continue;
            }
            ends_on_leaves = self.rng.chance(40);
            let firstn = self.rng.chance(50);
            let op = match (ends_on_leaves, firstn) {
                (false, false) => Op::CHOOSE_INDEP,
                (false, true) => Op::CHOOSE_FIRSTN,
                (true, false) => Op::CHOOSELEAF_INDEP,
                (true, true) => Op::CHOOSELEAF_FIRSTN,
            };
            steps.push(step(op, self.rng.pick(&[0, 0, 2, 3, 3, 4, 1, -1, -2]), kind));
        }
        if !ends_on_leaves {
            let ops =
                [Op::CHOOSE_FIRSTN, Op::CHOOSE_INDEP, Op::CHOOSELEAF_FIRSTN, Op::CHOOSELEAF_INDEP];
            let op = if is_msr { Op::CHOOSE_MSR } else { self.rng.pick(&ops) };
            let counts: &[i64] = if is_msr { &[0, 1, 2, 2, 3] } else { &[0, 0, 0, 1, 2, 3, -1] };
            steps.push(step(op, self.rng.pick(counts), 0));
        }
        steps.push(step(Op::EMIT, 0, 0));
    }

    fn choose_args(&mut self) {
        if !self.rng.chance(45) {
            return;
        }
        for key in [-1, 0, 3] {
            if !self.rng.chance(60) {
                continue;
            }
            let positions = self.rng.range(0, 4) as usize;
            let mut set = ChooseArgs::default();
            for index in 0..self.map.buckets.len() {
                let Some(bucket) = self.map.buckets[index].clone() else { continue };
                if !matches!(bucket.algorithm, Algorithm::Straw2 { .. }) || self.rng.chance(30) {
                    continue;
                }
                let mut arg = ChooseArg::default();
                for _ in 0..positions {
                    arg.weight_sets.push(self.weights(&bucket.items));
                }
                if self.rng.chance(30) {
                    let id = |item: &i32| if self.rng.chance(50) { -1 - *item } else { *item };
                    arg.ids = bucket.items.iter().map(id).collect();
                }
                if arg != ChooseArg::default() {
                    set.set(index as u32, arg);
                }
            }
            self.map.choose_args.insert(key, set);
        }
    }

    fn finish(mut self, msr: bool) -> Case {
        self.map.max_devices = self.devices.iter().max().map_or(0, |highest| highest + 1);
        let mut weights = BTreeMap::new();
        if self.rng.chance(75) {
            let share = self.rng.pick(&[5, 20, 60, 90]);
            for device in self.devices.clone() {
                if self.rng.chance(share) {
                    let any = self.rng.range(0, 0x10000) as u32;
                    weights.insert(device, self.rng.pick(&[0, 0, 0x8000, any, any]));
                }
            }
        }
        if msr && self.map.tunables.msr.is_none() {
            self.map.tunables.msr = Some(MsrTunables::default());
        }
        let pool = self.rng.chance(30).then(|| self.rng.range(0, 40) as i32);
        Case { map: self.map, weights, pool }
    }
}

/// The nodes of a tree bucket: items at odd places, each inner node the sum of what is below.
fn tree_nodes(weights: &[u32]) -> Vec<u32> {
    let mut nodes = vec![0u32; (2 * weights.len()).next_power_of_two()];
    for (item, weight) in weights.iter().enumerate() {
        let mut node = 2 * item + 1;
        while node < nodes.len() {
            nodes[node] = nodes[node].wrapping_add(*weight);
            let half = 1 << node.trailing_zeros();
            if half >= nodes.len() / 2 {
                break;
            }
            // The parent is the one of node ± half with the next higher power of two in it.
            node = if (node >> (half.trailing_zeros() + 1)) & 1 == 0 {
                node + half
            } else {
                node - half
            };
        }
    }
    nodes
}
