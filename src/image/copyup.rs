//! Copy-up: an object of a clone begins as a copy of what its parent has in its place (`librbd/io/CopyupRequest.cc`).
//!
//! A change of an object that the parent shows is only carried out if the object is there. If it is not, the parent is
//! read, and the object is made of that on its OSD by a class method that does nothing if somebody else was faster.
//! The change follows in the same operation. With snapshots, however, the object is made first, before all of them, so
//! that they have it, too, when the clone is cut loose from its parent.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proto::msg::object::SnapContext;
use proto::msg::op::{Op, OsdOp};
use proto::rbd::ObjectState;
use proto::rbd::cls::{CopyUp, Method};
use proto::rbd::layout::{self, Layout};
use proto::types::SnapId;

use super::Segment;

/// A change that is carried out only on an object that is there.
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    pub(super) extent: layout::Extent,
    pub(super) ops: Vec<OsdOp>,
    /// What it must preserve. Held on to for as long as the change is under way.
    pub(super) snaps: Arc<SnapContext>,
}

impl Guarded {
    /// The change, refused with `ENOENT` if there is no object.
    pub(super) fn ops(&self) -> Vec<OsdOp> {
        let guard = OsdOp::from(Op::Stat);
        std::iter::once(guard).chain(self.ops.iter().cloned()).collect()
    }

    /// The change of an object that is made by the same operation.
    pub(super) fn ops_after(&self, copy: OsdOp) -> Vec<OsdOp> {
        std::iter::once(copy).chain(self.ops.iter().cloned()).collect()
    }
}

/// Changes that wait for one object to be made.
#[derive(Debug)]
struct Waiting {
    /// What it is called among operations.
    id: u32,
    /// Parts of requests.
    parts: Vec<(usize, usize)>,
    /// What makes it, until that is sent.
    copy: Option<Op>,
    /// How many maps of snapshots are being changed before.
    maps: usize,
}

/// Objects that are being made.
#[derive(Debug, Default)]
pub(super) struct CopyUps {
    objects: BTreeMap<u64, Waiting>,
    last: u32,
}

impl CopyUps {
    /// Has a part of a request wait for an object. True if it is the first, so that the object must be made.
    pub(super) fn wait(&mut self, object: u64, part: (usize, usize)) -> bool {
        if let Some(waiting) = self.objects.get_mut(&object) {
            waiting.parts.push(part);
            return false;
        }
        // In a token there is room for that many.
        self.last = (self.last + 1) & 0xff_ffff;
        let waiting = Waiting { id: self.last, parts: vec![part], copy: None, maps: 0 };
        self.objects.insert(object, waiting);
        true
    }

    /// Who waits for an object.
    pub(super) fn waiting(&self, object: u64) -> &[(usize, usize)] {
        self.objects.get(&object).map_or(&[], |waiting| &waiting.parts)
    }

    /// Keeps what makes an object until so many maps are changed. What it is called from now on.
    pub(super) fn begin(&mut self, object: u64, copy: Op, maps: usize) -> Option<u32> {
        let waiting = self.objects.get_mut(&object)?;
        (waiting.copy, waiting.maps) = (Some(copy), maps);
        Some(waiting.id)
    }

    /// Whether maps are being changed.
    pub(super) fn maps_left(&self, id: u32) -> bool {
        self.objects.values().any(|waiting| waiting.id == id && waiting.maps > 0)
    }

    /// True if it was the last.
    pub(super) fn one_map_done(&mut self, id: u32) -> bool {
        let waiting = self.objects.values_mut().find(|waiting| waiting.id == id);
        waiting.is_some_and(|waiting| {
            waiting.maps -= 1;
            waiting.maps == 0
        })
    }

    /// What makes an object, and which.
    pub(super) fn take_copy(&mut self, id: u32) -> Option<(u64, Op)> {
        let (object, waiting) = self.objects.iter_mut().find(|(_, waiting)| waiting.id == id)?;
        Some((*object, waiting.copy.take()?))
    }

    /// Who has waited for an object.
    pub(super) fn take(&mut self, object: u64) -> Vec<(usize, usize)> {
        self.objects.remove(&object).map(|waiting| waiting.parts).unwrap_or_default()
    }

    /// The object that is being made by the operation with that name.
    pub(super) fn object(&self, id: u32) -> Option<u64> {
        let found = self.objects.iter().find(|(_, waiting)| waiting.id == id);
        found.map(|(object, _)| *object)
    }
}

/// What the maps of snapshots say of an object that is made before all of them: new in the oldest, the same since.
pub(super) fn snapshot_states(snaps: &SnapContext, fast_diff: bool) -> Vec<(SnapId, ObjectState)> {
    let oldest = snaps.snaps.last().copied();
    let state = |snap| match fast_diff && Some(snap) != oldest {
        true => ObjectState::Clean,
        false => ObjectState::Exists,
    };
    snaps.snaps.iter().map(|snap| (*snap, state(*snap))).collect()
}

/// Makes an object of content, and whether there is anything in it but zeros.
pub(super) fn copy_op(content: Vec<Segment>) -> (Op, bool) {
    let mut extents = BTreeMap::new();
    let mut data = BytesMut::new();
    let mut at = 0;
    for segment in content {
        let length = segment.len();
        if let Segment::Data(bytes) = segment {
            extents.insert(at, length);
            data.extend_from_slice(&bytes);
        }
        at += length;
    }
    let something = data.iter().any(|byte| *byte != 0);
    if !something {
        (extents, data) = Default::default();
    }
    let copy = CopyUp { extents, data: Bytes::from(data) };
    (Op::call(CopyUp::CLASS, CopyUp::NAME, copy.input()), something)
}

/// Tells the OSD how large an object will be.
pub(super) fn hint(layout: &Layout) -> Op {
    let size = layout.object_size();
    Op::SetAllocHint { object_size: size, write_size: size, flags: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_not_copied() {
        let copied = |content| {
            let (op, something) = copy_op(content);
            let Op::Call { input, .. } = op else { panic!("{op:?}") };
            (proto::denc::decode::<CopyUp>(&input, "copy-up").unwrap(), something)
        };
        let one = Segment::Data(Bytes::from_static(&[0, 1]));
        let (copy, something) =
            copied(vec![Segment::Hole(100), one.clone(), Segment::Hole(7), one]);
        assert_eq!(copy.extents, BTreeMap::from([(100, 2), (109, 2)]));
        assert_eq!((&copy.data[..], something), (&[0, 1, 0, 1][..], true));
        let (copy, something) = copied(vec![Segment::Data(vec![0; 10].into()), Segment::Hole(5)]);
        assert!(!something && copy.extents.is_empty());
    }

    #[test]
    fn an_object_is_made_once_for_all_who_wait() {
        let mut copy_ups = CopyUps::default();
        assert!(copy_ups.wait(7, (0, 0)));
        assert!(!copy_ups.wait(7, (1, 0)));
        assert!(copy_ups.wait(8, (2, 1)));
        let id = copy_ups.begin(7, Op::Stat, 2).unwrap();
        assert_eq!((copy_ups.object(id), copy_ups.maps_left(id)), (Some(7), true));
        assert!(!copy_ups.one_map_done(id) && copy_ups.one_map_done(id));
        assert_eq!(copy_ups.take_copy(id), Some((7, Op::Stat)));
        assert_eq!(copy_ups.waiting(7), [(0, 0), (1, 0)]);
        assert_eq!(copy_ups.take(7), [(0, 0), (1, 0)]);
        assert_eq!(copy_ups.object(id), None);
        assert!(copy_ups.wait(7, (3, 0)));
    }
}
