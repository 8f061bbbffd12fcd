//! What requests do to objects and what is made of the answers, against an image that is one flat array of bytes and a
//! formula for where each of them is stored.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proto::msg::op::code;
use proto::msg::osd_op::{OpReply, Reply};
use proto::types::{EVersion, Epoch, PgId, Tid};

use super::*;
use crate::error::Error;

const ENOENT: i32 = -2;
/// Objects of 4 KiB, the smallest that there are.
const ORDER: u8 = 12;
/// Of the image: some objects, the last one not whole.
const SIZE: u64 = 70_000;

/// Objects of a pool, as an OSD would hold them. What was never written to or was zeroed is not stored.
#[derive(Clone, Debug, Default)]
struct Objects(BTreeMap<u64, Vec<Option<u8>>>);

impl Objects {
    fn apply(&mut self, object: u64, ops: &[OsdOp]) -> i32 {
        for op in ops {
            match &op.op {
                Op::SetAllocHint { object_size, .. } => assert_eq!(*object_size, 1 << ORDER),
                Op::Write { offset, data } => self.write(object, *offset, data),
                Op::WriteFull { data } => {
                    self.0.remove(&object);
                    self.write(object, 0, data);
                }
                Op::WriteSame { offset, length, data } => {
                    assert_eq!(length % data.len() as u64, 0, "as the OSD demands");
                    self.write(object, *offset, &data.repeat((*length as usize) / data.len()));
                }
                Op::Delete => match self.0.remove(&object) {
                    Some(_) => {}
                    None => return ENOENT,
                },
                Op::Truncate { size } => match self.0.get_mut(&object) {
                    Some(bytes) => bytes.resize(*size as usize, None),
                    None => return ENOENT,
                },
                Op::Zero { offset, length } => match self.0.get_mut(&object) {
                    Some(bytes) => {
                        let size = bytes.len();
                        let range = *offset as usize..(offset + length) as usize;
                        bytes[range.start.min(size)..range.end.min(size)].fill(None);
                    }
                    None => return ENOENT,
                },
                other => panic!("{other:?} is no part of a write"),
            }
        }
        0
    }

    fn write(&mut self, object: u64, offset: u64, data: &[u8]) {
        let bytes = self.0.entry(object).or_default();
        let (begin, end) = (offset as usize, offset as usize + data.len());
        assert!(end <= 1 << ORDER, "beyond the object's end");
        if bytes.len() < end {
            bytes.resize(end, None);
        }
        for (byte, new) in bytes[begin..end].iter_mut().zip(data) {
            *byte = Some(*new);
        }
    }

    fn answer(&self, object: u64, op: &Op) -> Reply {
        let Some(bytes) = self.0.get(&object) else {
            return reply(ENOENT, OpReply { code: op.code(), result: ENOENT, data: Bytes::new() });
        };
        let slice = |offset: u64, length: u64| {
            let end = bytes.len().min((offset + length) as usize);
            &bytes[end.min(offset as usize)..end]
        };
        let data = match *op {
            Op::Stat => {
                let mut data = (bytes.len() as u64).to_le_bytes().to_vec();
                data.extend([0; 8]);
                data
            }
            Op::Read { offset, length } => {
                slice(offset, length).iter().map(|byte| byte.unwrap_or(0)).collect()
            }
            Op::SparseRead { offset, length } => {
                let mut extents: Vec<(u64, u64)> = Vec::new();
                let mut data = Vec::new();
                for (at, byte) in (offset..).zip(slice(offset, length)) {
                    let Some(byte) = byte else { continue };
                    data.push(*byte);
                    match extents.last_mut() {
                        Some((begin, length)) if *begin + *length == at => *length += 1,
                        _ => extents.push((at, 1)),
                    }
                }
                sparse_answer(&extents, &data)
            }
            ref other => panic!("{other:?} is no part of a read"),
        };
        reply(0, OpReply { code: op.code(), result: 0, data: data.into() })
    }
}

fn sparse_answer(extents: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let mut answer = (extents.len() as u32).to_le_bytes().to_vec();
    for (offset, length) in extents {
        answer.extend(offset.to_le_bytes());
        answer.extend(length.to_le_bytes());
    }
    answer.extend((data.len() as u32).to_le_bytes());
    answer.extend(data);
    answer
}

fn reply(result: i32, op: OpReply) -> Reply {
    Reply {
        tid: Tid(1),
        object: Bytes::new(),
        pgid: PgId::default(),
        flags: 0,
        result,
        epoch: Epoch(1),
        attempt: 0,
        version: EVersion::default(),
        user_version: 0,
        ops: vec![op],
        redirect: None,
    }
}

/// Where a byte of the image is stored: `doc/dev/file-striping.rst`, one byte at a time.
fn stored_at(layout: &Layout, byte: u64) -> (u64, usize) {
    let (unit, count) = (layout.stripe_unit(), layout.stripe_count());
    let per_object = layout.object_size() / unit;
    let (block, within) = (byte / unit, byte % unit);
    let (stripe, position) = (block / count, block % count);
    let (set, stripe) = (stripe / per_object, stripe % per_object);
    (set * count + position, (stripe * unit + within) as usize)
}

fn content(objects: &Objects, layout: &Layout, byte: u64) -> Option<u8> {
    let (object, at) = stored_at(layout, byte);
    *objects.0.get(&object)?.get(at)?
}

/// Sends the operations of a request in an order that `mix` decides, and makes its outcome of the answers.
fn carry_out(
    mut request: InFlight,
    mix: u64,
    ops: usize,
    mut answer: impl FnMut(usize) -> Reply,
) -> Result<Outcome> {
    let mut order: Vec<usize> = (0..ops).collect();
    order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(mix | 1).rotate_left(17));
    for (nth, part) in order.into_iter().enumerate() {
        request.keep(part, answer(part)).unwrap();
        assert_eq!(request.one_done(Ok(())), nth + 1 == ops);
    }
    request.finish()
}

/// Reads as [`Queue`] does.
fn read(objects: &Objects, layout: Layout, offset: u64, length: u64, mix: u64) -> Outcome {
    let parts: Vec<_> = layout.extents(offset, length).collect();
    // Both ways of asking, whatever the length.
    let op = |extent: &layout::Extent| {
        let (offset, length) = (extent.offset, extent.len);
        match mix.rotate_left(extent.object as u32 % 64) & 1 {
            0 => Op::Read { offset, length },
            _ => Op::SparseRead { offset, length },
        }
    };
    let kind = match parts.as_slice() {
        [one] if !layout.is_striped() => Kind::read_one(*one),
        parts => Kind::read_many(layout, parts.to_vec()),
    };
    let request = InFlight::new(1, parts.len(), kind);
    carry_out(request, mix, parts.len(), |i| objects.answer(parts[i].object, &op(&parts[i])))
        .unwrap()
}

fn flatten(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::ReadWhole(data) => data.into(),
        Outcome::Read(segments) => segments
            .into_iter()
            .flat_map(|segment| {
                assert!(!segment.is_empty());
                match segment {
                    Segment::Data(data) => data.to_vec(),
                    Segment::Hole(length) => vec![0; length as usize],
                }
            })
            .collect(),
        other => panic!("{other:?} is no content"),
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Write,
    Discard,
    ZeroAndFree,
    ZeroAndKeep,
}

/// Changes as [`Queue`] does.
fn change(
    objects: &mut Objects,
    layout: &Layout,
    change: Change,
    offset: u64,
    data: &Bytes,
    granularity: u64,
) {
    for extent in layout.extents(offset, data.len() as u64) {
        let (kind, ops) = match change {
            Change::Write => {
                (Kind::Write, write_ops(layout, &extent, gather(layout, &extent, offset, data)))
            }
            Change::Discard => {
                let op = discard_op(layout, &extent, granularity, true);
                (Kind::Zero, op.into_iter().map(OsdOp::from).collect())
            }
            Change::ZeroAndFree => (Kind::Zero, vec![zero_op(layout, &extent, true).into()]),
            Change::ZeroAndKeep => (Kind::Write, fill_ops(layout, &extent)),
        };
        if ops.is_empty() {
            continue;
        }
        let result = objects.apply(extent.object, &ops);
        let last = ops.last().unwrap().op.code();
        let answer = || reply(result, OpReply { code: last, result, data: Bytes::new() });
        let outcome = carry_out(InFlight::new(1, 1, kind), 0, 1, |_| answer());
        assert_eq!(outcome.unwrap(), Outcome::Done);
    }
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![
        Just(Layout::plain(ORDER).unwrap()),
        (9u32..=12, 1u64..=5)
            .prop_map(|(unit, count)| Layout::new(ORDER, 1 << unit, count).unwrap()),
    ]
}

fn ranges() -> impl Strategy<Value = (u64, u64)> {
    let lengths = prop_oneof![1..600u64, 1..20_000u64, Just(4096), Just(8192)];
    let offsets = prop_oneof![0..SIZE, (0..SIZE / 512).prop_map(|sector| sector * 512)];
    (offsets, lengths).prop_map(|(offset, length)| (offset, length.min(SIZE - offset)))
}

fn changes() -> impl Strategy<Value = Vec<(Change, (u64, u64), u8)>> {
    let change = prop_oneof![
        3 => Just(Change::Write),
        1 => Just(Change::Discard),
        1 => Just(Change::ZeroAndFree),
        1 => Just(Change::ZeroAndKeep),
    ];
    prop::collection::vec((change, ranges(), 1u8..), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_read_is_what_was_written(
        layout in layouts(),
        changes in changes(),
        reads in prop::collection::vec((ranges(), any::<u64>()), 1..6),
        grain in 0u32..=3,
    ) {
        let granularity = 512 << grain;
        let mut flat = vec![0u8; SIZE as usize];
        let mut objects = Objects::default();
        for (what, (offset, length), fill) in changes {
            let data: Vec<u8> = (0..length).map(|i| fill.wrapping_add(i as u8) | 1).collect();
            let before = flat.clone();
            let range = offset as usize..(offset + length) as usize;
            change(&mut objects, &layout, what, offset, &data.clone().into(), granularity);
            match what {
                Change::Write => flat[range.clone()].copy_from_slice(&data),
                Change::ZeroAndFree | Change::ZeroAndKeep => flat[range.clone()].fill(0),
                Change::Discard => {
                    for i in range.clone() {
                        let now = content(&objects, &layout, i as u64).unwrap_or(0);
                        prop_assert!(now == 0 || now == before[i], "discarding made up {now}");
                        flat[i] = now;
                    }
                }
            }
            if let Change::ZeroAndKeep = what {
                let stored = |i: &usize| content(&objects, &layout, *i as u64) == Some(0);
                prop_assert!(range.into_iter().all(|i| stored(&i)), "space was given back");
            }
        }
        for (i, byte) in flat.iter().enumerate() {
            let stored = content(&objects, &layout, i as u64).unwrap_or(0);
            prop_assert_eq!(stored, *byte, "byte {}", i);
        }
        for ((offset, length), mix) in reads {
            let outcome = read(&objects, layout, offset, length, mix);
            let expected = &flat[offset as usize..(offset + length) as usize];
            prop_assert!(flatten(outcome) == expected, "{length} bytes at {offset}");
        }
    }

    #[test]
    fn extents_are_there_exactly_up_to_each_objects_end(
        layout in layouts(),
        changes in changes(),
        (offset, length) in ranges(),
        mix in any::<u64>(),
    ) {
        let mut objects = Objects::default();
        for (what, (offset, length), fill) in changes {
            change(&mut objects, &layout, what, offset, &vec![fill; length as usize].into(), 512);
        }
        let parts: Vec<_> = layout.extents(offset, length).collect();
        let request = InFlight::new(1, parts.len(), Kind::extents(layout, parts.clone()));
        let outcome = carry_out(request, mix, parts.len(), |i| {
            objects.answer(parts[i].object, &Op::Stat)
        });
        let Outcome::Extents(extents) = outcome.unwrap() else { panic!("no extents") };
        prop_assert!(extents.windows(2).all(|two| two[0].allocated != two[1].allocated));
        let told: Vec<bool> = extents
            .iter()
            .flat_map(|extent| vec![extent.allocated; extent.length as usize])
            .collect();
        let is: Vec<bool> = (offset..offset + length)
            .map(|byte| {
                let (object, at) = stored_at(&layout, byte);
                objects.0.get(&object).is_some_and(|bytes| at < bytes.len())
            })
            .collect();
        prop_assert_eq!(told, is);
    }

    #[test]
    fn no_answer_makes_a_read_longer_or_shorter_than_asked(
        (offset, length) in (0u64..4096, 1u64..4096),
        code in prop_oneof![Just(code::READ), Just(code::SPARSE_READ), any::<u16>()],
        result in prop_oneof![Just(0), Just(ENOENT), any::<i32>()],
        extents in prop::collection::vec((0u64..9000, 0u64..3000), 0..4),
        noise in prop::collection::vec(any::<u8>(), 0..9000),
        honest in any::<bool>(),
    ) {
        let extent = layout::Extent { object: 0, offset, len: length, image: offset };
        let data = match code {
            code::SPARSE_READ if honest => {
                let total: u64 = extents.iter().map(|(_, length)| length).sum();
                sparse_answer(&extents, &vec![1; total as usize])
            }
            _ => noise,
        };
        let answer = reply(result, OpReply { code, result, data: data.into() });
        let mut request = InFlight::new(1, 1, Kind::read_one(extent));
        if request.keep(0, answer).is_ok() {
            request.one_done(Ok(()));
            prop_assert_eq!(flatten(request.finish().unwrap()).len() as u64, length);
        }
    }
}

fn one(offset: u64, len: u64) -> layout::Extent {
    layout::Extent { object: 0, offset, len, image: offset }
}

/// What a request makes of one answer.
fn made_of(kind: Kind, answer: Reply) -> std::result::Result<Outcome, i32> {
    let mut request = InFlight::new(1, 1, kind);
    request.keep(0, answer)?;
    request.one_done(Ok(()));
    Ok(request.finish().unwrap())
}

fn read_reply(code: u16, data: Vec<u8>) -> Reply {
    reply(0, OpReply { code, result: 0, data: data.into() })
}

#[test]
fn answers_that_do_not_answer_are_errors_and_no_zeros() {
    let read = |answer| made_of(Kind::read_one(one(10, 20)), answer);
    let eio = Err(-5);
    assert_eq!(read(Reply { ops: Vec::new(), ..read_reply(0, vec![]) }), eio);
    assert_eq!(read(read_reply(code::STAT, vec![])), eio);
    assert_eq!(read(read_reply(code::READ, vec![1; 21])), eio, "more than was asked");
    let failed = OpReply { code: code::READ, result: -61, data: Bytes::new() };
    assert_eq!(read(reply(0, failed)), Err(-61));
    let sparse = |extents: &[(u64, u64)], data: &[u8]| {
        read(read_reply(code::SPARSE_READ, sparse_answer(extents, data)))
    };
    assert_eq!(sparse(&[(9, 2)], &[1, 2]), eio, "before what was asked");
    assert_eq!(sparse(&[(29, 2)], &[1, 2]), eio, "behind it");
    assert_eq!(sparse(&[(12, 2), (13, 1)], &[1, 2, 3]), eio, "overlapping");
    assert_eq!(sparse(&[(15, 1), (12, 1)], &[1, 2]), eio, "not in order");
    assert_eq!(sparse(&[(u64::MAX, 1)], &[1]), eio, "no overflow");
    assert_eq!(sparse(&[(12, 3)], &[1, 2]), eio, "less data than said");
    assert_eq!(sparse(&[(12, 1)], &[1, 2]), eio, "more data than said");
    let expected = vec![Segment::Hole(2), Segment::Data(vec![1].into()), Segment::Hole(17)];
    assert_eq!(sparse(&[(12, 1)], &[1]), Ok(Outcome::Read(expected)));
    let short = read(read_reply(code::READ, vec![7; 5]));
    let expected = vec![Segment::Data(vec![7; 5].into()), Segment::Hole(15)];
    assert_eq!(short, Ok(Outcome::Read(expected)), "the object ends there");

    let stat = Kind::extents(Layout::plain(ORDER).unwrap(), vec![one(0, 8)]);
    assert_eq!(made_of(stat, read_reply(code::STAT, vec![1; 5])), eio);
}

#[test]
fn a_write_that_found_nothing_was_not_carried_out_but_zeroing_nothing_is_done() {
    let missing = || reply(ENOENT, OpReply { code: 0, result: ENOENT, data: Bytes::new() });
    assert_eq!(made_of(Kind::Write, missing()), Err(ENOENT));
    assert_eq!(made_of(Kind::Zero, missing()), Ok(Outcome::Done));
    let failed = || reply(-28, OpReply::default());
    assert_eq!(made_of(Kind::Write, failed()), Err(-28));
    assert_eq!(made_of(Kind::Zero, failed()), Err(-28));
}

#[test]
fn a_request_fails_with_the_first_error_when_all_its_operations_are_done() {
    let mut request = InFlight::new(9, 3, Kind::Write);
    assert!(!request.one_done(Ok(())));
    assert!(!request.one_done(Err(Error::from_errno(-28, "first"))));
    assert!(request.one_done(Err(Error::from_errno(-5, "second"))));
    assert_eq!(request.token(), 9);
    assert!(request.finish().unwrap_err().to_string().starts_with("first"));
}

#[test]
fn discards_free_whole_grains_and_whole_objects() {
    let layout = Layout::plain(22).unwrap();
    let grain = 64 << 10;
    let op = |offset, len| discard_op(&layout, &one(offset, len), grain, true);
    assert_eq!(op(1, grain), None, "no whole grain in it");
    assert_eq!(op(1, 2 * grain), Some(Op::Zero { offset: grain, length: grain }));
    assert_eq!(op(0, 4 << 20), Some(Op::Delete));
    assert_eq!(op(1, (4 << 20) - 1), Some(Op::Truncate { size: grain }));
    let small = Layout::plain(16).unwrap();
    let op = |offset, len| discard_op(&small, &one(offset, len), grain, true);
    assert_eq!(op(100, grain - 100), Some(Op::Truncate { size: 100 }));
    assert_eq!(op(0, grain - 1), None);
    let kept = discard_op(&layout, &one(0, 4 << 20), grain, false);
    assert_eq!(
        kept,
        Some(Op::Truncate { size: 0 }),
        "where a missing object would not read as zeros"
    );
}
