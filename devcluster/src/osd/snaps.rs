//! Snapshots of objects: a clone before the first write after a snapshot, rollback, and the list of clones
//! (`make_writeable`, `_rollback_to` and `LIST_SNAPS` in Ceph's `PrimaryLogPG`).

use bytes::{BufMut, BytesMut};
use proto::denc::Put;
use proto::msg::object::SnapContext;
use proto::types::SnapId;

use super::context::Context;
use crate::errno::{EBUSY, OpResult};
use crate::store::intervals::Intervals;
use crate::store::object::CloneInfo;
use crate::store::{Entry, Mutation, Object};

/// Whether a snapshot context is one: descending, and not above its own newest.
pub(super) fn is_valid(context: &SnapContext) -> bool {
    context.snaps.first().is_none_or(|newest| *newest <= context.seq)
        && context.snaps.windows(2).all(|pair| pair[0] > pair[1])
}

/// The object as it was at a snapshot, or at present.
pub(super) fn object_at(entry: &Entry, snap: SnapId) -> Option<&Object> {
    if snap == SnapId::HEAD || snap == SnapId::DIR {
        return Some(&entry.head);
    }
    match entry.snapset.resolve(snap) {
        Ok(None) => Some(&entry.head),
        Ok(Some(clone)) => entry.clones.get(&clone),
        Err(_) => None,
    }
}

/// Keeps the object as it was, if a snapshot was taken since it was last written. Returns whether it did.
pub(super) fn make_writeable(context: &mut Context<'_>) -> bool {
    let SnapContext { seq, snaps } = context.snap_context;
    let known = context.snapset().seq;
    let new: Vec<SnapId> = snaps.iter().copied().take_while(|snap| snap.0 > known).collect();
    let before = context.before().filter(|object| !object.info.whiteout);
    let cloned = match before {
        Some(object) if !new.is_empty() => {
            let size = object.info.size;
            let clone = CloneInfo { snaps: new, size, overlap: Intervals::of(0, size) };
            context.snapset_mut().clones.insert(*seq, clone);
            context.mutations.insert(0, Mutation::Clone(*seq));
            true
        }
        _ => false,
    };
    if !context.snapset().clones.is_empty() && !context.modified.is_empty() {
        let modified = std::mem::take(&mut context.modified);
        if let Some(mut newest) = context.snapset_mut().clones.last_entry() {
            newest.get_mut().overlap.subtract(&modified);
        }
    }
    if seq.0 > known {
        context.snapset_mut().seq = seq.0;
    }
    cloned
}

/// Makes the object what it was at a snapshot. If it was not there then, it is deleted.
pub(super) fn rollback(context: &mut Context<'_>, snap: SnapId) -> OpResult {
    let clone = match context.snapset().resolve(snap) {
        Ok(None) if context.visible() => {
            context.touched = true;
            return Ok(());
        }
        Ok(None) | Err(_) => None,
        Ok(Some(id)) => context.clone_of(id).map(|object| (id, object)),
    };
    let Some((id, object)) = clone else {
        if !context.info().watchers.is_empty() {
            return Err(EBUSY);
        }
        // An object that is not there now either stays away.
        let _ = context.delete();
        return Ok(());
    };
    let overlap = {
        let mut newer = context.snapset().clones.range(id..).map(|(_, clone)| &clone.overlap);
        let mut overlap = newer.next().cloned().unwrap_or_default();
        newer.for_each(|other| overlap.intersect(other));
        overlap
    };
    let mut modified = Intervals::of(0, context.info().size);
    modified.subtract(&overlap);
    for (offset, len) in modified.iter() {
        context.modified.insert(offset, len);
    }
    context.create_if_missing();
    context.mutations.push(Mutation::Rollback(id));
    let (size, has_omap) = (object.info.size, object.info.has_omap);
    let info = context.info_mut();
    info.size = size;
    info.has_omap = has_omap;
    Ok(())
}

/// What `LIST_SNAPS` answers (`obj_list_snap_response_t`).
pub(super) fn list(context: &Context<'_>, w: &mut BytesMut) {
    let snapset = context.snapset();
    let head = context.visible();
    w.put_envelope(2, 1, |w| {
        w.put_count(snapset.clones.len() + usize::from(head));
        for (id, clone) in &snapset.clones {
            w.put_envelope(1, 1, |w| {
                w.put_value(id);
                w.put_count(clone.snaps.len());
                clone.snaps.iter().rev().for_each(|snap| w.put_value(snap));
                w.put_count(clone.overlap.len());
                for (offset, len) in clone.overlap.iter() {
                    w.put_u64_le(offset);
                    w.put_u64_le(len);
                }
                w.put_u64_le(clone.size);
            });
        }
        if head {
            w.put_envelope(1, 1, |w| {
                w.put_value(&SnapId::HEAD);
                w.put_count(0);
                w.put_count(0);
                w.put_u64_le(context.info().size);
            });
        }
        w.put_u64_le(snapset.seq);
    });
}
