//! What `tests/crush_differential` cannot ask crushtool: how maps are decoded, and what happens where Ceph would abort,
//! read beyond its memory or not come back.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::denc::{DecodeError, Encode};
use crate::limits;

/// Compiled by crushtool of 16.2.15 and 20.2.4 from the same text.
const COMPILED: [&[u8]; 4] = [
    include_bytes!("../../../fixtures/crush/algorithms-16.2.15.bin"),
    include_bytes!("../../../fixtures/crush/algorithms-20.2.4.bin"),
    include_bytes!("../../../fixtures/crush/classes-16.2.15.bin"),
    include_bytes!("../../../fixtures/crush/classes-20.2.4.bin"),
];

#[test]
fn compiled_maps_are_encoded_as_they_were() {
    for bytes in COMPILED {
        let map = CrushMap::from_bytes(bytes).unwrap();
        assert_eq!(map.to_bytes(), bytes);
    }
}

#[test]
fn decoded_fields() {
    let map = CrushMap::from_bytes(COMPILED[2]).unwrap();
    assert_eq!(map.max_devices, 9);
    assert_eq!(map.tunables, Tunables { allowed_bucket_algs: 54, ..Tunables::JEWEL });
    assert_eq!(map.type_names.get(&11).map(String::as_str), Some("root"));
    assert_eq!(map.type_by_name("rack"), Some(2));
    assert_eq!(map.item_by_name("default"), Some(-1));
    assert_eq!(map.item_by_name("osd.8"), Some(8));
    assert_eq!(map.class_of(3), Some("ssd"));
    assert_eq!(map.class_of(5), None);
    assert_eq!(map.item_by_name("default~ssd"), Some(-18));
    let ssd = map.class_names.iter().find(|(_, name)| *name == "ssd").map(|(id, _)| *id).unwrap();
    assert_eq!(map.class_buckets[&-1][&ssd], -18);
    let list = map.bucket(-3).unwrap();
    assert_eq!(
        (list.id, list.kind, list.weight, list.items.as_slice()),
        (-3, 1, 0x4_0000, &[2, 3][..])
    );
    let sums = Algorithm::List {
        item_weights: vec![0x1_0000, 0x3_0000],
        sum_weights: vec![0x1_0000, 0x4_0000],
    };
    assert_eq!(list.algorithm, sums);
    assert_eq!(map.bucket(-7).unwrap().item_weight(0), 0x3_0000);
    assert_eq!(map.kind_of(-1), Some(11));
    assert_eq!((map.rule_by_name("ec"), map.rule(1), map.rule(9)), (Some(2), None, None));
    let rule = map.rule(2).unwrap();
    assert_eq!((rule.kind, rule.min_size, rule.max_size), (RuleKind::ERASURE, 3, 6));
    assert_eq!(rule.steps[2], Step { op: Op::TAKE, arg1: -18, arg2: 0 });
    assert_eq!(rule.steps[3], Step { op: Op::CHOOSE_INDEP, arg1: 2, arg2: 1 });
    assert_eq!(map.find_rule(2, 3, 6), Some(2));
    assert_eq!(map.find_rule(2, 3, 7), None);
    assert_eq!(map.find_rule(2, 1, 6), None);
    assert_eq!(map.find_rule(1, 3, 6), None);
    let root = map.choose_args[&0].of_bucket(0).unwrap();
    assert_eq!(root.weight_sets, [[0x1_0000, 0x2_0000, 0x3_0000], [0x4_0000, 0x5_0000, 0x6_0000]]);
    assert_eq!(root.ids, [-10, -20, -30]);
    assert!(map.choose_args[&0].of_bucket(4).is_none());

    let newer = CrushMap::from_bytes(COMPILED[3]).unwrap();
    assert_eq!(newer.tunables.msr, Some(MsrTunables::default()));
    // Since 17, rules have no sizes: 1 and 100 stand there for others.
    assert_eq!(newer.find_rule(2, 3, 7), Some(2));
}

#[test]
fn a_pool_has_its_own_weights_or_those_of_all() {
    let mut map = CrushMap::from_bytes(COMPILED[2]).unwrap();
    assert_eq!(map.choose_args_for_pool(4), map.choose_args.get(&4));
    assert!(map.choose_args_for_pool(7).is_none());
    let all = map.choose_args[&0].clone();
    map.choose_args.insert(DEFAULT_CHOOSE_ARGS, all.clone());
    assert_eq!(map.choose_args_for_pool(7), Some(&all));
    assert_ne!(map.choose_args_for_pool(4), Some(&all));
}

#[test]
fn a_map_may_end_where_an_older_release_ended() {
    let whole = COMPILED[3];
    let ends: Vec<usize> =
        (0..whole.len()).filter(|len| CrushMap::from_bytes(&whole[..*len]).is_ok()).collect();
    // Before the limits of multi-step retry; what is older than that stands before much that varies in length.
    assert_eq!(ends.last(), Some(&(whole.len() - 8)));
    // After the rule names, and after each of the six groups up to the device classes and choose_args.
    assert_eq!(ends.len(), 9, "{ends:?}");
    let bare = CrushMap::from_bytes(&whole[..ends[0]]).unwrap();
    assert_eq!(bare.tunables, Tunables::LEGACY);
}

#[test]
fn names_with_64_bit_keys() {
    let map = CrushMap { type_names: [(7, "type".into())].into(), ..CrushMap::default() };
    let bytes = map.to_bytes();
    let at = bytes.windows(8).position(|window| window == [7, 0, 0, 0, 4, 0, 0, 0]).unwrap();
    let mut wide = BytesMut::from(&bytes[..at + 4]);
    wide.extend_from_slice(&[0; 4]);
    wide.extend_from_slice(&bytes[at + 4..]);
    assert_eq!(CrushMap::from_bytes(&wide).unwrap(), map);
}

#[test]
fn a_name_that_is_empty_is_none() {
    let names = [(7, String::new()), (8, "eight".into())].into();
    let map = CrushMap { item_names: names, ..CrushMap::default() };
    let bytes = map.to_bytes();
    // The length of an empty name is taken for the upper half of its key: it needs one.
    let at = bytes.windows(8).position(|window| window == [7, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let wide = [&bytes[..at + 4], &[0; 4], &bytes[at + 4..]].concat();
    let read = CrushMap::from_bytes(&wide).unwrap();
    assert_eq!(read.item_names, [(8, "eight".into())].into());
}

#[test]
fn a_mapping_that_is_cut_short_says_so() {
    let map = tree(&[(-1, 2, &[-2, -3]), (-2, 1, &[0, 1]), (-3, 1, &[2, 3])]);
    let steps = [(Op::TAKE, -1, 0), (Op::CHOOSELEAF_FIRSTN, 2, 1), (Op::EMIT, 0, 0)];
    let steps = steps.map(|(op, arg1, arg2)| Step { op, arg1, arg2 });
    let kind = RuleKind::REPLICATED;
    let rule = Rule { kind, min_size: 1, max_size: 100, steps: steps.to_vec() };
    let map = CrushMap { rules: vec![Some(rule)], ..map };
    for (work, is_exhausted) in [(5, true), (1000, false)] {
        let mut scratch = Scratch::bounded(work);
        let found = map.do_rule(0, 1, 2, &[0x1_0000; 4], None, &mut scratch).len();
        assert_eq!((found == 2, scratch.is_exhausted()), (!is_exhausted, is_exhausted));
    }
}

#[test]
fn what_no_ceph_would_encode_is_refused() {
    let base = tree(&[(-1, 1, &[0, 1])]);
    let broken = |change: &dyn Fn(&mut CrushMap)| {
        let mut map = base.clone();
        change(&mut map);
        CrushMap::from_bytes(&map.to_bytes())
    };
    assert!(broken(&|_| {}).is_ok());
    let misplaced = broken(&|map| map.buckets[0].as_mut().unwrap().id = -2);
    assert!(matches!(misplaced, Err(DecodeError::Invalid { what: "crush bucket id", .. })));
    let huge = broken(&|map| map.buckets[0].as_mut().unwrap().items[1] = limits::OSDS as i32);
    assert!(matches!(huge, Err(DecodeError::Invalid { what: "crush device", .. })));
    let ids = broken(&|map| {
        let arg = ChooseArg { weight_sets: vec![], ids: vec![1] };
        map.choose_args.entry(0).or_default().set(0, arg);
    });
    assert!(matches!(ids, Err(DecodeError::Invalid { what: "crush choose_args ids", .. })));
    let nowhere = broken(&|map| {
        let arg = ChooseArg { weight_sets: vec![], ids: vec![1] };
        map.choose_args.entry(0).or_default().set(1, arg);
    });
    assert!(matches!(nowhere, Err(DecodeError::Invalid { what: "crush choose_args bucket", .. })));

    let whole = base.to_bytes();
    let with = |at: usize, value: u32| {
        let mut bytes = whole.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        CrushMap::from_bytes(&bytes)
    };
    assert!(matches!(with(0, 7), Err(DecodeError::Invalid { what: "crush magic", .. })));
    for count in [u32::MAX, 1 << 30, 1 << 20] {
        assert!(matches!(with(4, count), Err(DecodeError::TooMany { what: "crush buckets", .. })));
        assert!(matches!(with(8, count), Err(DecodeError::TooMany { what: "crush rules", .. })));
    }
    for algorithm in [1, 6, 0x105] {
        assert!(with(16, algorithm).is_err());
    }
}

/// A map of straw2 buckets (number, type, items) in which every item weighs the same.
fn tree(buckets: &[(i32, u16, &[i32])]) -> CrushMap {
    let mut map = CrushMap { buckets: vec![None; buckets.len()], ..CrushMap::default() };
    for (id, kind, items) in buckets {
        let algorithm = Algorithm::Straw2 { item_weights: vec![0x1_0000; items.len()] };
        let weight = 0x1_0000 * items.len() as u32;
        let (id, kind, items) = (*id, *kind, items.to_vec());
        map.max_devices = items.iter().map(|item| item + 1).fold(map.max_devices, i32::max);
        map.buckets[!id as usize] = Some(Bucket { id, kind, hash: 0, weight, items, algorithm });
    }
    map
}

/// Gives up soon, as unoptimised code is slow.
fn impatient() -> Scratch {
    Scratch::bounded(1 << 16)
}

/// The first mapping of `map` by a rule of these steps.
fn mapped(map: &CrushMap, kind: RuleKind, steps: &[(Op, i32, i32)], size: usize) -> Vec<i32> {
    let steps = steps.iter().map(|(op, arg1, arg2)| Step { op: *op, arg1: *arg1, arg2: *arg2 });
    let rule = Rule { kind, min_size: 1, max_size: 100, steps: steps.collect() };
    let map = CrushMap { rules: vec![Some(rule)], ..map.clone() };
    map.do_rule(0, 1, size, &[0x1_0000; 64], None, &mut impatient()).to_vec()
}

const CLASSIC: [(Op, bool); 4] = [
    (Op::CHOOSE_FIRSTN, true),
    (Op::CHOOSE_INDEP, false),
    (Op::CHOOSELEAF_FIRSTN, true),
    (Op::CHOOSELEAF_INDEP, false),
];

/// All four ways to choose 3 of `kind` below -1: nothing, or nothing but holes.
fn assert_maps_to_nothing(map: &CrushMap, kind: i32) {
    for (op, is_firstn) in CLASSIC {
        let steps = [(Op::TAKE, -1, 0), (op, 3, kind), (Op::EMIT, 0, 0)];
        let nothing = if is_firstn { vec![] } else { vec![ITEM_NONE; 3] };
        assert_eq!(mapped(map, RuleKind::REPLICATED, &steps, 3), nothing, "{op:?}");
    }
    let steps = [(Op::TAKE, -1, 0), (Op::CHOOSE_MSR, 3, kind), (Op::EMIT, 0, 0)];
    assert_eq!(mapped(map, RuleKind::MSR_FIRSTN, &steps, 3), []);
    assert_eq!(mapped(map, RuleKind::MSR_INDEP, &steps, 3), [ITEM_NONE; 3]);
}

#[test]
fn malformed_hierarchies_map_to_nothing() {
    // A bucket that is not there, one that holds itself, two that hold each other, empty ones.
    assert_maps_to_nothing(&tree(&[(-1, 2, &[-9, -8])]), 0);
    assert_maps_to_nothing(&tree(&[(-1, 2, &[i32::MIN])]), 0);
    assert_maps_to_nothing(&tree(&[(-1, 2, &[-1])]), 0);
    assert_maps_to_nothing(&tree(&[(-1, 2, &[-2]), (-2, 1, &[-1])]), 0);
    assert_maps_to_nothing(&tree(&[(-1, 2, &[-2]), (-2, 1, &[])]), 0);
    assert_maps_to_nothing(&tree(&[(-1, 2, &[])]), 0);
    // Of the type of a device, without being one: out, for want of a weight.
    let map = tree(&[(-1, 2, &[-2]), (-2, 0, &[1])]);
    let steps = [(Op::TAKE, -1, 0), (Op::CHOOSE_FIRSTN, 3, 0), (Op::EMIT, 0, 0)];
    assert_eq!(mapped(&map, RuleKind::REPLICATED, &steps, 3), []);
    // Nothing of the type.
    assert_maps_to_nothing(&tree(&[(-1, 2, &[0, 1, 2])]), 7);
    // Deeper than any map.
    let items: Vec<[i32; 1]> = (0..200).map(|i| [-2 - i]).collect();
    let chain: Vec<(i32, u16, &[i32])> = items.iter().map(|i| (i[0] + 1, 2, &i[..])).collect();
    assert_maps_to_nothing(&tree(&chain), 0);
    // A tree bucket without nodes, or with too few.
    for nodes in [vec![], vec![1], vec![1; 6], vec![1; 12]] {
        let mut map = tree(&[(-1, 2, &[0, 1])]);
        let empty = nodes.len() < 2;
        map.buckets[0].as_mut().unwrap().algorithm = Algorithm::Tree { node_weights: nodes };
        if empty {
            assert_maps_to_nothing(&map, 0);
        } else {
            mapped(&map, RuleKind::ERASURE, &[(Op::TAKE, -1, 0), (Op::CHOOSE_INDEP, 0, 0)], 9);
        }
    }
}

#[test]
fn rules_that_make_no_sense_map_to_nothing() {
    let map = tree(&[(-1, 2, &[-2, -3]), (-2, 1, &[0, 1]), (-3, 1, &[2, 3])]);
    let mut scratch = Scratch::default();
    assert_eq!(map.do_rule(0, 1, 3, &[], None, &mut scratch), []);
    let classic = |steps: &[(Op, i32, i32)]| mapped(&map, RuleKind::REPLICATED, steps, 3);
    assert_eq!(classic(&[]), []);
    assert_eq!(classic(&[(Op::TAKE, -9, 0), (Op::CHOOSE_FIRSTN, 0, 0), (Op::EMIT, 0, 0)]), []);
    assert_eq!(classic(&[(Op::TAKE, 77, 0), (Op::EMIT, 0, 0)]), []);
    assert_eq!(classic(&[(Op::CHOOSE_FIRSTN, 0, 0), (Op::EMIT, 0, 0)]), []);
    assert_eq!(classic(&[(Op::TAKE, -1, 0), (Op::CHOOSE_FIRSTN, -3, 0), (Op::EMIT, 0, 0)]), []);
    assert_eq!(
        classic(&[(Op::TAKE, -1, 0), (Op::CHOOSE_FIRSTN, i32::MIN, 0), (Op::EMIT, 0, 0)]),
        []
    );
    assert_eq!(
        classic(&[(Op(99), 1, 1), (Op::TAKE, 3, 0), (Op::NOOP, 0, 0), (Op::EMIT, 0, 0)]),
        [3]
    );
    // A choice below a device.
    assert_eq!(classic(&[(Op::TAKE, 3, 0), (Op::CHOOSE_INDEP, 0, 0), (Op::EMIT, 0, 0)]), []);
    let take = (Op::TAKE, -1, 0);
    let emit = (Op::EMIT, 0, 0);
    let two_hosts = (Op::CHOOSE_MSR, 2, 1);
    let one_osd = (Op::CHOOSE_MSR, 1, 0);
    for kind in [RuleKind::MSR_FIRSTN, RuleKind::MSR_INDEP] {
        let msr = |steps: &[(Op, i32, i32)]| mapped(&map, kind, steps, 3);
        let sound = msr(&[take, two_hosts, one_osd, emit]);
        assert_eq!(sound.iter().filter(|osd| (0..4).contains(*osd)).count(), 2, "{sound:?}");
        // Not blocks of take, choosemsr and emit.
        assert_eq!(msr(&[take, two_hosts, one_osd]), []);
        assert_eq!(msr(&[two_hosts, one_osd, emit]), []);
        assert_eq!(msr(&[take, (Op::CHOOSE_FIRSTN, 0, 0), emit]), []);
        assert_eq!(msr(&[take, emit]), []);
        assert_eq!(msr(&[(Op::TAKE, -9, 0), one_osd, emit]), []);
        assert_eq!(msr(&[(Op::TAKE, 2, 0), one_osd, emit]), []);
        // More leaves than a number can say.
        assert_eq!(msr(&[take, (Op::CHOOSE_MSR, -1, 1), (Op::CHOOSE_MSR, -1, 0), emit]), []);
        assert_eq!(msr(&[&[take][..], &[two_hosts; 100], &[emit]].concat()), []);
        // Steps that end above devices, or go on below them.
        for chooses in [&[two_hosts][..], &[one_osd, one_osd], &[(Op::CHOOSE_MSR, 3, 0), one_osd]] {
            let found = msr(&[&[take], chooses, &[emit]].concat());
            assert!(found.iter().all(|osd| *osd == ITEM_NONE), "{found:?}");
        }
    }
    // Ceph aborts on a device that is emitted as it is.
    let device = [(Op::TAKE, 2, 0), emit];
    assert_eq!(mapped(&map, RuleKind::MSR_FIRSTN, &device, 3), [2]);
    assert_eq!(mapped(&map, RuleKind::MSR_INDEP, &device, 3), [2, ITEM_NONE, ITEM_NONE]);
}

#[test]
fn a_search_without_end_ends() {
    // Two devices, of which more are asked for, by tunables that say to try for ever.
    let mut map = tree(&[(-1, 2, &[-2, -3]), (-2, 1, &[0]), (-3, 1, &[])]);
    map.tunables = Tunables {
        choose_local_tries: u32::MAX,
        choose_local_fallback_tries: u32::MAX,
        choose_total_tries: u32::MAX - 1,
        msr: Some(MsrTunables { descents: u32::MAX, collision_tries: u32::MAX }),
        ..Tunables::LEGACY
    };
    for (op, _) in CLASSIC {
        let steps = [(Op::TAKE, -1, 0), (op, i32::MAX, 1), (Op::EMIT, 0, 0)];
        mapped(&map, RuleKind::ERASURE, &steps, 9);
    }
    let steps =
        [(Op::TAKE, -1, 0), (Op::CHOOSE_MSR, 9, 1), (Op::CHOOSE_MSR, 1, 0), (Op::EMIT, 0, 0)];
    mapped(&map, RuleKind::MSR_INDEP, &steps, 9);
    let none = [&[(Op::SET_MSR_COLLISION_TRIES, 0, 0)], &steps[..]].concat();
    assert_eq!(mapped(&map, RuleKind::MSR_FIRSTN, &none, 9), []);
}

#[test]
fn a_reweighted_device_takes_inputs_below_its_weight() {
    // crushtool of 16.2.15 says [] with --weight 0 0.2284393310546875 and [0] with --weight 0 0.22845458984375.
    let mut map = tree(&[(-1, 1, &[0])]);
    let steps = [(Op::TAKE, -1, 0), (Op::CHOOSE_FIRSTN, 1, 0), (Op::EMIT, 0, 0)];
    let steps = steps.map(|(op, arg1, arg2)| Step { op, arg1, arg2 });
    let kind = RuleKind::REPLICATED;
    map.rules = vec![Some(Rule { kind, min_size: 1, max_size: 100, steps: steps.to_vec() })];
    let low_half = 0x3a7b;
    let mut scratch = Scratch::default();
    assert_eq!(map.do_rule(0, 1, 1, &[low_half], None, &mut scratch), []);
    assert_eq!(map.do_rule(0, 1, 1, &[low_half + 1], None, &mut scratch), [0]);
    assert_eq!(map.do_rule(0, 1, 1, &[], None, &mut scratch), []);
}

#[test]
fn weights_above_31_bits_count_as_negative() {
    // As in Ceph: such a weight makes a positive draw, which wins over all others.
    let mut map = tree(&[(-1, 1, &[0, 1, 2, 3])]);
    let weights = vec![0x1_0000, 0x8000_0000, 0xffff_0000, 0x7fff_ffff];
    map.buckets[0].as_mut().unwrap().algorithm = Algorithm::Straw2 { item_weights: weights };
    let steps = [(Op::TAKE, -1, 0), (Op::CHOOSE_FIRSTN, 0, 0), (Op::EMIT, 0, 0)];
    assert_eq!(mapped(&map, RuleKind::REPLICATED, &steps, 1), [2]);
}

#[test]
fn a_tree_without_weight_chooses_what_is_behind_its_items() {
    // crushtool of 16.2.15 and 20.2.4 say [0] of 3, 5, 6 and 7 items from 2 on, and the last one of 4.
    for (items, found) in [(3, 0), (4, 5), (5, 0), (6, 0), (7, 0)] {
        let mut map = tree(&[(-1, 1, &[2; 7][..items]), (-2, 1, &[0, 1])]);
        let bucket = map.buckets[0].as_mut().unwrap();
        bucket.items = (2..).take(items).collect();
        let node_weights = vec![0; 2 * items.next_power_of_two()];
        bucket.algorithm = Algorithm::Tree { node_weights };
        map.max_devices = 9;
        let steps = [(Op::TAKE, -1, 0), (Op::CHOOSE_FIRSTN, 1, 0), (Op::EMIT, 0, 0)];
        assert_eq!(mapped(&map, RuleKind::REPLICATED, &steps, 1), [found], "{items} items");
    }
}

#[test]
fn scratch_is_reused_for_any_map() {
    let maps = COMPILED.map(|bytes| CrushMap::from_bytes(bytes).unwrap());
    let mut reused = Scratch::default();
    for size in [5, 1, 9, 3] {
        for map in &maps {
            for (x, rule) in (0..40).flat_map(|x| [(x, 0), (x, 2)]) {
                let weights = [0x1_0000; 9];
                let expected =
                    map.do_rule(rule, x, size, &weights, None, &mut Scratch::default()).to_vec();
                assert_eq!(map.do_rule(rule, x, size, &weights, None, &mut reused), expected);
            }
        }
    }
}

/// Maps by every rule of whatever decodes.
fn exercise(bytes: &[u8]) {
    let Ok(map) = CrushMap::from_bytes(bytes) else { return };
    let mut scratch = impatient();
    let weights = [0x1_0000, 0, 0x8000, 0x1_0000, 0x1_0000, 1];
    for rule in 0..map.rules.len() as u32 {
        for choose_args in [None, map.choose_args_for_pool(0)] {
            let found = map.do_rule(rule, 7, 4, &weights, choose_args, &mut scratch);
            assert!(found.len() <= 4);
        }
    }
    let again = CrushMap::from_bytes(&map.to_bytes()).unwrap();
    assert_eq!(again.to_bytes(), map.to_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 16..600)) {
        bytes[..4].copy_from_slice(&[0, 0, 1, 0]);
        bytes[4] %= 8;
        bytes[8] %= 8;
        for high in [5, 6, 7, 9, 10, 11] {
            bytes[high] = 0;
        }
        exercise(&bytes);
    }

    #[test]
    fn altered_maps_are_decoded_or_refused(
        map in 0..COMPILED.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = COMPILED[map].to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        exercise(&bytes);
    }
}
