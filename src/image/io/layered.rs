//! What becomes of requests on a clone where it has no object of its own: reads go to the parent, and changes make the
//! object first.

use std::sync::Arc;

use proto::msg::object::SnapContext;
use proto::msg::op::{Op, OsdOp};
use proto::msg::osd_op::{Operation, flag};
use proto::objecter::OpResult;
use proto::rbd::layout::{self, Layout};
use proto::rbd::{Features, ObjectState, names};
use proto::types::SnapId;

use super::{Completion, Queue, Segment, piece_token};
use crate::cluster::{op_error, wall_clock};
use crate::error::{Error, Kind};
use crate::image::copyup::{Guarded, copy_op, hint, snapshot_states};
use crate::image::object_map::update_at;
use crate::image::parent::{Content, Fetched, Purpose};
use crate::image::pending::Instead;

use super::staged::Change;

/// The slot of operations that make objects, which no request has.
pub(super) const COPY_UP: usize = u32::MAX as usize;

const ENOENT: i32 = -2;
const EINVAL: i32 = -22;

/// How a change of an object is carried out that the parent shows: on an object that is there, unless nothing of the
/// parent remains.
pub(super) fn guard(
    layout: &Layout,
    extent: &layout::Extent,
    ops: &mut Vec<OsdOp>,
    snaps: &Arc<SnapContext>,
) -> Option<Guarded> {
    // Once there was a snapshot, it may be that the object has to be there for it.
    let replaces = extent.len == layout.object_size() && snaps.seq.0 == 0;
    if !replaces {
        let (ops, snaps) = (ops.clone(), Arc::clone(snaps));
        return Some(Guarded { extent: *extent, ops, snaps });
    }
    // An empty object hides the parent.
    if matches!(ops.first(), Some(OsdOp { op: Op::Truncate { .. }, .. })) {
        ops.insert(0, Op::Create { exclusive: false }.into());
    }
    None
}

impl Queue {
    /// Turns to the parent where an object is missing. False if it has nothing there.
    pub(super) fn ask_parent(&mut self, slot: usize, part: usize) -> bool {
        let request = &self.requests[slot];
        let (Some(instead), Some(parent)) = (request.instead(part), &mut self.parent) else {
            return false;
        };
        let (layout, overlap) = (*self.image.layout(), request.overlap());
        let of = |extent: &layout::Extent| (extent.object, extent.offset, extent.len);
        let asked = match &instead {
            Instead::Read(extent) => {
                parent.begin(Purpose::Read { slot, part }, &layout, of(extent), overlap)
            }
            Instead::Map(extent) => {
                parent.begin(Purpose::Extents { slot, part }, &layout, of(extent), overlap)
            }
            Instead::CopyUp(object) => {
                let whole = (*object, 0, layout.object_size());
                !self.copy_ups.wait(*object, (slot, part))
                    || parent.begin(Purpose::CopyUp { object: *object }, &layout, whole, overlap)
            }
        };
        self.unsent |= asked;
        asked
    }

    pub(super) fn handle_fetched(&mut self, fetched: Fetched, out: &mut Vec<Completion>) {
        let result = fetched.result.map_err(|error| error.context(self.image.spec()));
        match (fetched.purpose, result) {
            (Purpose::Read { slot, part } | Purpose::Extents { slot, part }, result) => {
                let kept = result.map(|content| {
                    if let Some(request) = self.requests.get_mut(slot) {
                        request.keep_from_parent(part, content);
                    }
                });
                self.part_done(slot, kept, out);
            }
            (Purpose::CopyUp { object }, Ok(Content::Bytes(content))) => {
                self.copy_up(object, content);
            }
            (Purpose::CopyUp { object }, Ok(Content::Map(_))) => {
                let error = Error::new(Kind::Corrupt, "a read without content");
                self.fail_waiting(object, &error, out);
            }
            (Purpose::CopyUp { object }, Err(error)) => self.fail_waiting(object, &error, out),
        }
    }

    /// Makes an object of what its parent has in its place, for the changes that wait for that.
    fn copy_up(&mut self, object: u64, content: Vec<Segment>) {
        let Some(&(slot, part)) = self.copy_ups.waiting(object).first() else { return };
        let Some(request) = self.requests.get(slot) else { return };
        let Some(guarded) = request.guarded(part).cloned() else { return };
        let (copy, something) = copy_op(content);
        if !something || guarded.snaps.snaps.is_empty() {
            let ops = guarded.ops_after(copy.into());
            self.write_under(object, ops, Arc::clone(&guarded.snaps), piece_token(slot, part));
            let parts = self.copy_ups.take(object);
            return self.send_again(parts.into_iter().skip(1));
        }
        // Before all snapshots, so that each of them has it; their maps must not say that it is absent.
        let features = self.live.header.features;
        let maps = match features.contains(Features::OBJECT_MAP) {
            true => snapshot_states(&guarded.snaps, features.contains(Features::FAST_DIFF)),
            false => Vec::new(),
        };
        let Some(id) = self.copy_ups.begin(object, copy, maps.len()) else { return };
        if !maps.is_empty() {
            self.image.0.remaking.makes(object);
        }
        for (snap, state) in &maps {
            self.update_snapshot_map(*snap, object, *state, id);
        }
        if maps.is_empty() {
            self.make_object(id);
        }
        self.unsent = true;
    }

    fn update_snapshot_map(&self, snap: SnapId, object: u64, state: ObjectState, id: u32) {
        let name = names::object_map(self.image.id(), snap);
        let ops = vec![update_at(object, state).into()];
        let mut operation = Operation::new(self.image.pool().locator(), name, ops);
        operation.flags |= flag::WRITE;
        operation.mtime = wall_clock();
        self.image.cluster().submit(operation, &self.inbox, copy_up_token(id));
    }

    fn make_object(&mut self, id: u32) {
        let Some((object, copy)) = self.copy_ups.take_copy(id) else { return };
        let ops = vec![copy.into(), hint(self.image.layout()).into()];
        self.write_under(object, ops, Arc::default(), copy_up_token(id));
    }

    /// A map was changed, or the object is there, in every snapshot: then comes what has waited for it.
    pub(super) fn handle_copied_up(
        &mut self,
        id: u32,
        result: OpResult,
        out: &mut Vec<Completion>,
    ) {
        let Some(object) = self.copy_ups.object(id) else { return };
        let of_map = self.copy_ups.maps_left(id);
        let done = match result {
            // A snapshot without a map, or with one of before the image grew.
            Ok(reply) if of_map && [ENOENT, EINVAL].contains(&reply.result) => Ok(()),
            Ok(reply) if reply.result < 0 => {
                Err(self.image.object_error(&reply.object, reply.result))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(op_error(error).context(self.image.spec())),
        };
        match done {
            Err(error) => self.fail_waiting(object, &error, out),
            Ok(()) if of_map => {
                if self.copy_ups.one_map_done(id) {
                    self.make_object(id);
                }
            }
            Ok(()) => {
                let parts = self.copy_ups.take(object);
                self.send_again(parts.into_iter());
            }
        }
        self.unsent = true;
    }

    fn send_again(&mut self, parts: impl Iterator<Item = (usize, usize)>) {
        for (slot, part) in parts {
            let request = self.requests.get(slot);
            let Some(guarded) = request.and_then(|request| request.guarded(part)) else { continue };
            let (object, snaps) = (guarded.extent.object, Arc::clone(&guarded.snaps));
            let ops = guarded.ops();
            self.write_under(object, ops, snaps, piece_token(slot, part));
        }
        self.unsent = true;
    }

    fn fail_waiting(&mut self, object: u64, error: &Error, out: &mut Vec<Completion>) {
        for (slot, _) in self.copy_ups.take(object) {
            let error = Error::new(error.kind(), format!("copying from the parent: {error}"));
            self.part_done(slot, Err(error), out);
        }
    }

    fn write_under(&mut self, object: u64, ops: Vec<OsdOp>, snaps: Arc<SnapContext>, token: u64) {
        let mut operation = self.operation(object, ops);
        // A class method does not show that it writes.
        operation.flags |= flag::WRITE;
        operation.snap_context = snaps;
        operation.mtime = wall_clock();
        self.change_object(object, Change::Write, operation, token);
    }
}

fn copy_up_token(id: u32) -> u64 {
    (COPY_UP as u64) << 32 | u64::from(id)
}
