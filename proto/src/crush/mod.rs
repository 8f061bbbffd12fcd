//! CRUSH: from a placement group to an ordered list of OSDs.
//!
//! [`CrushMap`] is the hierarchy and its rules as every OSD map carries them (`src/crush/CrushWrapper.cc`);
//! [`CrushMap::do_rule`] walks it (`src/crush/mapper.c`). Clients and OSDs must agree on every mapping to the last bit,
//! so everything here follows what Ceph computes, also where that is odd; tests compare it with Ceph's `crushtool`.
//!
//! A map comes from a peer. Decoding refuses what no Ceph would encode; what decodes but makes no sense (dangling
//! ids, cycles, rules that take nothing) maps to nothing. The walk is bounded in depth and in work, and allocates only
//! when its [`Scratch`] is used with a larger result than ever before.

mod bucket;
mod codec;
pub mod hash;
mod ln;
mod location;
mod msr;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeMap;

pub use walk::Scratch;

/// What stands where no item could be chosen (`CRUSH_ITEM_NONE`): a hole in the result of a positional rule.
pub const ITEM_NONE: i32 = 0x7fff_ffff;

/// A place not decided yet (`CRUSH_ITEM_UNDEF`); never in a result.
const ITEM_UNDEF: i32 = 0x7fff_fffe;

/// The key of the `choose_args` that apply to every pool without its own (`CrushWrapper::DEFAULT_CHOOSE_ARGS`), which
/// `ceph osd crush weight-set create-compat` makes.
pub const DEFAULT_CHOOSE_ARGS: i64 = -1;

/// A hierarchy of buckets over devices, and the rules to place data in it.
///
/// Devices are numbered from 0; bucket `-1 - i` stands at index `i` of `buckets`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrushMap {
    /// The buckets; `None` where one was removed.
    pub buckets: Vec<Option<Bucket>>,
    /// The rules by their number; `None` where one was removed.
    pub rules: Vec<Option<Rule>>,
    /// One more than the highest device number.
    pub max_devices: i32,
    /// Names of bucket types; type 0 is the device.
    pub type_names: BTreeMap<i32, String>,
    /// Names of devices and buckets.
    pub item_names: BTreeMap<i32, String>,
    /// Names of rules.
    pub rule_names: BTreeMap<i32, String>,
    /// How hard rules try.
    pub tunables: Tunables,
    /// The class of each item that has one: devices, and the shadow buckets that hold only devices of a class.
    pub item_classes: BTreeMap<i32, i32>,
    /// Names of device classes.
    pub class_names: BTreeMap<i32, String>,
    /// The shadow bucket of each bucket, by class.
    pub class_buckets: BTreeMap<i32, BTreeMap<i32, i32>>,
    /// Replacement weights and ids, by pool number or [`DEFAULT_CHOOSE_ARGS`].
    pub choose_args: BTreeMap<i64, ChooseArgs>,
}

/// A named container of devices or other buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its number, below 0.
    pub id: i32,
    /// Its level in the hierarchy, above 0: a key of [`CrushMap::type_names`].
    pub kind: u16,
    /// The hash function: 0 is Jenkins', and there never was another.
    pub hash: u8,
    /// The sum of its items' weights, 16.16 fixed point.
    pub weight: u32,
    /// Devices (from 0) and buckets (below 0).
    pub items: Vec<i32>,
    /// How an item is chosen, with the weights for it.
    pub algorithm: Algorithm,
}

/// How a bucket chooses an item. Lists run along [`Bucket::items`]; weights are 16.16 fixed point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// A random permutation of items of equal weight.
    Uniform {
        /// The weight of each.
        item_weight: u32,
    },
    /// Newest first, each item against all before it.
    List {
        /// The weight of each item.
        item_weights: Vec<u32>,
        /// The weight of each item and all before it.
        sum_weights: Vec<u32>,
    },
    /// A binary tree over the items. Ceph keeps it for old maps only.
    Tree {
        /// The weight of each node; item `i` is node `2 i + 1`.
        node_weights: Vec<u32>,
    },
    /// The longest straw wins. Superseded, as changing one weight moves data between other items.
    Straw {
        /// The weight of each item.
        item_weights: Vec<u32>,
        /// The length of each item's straw, which the encoder derived from the weights.
        straws: Vec<u32>,
    },
    /// The best of independent exponential draws wins: what every current map uses.
    Straw2 {
        /// The weight of each item.
        item_weights: Vec<u32>,
    },
}

/// A sequence of steps that places data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What pools it is for, and whether it is walked depth first.
    pub kind: RuleKind,
    /// The fewest replicas it is meant for. Only Ceph up to 16 heeds it ([`CrushMap::find_rule`]).
    pub min_size: u8,
    /// The most replicas it is meant for; likewise.
    pub max_size: u8,
    /// What it does.
    pub steps: Vec<Step>,
}

/// What a rule is for (`crush_rule_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleKind(pub u8);

impl RuleKind {
    /// Replicated pools.
    pub const REPLICATED: Self = Self(1);
    /// Erasure-coded pools.
    pub const ERASURE: Self = Self(3);
    /// Multi-step retry, results in order without holes (since Squid; `doc/dev/crush-msr.rst`).
    pub const MSR_FIRSTN: Self = Self(4);
    /// Multi-step retry, each result in its place.
    pub const MSR_INDEP: Self = Self(5);

    /// Whether the rule is walked depth first, retrying across its steps.
    pub fn is_msr(self) -> bool {
        matches!(self, Self::MSR_FIRSTN | Self::MSR_INDEP)
    }
}

/// One step of a rule, as it is on the wire: steps of unknown operations are kept and do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// The item to take, how many items to choose, or the value to set.
    pub arg1: i32,
    /// The type of item to choose.
    pub arg2: i32,
}

/// What a step does (`crush_opcodes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op(pub u32);

#[allow(missing_docs, reason = "named as in crush_opcodes and in a decompiled map")]
impl Op {
    pub const NOOP: Self = Self(0);
    pub const TAKE: Self = Self(1);
    pub const CHOOSE_FIRSTN: Self = Self(2);
    pub const CHOOSE_INDEP: Self = Self(3);
    pub const EMIT: Self = Self(4);
    pub const CHOOSELEAF_FIRSTN: Self = Self(6);
    pub const CHOOSELEAF_INDEP: Self = Self(7);
    pub const SET_CHOOSE_TRIES: Self = Self(8);
    pub const SET_CHOOSELEAF_TRIES: Self = Self(9);
    pub const SET_CHOOSE_LOCAL_TRIES: Self = Self(10);
    pub const SET_CHOOSE_LOCAL_FALLBACK_TRIES: Self = Self(11);
    pub const SET_CHOOSELEAF_VARY_R: Self = Self(12);
    pub const SET_CHOOSELEAF_STABLE: Self = Self(13);
    pub const SET_MSR_DESCENTS: Self = Self(14);
    pub const SET_MSR_COLLISION_TRIES: Self = Self(15);
    pub const CHOOSE_MSR: Self = Self(16);
}

/// How hard rules try, and which past mistakes they repeat (`doc/rados/operations/crush-map.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Retries in the same bucket after a collision.
    pub choose_local_tries: u32,
    /// Retries in the same bucket by permutation.
    pub choose_local_fallback_tries: u32,
    /// Retries of the whole descent.
    pub choose_total_tries: u32,
    /// Whether a `chooseleaf` that finds no leaf goes back to the outer descent at once.
    pub chooseleaf_descend_once: u32,
    /// How far the outer attempt varies the search for a leaf.
    pub chooseleaf_vary_r: u8,
    /// Whether a replica's leaf does not depend on its position.
    pub chooseleaf_stable: u8,
    /// How straws were computed; of no concern to a walk.
    pub straw_calc_version: u8,
    /// Which algorithms new buckets may use, one bit each; of no concern to a walk.
    pub allowed_bucket_algs: u32,
    /// Limits of multi-step-retry rules, in maps of Ceph 19 and later.
    pub msr: Option<MsrTunables>,
}

/// Limits of multi-step-retry rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrTunables {
    /// How often a rule descends from its root.
    pub descents: u32,
    /// How often a step chooses again after a collision.
    pub collision_tries: u32,
}

impl Default for MsrTunables {
    fn default() -> Self {
        Self { descents: 100, collision_tries: 100 }
    }
}

impl Tunables {
    /// What a map that says nothing means (`argonaut`).
    pub const LEGACY: Self = Self {
        choose_local_tries: 2,
        choose_local_fallback_tries: 5,
        choose_total_tries: 19,
        chooseleaf_descend_once: 0,
        chooseleaf_vary_r: 0,
        chooseleaf_stable: 0,
        straw_calc_version: 0,
        // Uniform, list and straw.
        allowed_bucket_algs: 1 << 1 | 1 << 2 | 1 << 4,
        msr: None,
    };

    /// What new clusters use since Jewel.
    pub const JEWEL: Self = Self {
        choose_local_tries: 0,
        choose_local_fallback_tries: 0,
        choose_total_tries: 50,
        chooseleaf_descend_once: 1,
        chooseleaf_vary_r: 1,
        chooseleaf_stable: 1,
        straw_calc_version: 1,
        // Uniform, list, straw and straw2.
        allowed_bucket_algs: 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5,
        msr: None,
    };
}

impl Default for Tunables {
    fn default() -> Self {
        Self::JEWEL
    }
}

/// Replacement weights and ids of some buckets, for placement only (the balancer's `crush-compat` mode and
/// `ceph osd crush weight-set`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChooseArgs {
    /// By bucket index, ascending.
    args: Vec<(u32, ChooseArg)>,
}

/// The replacements of one straw2 bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChooseArg {
    /// Weights by position in the result, then along the bucket's items; an item without one counts as 0. The last
    /// position serves all after it. Empty: the bucket's own.
    pub weight_sets: Vec<Vec<u32>>,
    /// What is hashed instead of each item's number. Empty: the items.
    pub ids: Vec<i32>,
}

impl ChooseArgs {
    /// The replacements of the bucket at `index` of [`CrushMap::buckets`].
    #[inline]
    pub fn of_bucket(&self, index: usize) -> Option<&ChooseArg> {
        let at = self.args.binary_search_by_key(&index, |(index, _)| *index as usize).ok()?;
        self.args.get(at).map(|(_, arg)| arg)
    }

    /// Every bucket index with its replacements, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &ChooseArg)> {
        self.args.iter().map(|(index, arg)| (*index, arg))
    }

    /// Sets the replacements of the bucket at `index`.
    pub fn set(&mut self, index: u32, arg: ChooseArg) {
        match self.args.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => {
                if let Some(slot) = self.args.get_mut(at) {
                    slot.1 = arg;
                }
            }
            Err(at) => self.args.insert(at, (index, arg)),
        }
    }
}

impl Bucket {
    /// The weight of the item at `position`, 16.16 fixed point; 0 where there is none.
    pub fn item_weight(&self, position: usize) -> u32 {
        let weights = match &self.algorithm {
            Algorithm::Uniform { item_weight } => {
                return if position < self.items.len() { *item_weight } else { 0 };
            }
            Algorithm::Tree { node_weights } => {
                return node_weights.get(2 * position + 1).copied().unwrap_or(0);
            }
            Algorithm::List { item_weights, .. }
            | Algorithm::Straw { item_weights, .. }
            | Algorithm::Straw2 { item_weights } => item_weights,
        };
        weights.get(position).copied().unwrap_or(0)
    }
}

impl CrushMap {
    /// The bucket of this number (below 0).
    #[inline]
    pub fn bucket(&self, id: i32) -> Option<&Bucket> {
        // -1 - id cannot overflow: it is the complement.
        self.buckets.get(usize::try_from(!id).ok()?)?.as_ref()
    }

    /// The rule of this number.
    #[inline]
    pub fn rule(&self, number: u32) -> Option<&Rule> {
        self.rules.get(number as usize)?.as_ref()
    }

    /// The rule that a cluster up to Ceph 16 uses for a pool that names `rule`: none, if its type is not the pool's
    /// or `size` is out of its range. Since Ceph 17 a pool's rule is used as it is ([`Self::rule`]).
    pub fn find_rule(&self, rule: u32, pool_kind: u8, size: u32) -> Option<u32> {
        let found = self.rule(rule)?;
        let fits = found.kind.0 == pool_kind
            && (u32::from(found.min_size)..=u32::from(found.max_size)).contains(&size);
        fits.then_some(rule)
    }

    /// What replaces weights and ids for a pool: its own set, or else the one for all pools.
    pub fn choose_args_for_pool(&self, pool: i64) -> Option<&ChooseArgs> {
        self.choose_args.get(&pool).or_else(|| self.choose_args.get(&DEFAULT_CHOOSE_ARGS))
    }

    /// The number of the rule of this name.
    pub fn rule_by_name(&self, name: &str) -> Option<u32> {
        key_of(&self.rule_names, name).and_then(|number| u32::try_from(number).ok())
    }

    /// The number of the device or bucket of this name.
    pub fn item_by_name(&self, name: &str) -> Option<i32> {
        key_of(&self.item_names, name)
    }

    /// The number of the bucket type of this name.
    pub fn type_by_name(&self, name: &str) -> Option<i32> {
        key_of(&self.type_names, name)
    }

    /// The name of a device's class.
    pub fn class_of(&self, item: i32) -> Option<&str> {
        self.class_names.get(self.item_classes.get(&item)?).map(String::as_str)
    }

    /// The type of a device (0) or bucket.
    pub fn kind_of(&self, item: i32) -> Option<u16> {
        if item >= 0 { Some(0) } else { self.bucket(item).map(|bucket| bucket.kind) }
    }
}

/// The key under which `name` stands.
fn key_of(names: &BTreeMap<i32, String>, name: &str) -> Option<i32> {
    names.iter().find(|(_, known)| *known == name).map(|(key, _)| *key)
}
