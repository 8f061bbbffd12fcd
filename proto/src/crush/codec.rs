//! The compiled map's encoding (`CrushWrapper::encode` and `decode`): no envelope and no version, only a tail that grew
//! over the releases and may end after each group of fields.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use super::{
    Algorithm, Bucket, ChooseArg, ChooseArgs, CrushMap, MsrTunables, Op, Rule, RuleKind, Step,
    Tunables,
};
use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::limits;

/// The first word of every map (`CRUSH_MAGIC`).
const MAGIC: u32 = 0x0001_0000;

impl CrushMap {
    /// Decodes a compiled map: a file of `crushtool -o` or `ceph osd getcrushmap`, or the CRUSH part of an OSD map.
    ///
    /// # Errors
    /// What no Ceph would encode: a wrong magic number, a bucket or rule at a place that is not its own, an unknown
    /// algorithm, lists of the wrong length, bytes that end too early.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::decode(&mut Reader::new(bytes, "crush map"))
    }
}

impl Decode for CrushMap {
    /// Reads up to the end of `r`, as the optional tail has no other end.
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let magic = r.u32()?;
        if magic != MAGIC {
            return Err(invalid("crush magic", magic));
        }
        // A removed bucket or rule still takes 4 bytes.
        let max_buckets = bounded(r.i32()?, "crush buckets", r.remaining() / 4)?;
        let max_rules = bounded(r.i32()?, "crush rules", r.remaining() / 4)?;
        // Ceph finds out again, too (crush_finalize).
        r.skip(4)?;
        let mut map = Self { tunables: Tunables::LEGACY, ..Self::default() };
        map.buckets = (0..max_buckets).map(|index| bucket(r, index)).collect::<Result<_>>()?;
        let items = map.buckets.iter().flatten().flat_map(|bucket| &bucket.items);
        map.max_devices = items.max().map_or(0, |highest| (*highest + 1).max(0));
        map.rules = (0..max_rules).map(|number| rule(r, number)).collect::<Result<_>>()?;
        map.type_names = names(r)?;
        map.item_names = names(r)?;
        map.rule_names = names(r)?;
        tail(&mut map, r)?;
        map.max_devices = devices_in_use(&map);
        Ok(map)
    }
}

/// One more than the highest device that is in a bucket or has a name. Ceph counts anew whenever it has read a map
/// (`CrushWrapper::finalize`), so what an incremental OSD map says of it is not what the next full map says.
fn devices_in_use(map: &CrushMap) -> i32 {
    let items = map.buckets.iter().flatten().flat_map(|bucket| &bucket.items);
    let highest = items.chain(map.item_names.keys().next_back()).max();
    highest.map_or(0, |item| item.saturating_add(1).max(0))
}

/// Everything that later releases appended.
fn tail(map: &mut CrushMap, r: &mut Reader<'_>) -> Result<()> {
    let tunables = &mut map.tunables;
    if !r.is_empty() {
        tunables.choose_local_tries = r.u32()?;
        tunables.choose_local_fallback_tries = r.u32()?;
        tunables.choose_total_tries = r.u32()?;
    }
    if !r.is_empty() {
        tunables.chooseleaf_descend_once = r.u32()?;
    }
    if !r.is_empty() {
        tunables.chooseleaf_vary_r = r.u8()?;
    }
    if !r.is_empty() {
        tunables.straw_calc_version = r.u8()?;
    }
    if !r.is_empty() {
        tunables.allowed_bucket_algs = r.u32()?;
    }
    if !r.is_empty() {
        tunables.chooseleaf_stable = r.u8()?;
    }
    if !r.is_empty() {
        map.item_classes = r.map(8, |r| Ok((r.i32()?, r.i32()?)))?;
        map.class_names = r.map(8, |r| Ok((r.i32()?, r.string()?)))?;
        map.class_buckets =
            r.map(8, |r| Ok((r.i32()?, r.map(8, |r| Ok((r.i32()?, r.i32()?)))?)))?;
    }
    if !r.is_empty() {
        let buckets = &map.buckets;
        map.choose_args = r.map(12, |r| Ok((r.i64()?, choose_args(r, buckets)?)))?;
    }
    if !r.is_empty() {
        map.tunables.msr = Some(MsrTunables { descents: r.u32()?, collision_tries: r.u32()? });
    }
    Ok(())
}

fn bucket(r: &mut Reader<'_>, index: usize) -> Result<Option<Bucket>> {
    let algorithm = r.u32()?;
    if algorithm == 0 {
        return Ok(None);
    }
    let id = r.i32()?;
    if usize::try_from(!id) != Ok(index) {
        return Err(invalid("crush bucket id", id as u32));
    }
    let kind = r.u16()?;
    let again = r.u8()?;
    if u32::from(again) != algorithm {
        return Err(invalid("crush bucket algorithm", algorithm));
    }
    let hash = r.u8()?;
    let weight = r.u32()?;
    let items = r.list(4, Reader::i32)?;
    if let Some(item) = items.iter().find(|item| **item >= limits::OSDS as i32) {
        return Err(invalid("crush device", *item as u32));
    }
    let algorithm = match algorithm {
        1 => Algorithm::Uniform { item_weight: r.u32()? },
        2 => {
            let (item_weights, sum_weights) = pairs(r, items.len())?;
            Algorithm::List { item_weights, sum_weights }
        }
        3 => {
            let nodes = r.u8()?;
            Algorithm::Tree { node_weights: words(r, usize::from(nodes))? }
        }
        4 => {
            let (item_weights, straws) = pairs(r, items.len())?;
            Algorithm::Straw { item_weights, straws }
        }
        5 => Algorithm::Straw2 { item_weights: words(r, items.len())? },
        unknown => return Err(invalid("crush bucket algorithm", unknown)),
    };
    Ok(Some(Bucket { id, kind, hash, weight, items, algorithm }))
}

fn rule(r: &mut Reader<'_>, number: usize) -> Result<Option<Rule>> {
    if r.u32()? == 0 {
        return Ok(None);
    }
    let len = r.u32()?;
    // The rule's number again, from when several rules could make up a set. Ceph 17 refuses another value, too.
    let ruleset = r.u8()?;
    if usize::from(ruleset) != number {
        return Err(invalid("crush ruleset", u32::from(ruleset)));
    }
    let kind = RuleKind(r.u8()?);
    let (min_size, max_size) = (r.u8()?, r.u8()?);
    let steps =
        repeat(r, len as usize, |r| Ok(Step { op: Op(r.u32()?), arg1: r.i32()?, arg2: r.i32()? }))?;
    Ok(Some(Rule { kind, min_size, max_size, steps }))
}

/// A map of names. Encoders once wrote 64-bit keys; as no name is empty, a length of 0 is a key's upper half. One that
/// is empty after all is none.
fn names(r: &mut Reader<'_>) -> Result<BTreeMap<i32, String>> {
    let mut names = r.map(8, |r| {
        let key = r.i32()?;
        let is_wide = r.peek().starts_with(&[0; 4]);
        if is_wide {
            r.skip(4)?;
        }
        Ok((key, r.string()?))
    })?;
    names.retain(|_, name| !name.is_empty());
    Ok(names)
}

fn choose_args(r: &mut Reader<'_>, buckets: &[Option<Bucket>]) -> Result<ChooseArgs> {
    let count = r.count(12)?;
    let mut args = BTreeMap::new();
    for _ in 0..count {
        let index = r.u32()?;
        let weight_sets = r.list(4, |r| r.list(4, Reader::u32))?;
        let ids = r.list(4, Reader::i32)?;
        let Some(bucket) = buckets.get(index as usize) else {
            return Err(invalid("crush choose_args bucket", index));
        };
        // Only straw2 buckets heed them; old monitors left some behind for others (update_choose_args).
        let Some(Bucket { items, algorithm: Algorithm::Straw2 { .. }, .. }) = bucket else {
            continue;
        };
        if !ids.is_empty() && ids.len() != items.len() {
            return Err(invalid("crush choose_args ids", ids.len() as u32));
        }
        args.insert(index, ChooseArg { weight_sets, ids });
    }
    Ok(ChooseArgs { args: args.into_iter().collect() })
}

/// `count` elements that have no count of their own before them.
fn repeat<T>(
    r: &mut Reader<'_>,
    count: usize,
    mut element: impl FnMut(&mut Reader<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..count).map(|_| element(r)).collect()
}

fn words(r: &mut Reader<'_>, count: usize) -> Result<Vec<u32>> {
    repeat(r, count, |r| r.u32())
}

/// Two lists whose elements alternate.
fn pairs(r: &mut Reader<'_>, count: usize) -> Result<(Vec<u32>, Vec<u32>)> {
    Ok(repeat(r, count, |r| Ok((r.u32()?, r.u32()?)))?.into_iter().unzip())
}

/// A count that may be no larger than what the bytes can hold.
fn bounded(count: i32, what: &'static str, limit: usize) -> Result<usize> {
    match usize::try_from(count) {
        Ok(count) if count <= limit => Ok(count),
        _ => {
            Err(DecodeError::TooMany { what, count: u64::from(count as u32), limit: limit as u64 })
        }
    }
}

fn invalid(what: &'static str, value: u32) -> DecodeError {
    DecodeError::Invalid { what, value: u64::from(value) }
}

impl Encode for CrushMap {
    /// Writes the map as Ceph since Luminous does; the limits of multi-step retry only if the map has them.
    fn encode(&self, w: &mut BytesMut) {
        w.put_u32_le(MAGIC);
        w.put_count(self.buckets.len());
        w.put_count(self.rules.len());
        w.put_i32_le(self.max_devices);
        for bucket in &self.buckets {
            match bucket {
                Some(bucket) => put_bucket(w, bucket),
                None => w.put_u32_le(0),
            }
        }
        for (number, rule) in self.rules.iter().enumerate() {
            match rule {
                Some(rule) => put_rule(w, number, rule),
                None => w.put_u32_le(0),
            }
        }
        for names in [&self.type_names, &self.item_names, &self.rule_names] {
            put_names(w, names);
        }
        let tunables = &self.tunables;
        w.put_u32_le(tunables.choose_local_tries);
        w.put_u32_le(tunables.choose_local_fallback_tries);
        w.put_u32_le(tunables.choose_total_tries);
        w.put_u32_le(tunables.chooseleaf_descend_once);
        w.put_u8(tunables.chooseleaf_vary_r);
        w.put_u8(tunables.straw_calc_version);
        w.put_u32_le(tunables.allowed_bucket_algs);
        w.put_u8(tunables.chooseleaf_stable);
        put_ids(w, &self.item_classes);
        put_names(w, &self.class_names);
        w.put_count(self.class_buckets.len());
        for (bucket, shadows) in &self.class_buckets {
            w.put_i32_le(*bucket);
            put_ids(w, shadows);
        }
        put_choose_args(w, &self.choose_args);
        if let Some(msr) = tunables.msr {
            w.put_u32_le(msr.descents);
            w.put_u32_le(msr.collision_tries);
        }
    }
}

fn put_bucket(w: &mut BytesMut, bucket: &Bucket) {
    let algorithm: u8 = match &bucket.algorithm {
        Algorithm::Uniform { .. } => 1,
        Algorithm::List { .. } => 2,
        Algorithm::Tree { .. } => 3,
        Algorithm::Straw { .. } => 4,
        Algorithm::Straw2 { .. } => 5,
    };
    w.put_u32_le(u32::from(algorithm));
    w.put_i32_le(bucket.id);
    w.put_u16_le(bucket.kind);
    w.put_u8(algorithm);
    w.put_u8(bucket.hash);
    w.put_u32_le(bucket.weight);
    w.put_count(bucket.items.len());
    for item in &bucket.items {
        w.put_i32_le(*item);
    }
    match &bucket.algorithm {
        Algorithm::Uniform { item_weight } => w.put_u32_le(*item_weight),
        Algorithm::List { item_weights: weights, sum_weights: more }
        | Algorithm::Straw { item_weights: weights, straws: more } => {
            for (weight, more) in weights.iter().zip(more) {
                w.put_u32_le(*weight);
                w.put_u32_le(*more);
            }
        }
        Algorithm::Tree { node_weights } => {
            w.put_u8(node_weights.len() as u8);
            put_words(w, node_weights);
        }
        Algorithm::Straw2 { item_weights } => put_words(w, item_weights),
    }
}

fn put_rule(w: &mut BytesMut, number: usize, rule: &Rule) {
    w.put_u32_le(1);
    w.put_count(rule.steps.len());
    w.put_u8(number as u8);
    w.put_u8(rule.kind.0);
    w.put_u8(rule.min_size);
    w.put_u8(rule.max_size);
    for step in &rule.steps {
        w.put_u32_le(step.op.0);
        w.put_i32_le(step.arg1);
        w.put_i32_le(step.arg2);
    }
}

fn put_choose_args(w: &mut BytesMut, sets: &BTreeMap<i64, ChooseArgs>) {
    w.put_count(sets.len());
    for (key, set) in sets {
        w.put_i64_le(*key);
        let filled =
            || set.iter().filter(|(_, arg)| !arg.weight_sets.is_empty() || !arg.ids.is_empty());
        w.put_count(filled().count());
        for (index, arg) in filled() {
            w.put_u32_le(index);
            w.put_count(arg.weight_sets.len());
            for weights in &arg.weight_sets {
                w.put_count(weights.len());
                put_words(w, weights);
            }
            w.put_count(arg.ids.len());
            for id in &arg.ids {
                w.put_i32_le(*id);
            }
        }
    }
}

fn put_words(w: &mut BytesMut, words: &[u32]) {
    for word in words {
        w.put_u32_le(*word);
    }
}

fn put_names(w: &mut BytesMut, names: &BTreeMap<i32, String>) {
    w.put_count(names.len());
    for (key, name) in names {
        w.put_i32_le(*key);
        w.put_str(name);
    }
}

fn put_ids(w: &mut BytesMut, ids: &BTreeMap<i32, i32>) {
    w.put_count(ids.len());
    for (key, id) in ids {
        w.put_i32_le(*key);
        w.put_i32_le(*id);
    }
}
