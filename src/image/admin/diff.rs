//! What of an image has changed since a snapshot, or since there was nothing: by its object maps, or by what the OSDs
//! say of the versions of its objects (`librbd/api/DiffIterate.cc`, `librbd/object_map/DiffRequest.cc`).

use std::collections::VecDeque;
use std::pin::Pin;

use proto::msg::snaps::{ObjectSnaps, ObjectVersion};
use proto::rbd::cls::GetFlags;
use proto::rbd::names::{self, DataNames};
use proto::rbd::{Features, Flags, ObjectState, ObjectStates};
use proto::types::SnapId;
use tokio::task::JoinHandle;

use super::object_map::list_snaps;
use super::ranges::Ranges;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::{Image, header};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffOptions {
    /// Since when: the snapshot with this id, or the beginning.
    pub from: Option<SnapId>,
    /// An object of which something has changed has changed. Told by object maps alone, where there are valid ones.
    pub whole_objects: bool,
    /// What a clone shows of its parent has changed since the beginning, too.
    pub with_parent: bool,
}

/// A part of the image that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Whether there is something now, be it zeros.
    pub exists: bool,
}

/// Tells, in order, what has changed until the version at which the image is open.
///
/// # Errors
/// [`Kind::Invalid`] if that is not before; whatever keeps it from being found out.
pub async fn diff(
    image: &Image,
    options: DiffOptions,
    found: &mut (dyn FnMut(Difference) -> Result<()> + Send),
) -> Result<()> {
    let doing = format!("image {}", image.spec());
    let (from, to) = (options.from, image.read_snap());
    if from.is_some_and(|from| from > to) {
        let what = format!("{doing}: the snapshot is newer than what it is compared with");
        return Err(Error::new(Kind::Invalid, what));
    }
    if from == Some(to) {
        return Ok(());
    }
    if options.whole_objects
        && let Some(states) = by_object_maps(image, from).await.context(&doing)?
    {
        return tell_states(image, &states, options, found).await.context(doing);
    }
    let (layout, size) = (*image.layout(), image.size());
    let set = layout.object_size() * layout.stripe_count();
    let window = image.cluster().config().rbd.concurrent_management_ops.max(1) as usize;
    let mut sets = (0..size.div_ceil(set)).map(|n| (n * set, set.min(size - n * set)));
    let mut under_way: VecDeque<JoinHandle<Result<Vec<Difference>>>> = VecDeque::new();
    loop {
        while under_way.len() < window {
            let Some(range) = sets.next() else { break };
            let image = image.clone();
            under_way
                .push_back(tokio::spawn(async move { of_range(&image, range, options).await }));
        }
        let Some(next) = under_way.pop_front() else { return Ok(()) };
        let ended = |error| Error::new(Kind::Closed, "a task ended").with_source(error);
        for difference in next.await.map_err(ended)?.context(&doing)? {
            found(difference)?;
        }
    }
}

/// What of a range of the image has changed, by its objects' versions.
fn of_range(
    image: &Image,
    (offset, length): (u64, u64),
    options: DiffOptions,
) -> Pin<Box<dyn Future<Output = Result<Vec<Difference>>> + Send + '_>> {
    // A parent may have one itself.
    Box::pin(async move {
        let (layout, live) = (*image.layout(), image.0.current.get());
        let names = DataNames::new(&live.header.object_prefix);
        // Data, and what is none any more, by where it is in the image.
        let (mut data, mut gone) = (Ranges::default(), Ranges::default());
        for extent in layout.extents(offset, length) {
            let name = names.of(extent.object);
            let snaps = list_snaps(image.data_pool(), &name).await?;
            let whole = options.whole_objects.then_some(layout.object_size());
            let changed = Changed::between(&snaps, options.from, image.read_snap(), whole);
            let (begin, end) = (extent.offset, extent.offset + extent.len);
            let (written, zeroed) =
                (changed.written.within(begin, end), changed.zeroed.within(begin, end));
            let in_image = |ranges: &Ranges, into: &mut Ranges| {
                for (begin, end) in ranges.iter() {
                    for piece in layout.pieces(extent.object, begin, end - begin) {
                        into.add(piece.image, piece.image + piece.len);
                    }
                }
            };
            in_image(&written, &mut data);
            in_image(&zeroed, &mut gone);
            let untouched = written.is_empty() && zeroed.is_empty() && options.from.is_none();
            let Some(parent) = live.parent.as_ref().filter(|_| untouched && options.with_parent)
            else {
                continue;
            };
            for piece in layout.pieces(extent.object, begin, extent.len) {
                let shown = live.overlap().saturating_sub(piece.image).min(piece.len);
                if shown > 0 {
                    let shown = of_range(&parent.image, (piece.image, shown), options).await?;
                    for shown in shown.iter().filter(|shown| shown.exists) {
                        data.add(shown.offset, shown.offset + shown.length);
                    }
                }
            }
        }
        Ok(in_order(&data, &gone))
    })
}

fn in_order(data: &Ranges, gone: &Ranges) -> Vec<Difference> {
    let with =
        |exists| move |(begin, end)| Difference { offset: begin, length: end - begin, exists };
    let mut all: Vec<_> = data.iter().map(with(true)).chain(gone.iter().map(with(false))).collect();
    all.sort_unstable_by_key(|difference| difference.offset);
    all
}

/// What has changed of an object.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changed {
    written: Ranges,
    zeroed: Ranges,
}

impl Changed {
    /// From one snapshot, or the beginning, to another, or the head. `whole` is what an object is at most, if all of it
    /// has changed when something of it has.
    fn between(snaps: &ObjectSnaps, from: Option<SnapId>, to: SnapId, whole: Option<u64>) -> Self {
        let before = from.map(|from| Step::between(snaps, SnapId(0), from, whole));
        let size_before = before.as_ref().map_or(0, |step| step.size);
        let step = Step::between(snaps, from.unwrap_or(SnapId(0)), to, whole);
        // Nor has its end, which `before` may take for that of a whole object.
        if step.changed.is_empty() {
            return Self::default();
        }
        let mut written = step.changed;
        let mut zeroed = Ranges::of(step.size, size_before);
        written.remove_all(&zeroed);
        // What was behind its end in between is not there, either.
        if step.exists && whole.is_none() {
            written = written.within(0, step.size);
        }
        if !step.exists {
            zeroed.add_all(&written);
            written = Ranges::default();
        }
        // What was not there before, and is not there now, has not changed, whatever there was in between.
        if !step.exists && !before.is_some_and(|before| before.exists) {
            zeroed = Ranges::default();
        }
        Self { written, zeroed }
    }
}

/// What the OSD says that has changed of an object.
struct Step {
    changed: Ranges,
    size: u64,
    exists: bool,
}

impl Step {
    fn between(snaps: &ObjectSnaps, from: SnapId, to: SnapId, whole: Option<u64>) -> Self {
        let mut step = Self::of_versions(snaps, from, to);
        match whole {
            Some(size) if !step.changed.is_empty() => {
                (step.changed, step.size) = (Ranges::of(0, size), size);
            }
            _ if !step.exists => step.size = 0,
            _ => {}
        }
        step
    }

    fn of_versions(snaps: &ObjectSnaps, from: SnapId, to: SnapId) -> Self {
        let mut step = Self { changed: Ranges::default(), size: 0, exists: false };
        let versions: Vec<_> = snaps.versions.iter().collect();
        // The snapshots that each is for, the first and the last.
        let span = |version: &ObjectVersion| match version.id {
            SnapId::HEAD => (SnapId(snaps.seq.0 + 1), SnapId::HEAD),
            id => match version.snaps.as_slice() {
                [first, .., last] => (*first, *last),
                [only] => (*only, *only),
                [] => (id, id),
            },
        };
        let mut size_at_start = None;
        for (at, version) in versions.iter().enumerate() {
            let (first, last) = span(version);
            if last < from {
                continue;
            }
            let size_at_start = *size_at_start.get_or_insert_with(|| match from < first {
                // It was not there then.
                true => {
                    step.changed.add(0, version.size);
                    0
                }
                false => version.size,
            });
            step.size = version.size;
            if to < first {
                step.changed = Ranges::of(0, size_at_start);
                return step;
            }
            if to <= last {
                step.exists = true;
                return step;
            }
            let next = versions.get(at + 1).map_or(0, |next| next.size);
            let mut changed = Ranges::of(0, version.size.max(next));
            for (offset, length) in &version.overlap {
                changed.remove(*offset, offset + length);
            }
            step.changed.add_all(&changed);
        }
        step
    }
}

/// What has become of each object: `Absent` and `Clean` if it was and is so, `Pending` if it has gone, `Exists` if it
/// has changed. Nothing if object maps cannot tell.
async fn by_object_maps(image: &Image, from: Option<SnapId>) -> Result<Option<ObjectStates>> {
    let header = image.header();
    if !header.features.contains(Features::FAST_DIFF) {
        return Ok(None);
    }
    let (pool, to) = (image.pool(), image.read_snap());
    let older = header.snap_context.snaps.iter().rev().copied();
    let versions = older.chain([SnapId::HEAD]);
    let mut start = ObjectStates::default();
    let mut known: Option<ObjectStates> = None;
    for snap in versions.filter(|snap| from.is_none_or(|from| from <= *snap) && *snap <= to) {
        let size = match snap {
            SnapId::HEAD => header.size,
            snap => header::snapshot(pool, image.id(), snap).await?.image_size,
        };
        let flags = pool.call(&names::header(image.id()), &GetFlags { snap }).await?;
        if flags & Flags::FAST_DIFF_INVALID.0 != 0 {
            return Ok(None);
        }
        let mut states = match image.0.on_disk_map().load(snap).await {
            Ok(states) if states.len() >= header.layout.objects(size) => states,
            Ok(_) => return Ok(None),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Invalid) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        states.resize(header.layout.objects(size), ObjectState::Absent);
        known = Some(match (known, from) {
            (Some(known), _) => followed_by(known, &states),
            (None, None) => followed_by(ObjectStates::default(), &states),
            (None, Some(_)) => {
                start = at_start(states);
                start.clone()
            }
        });
    }
    Ok(known.map(|known| without_news_of_nothing(known, &start)))
}

/// What was not there at the start, and is not there at the end, has not changed, whatever there was in between.
fn without_news_of_nothing(mut known: ObjectStates, start: &ObjectStates) -> ObjectStates {
    for object in 0..known.len() {
        let was_there = object < start.len() && start.get(object) != ObjectState::Absent;
        if known.get(object) == ObjectState::Pending && !was_there {
            known.set(object, ObjectState::Absent);
        }
    }
    known
}

fn at_start(mut states: ObjectStates) -> ObjectStates {
    for object in 0..states.len() {
        if states.get(object) != ObjectState::Absent {
            states.set(object, ObjectState::Clean);
        }
    }
    states
}

fn followed_by(mut known: ObjectStates, next: &ObjectStates) -> ObjectStates {
    use ObjectState::{Absent, Clean, Exists, Pending};

    known.resize(known.len().max(next.len()), Absent);
    for object in 0..known.len() {
        let before = known.get(object);
        let was_there = matches!(before, Clean | Exists);
        known.set(
            object,
            match next.get(object) {
                Exists | Pending => Exists,
                Clean if !was_there => Exists,
                Absent if was_there => Pending,
                Clean | Absent => before,
            },
        );
    }
    known
}

async fn tell_states(
    image: &Image,
    states: &ObjectStates,
    options: DiffOptions,
    found: &mut (dyn FnMut(Difference) -> Result<()> + Send),
) -> Result<()> {
    let (layout, live) = (*image.layout(), image.0.current.get());
    let parent = live.parent.as_ref().filter(|_| options.with_parent && options.from.is_none());
    let mut shown = Ranges::default();
    if let Some(parent) = parent {
        let overlap = live.overlap();
        let mut add = |part: Difference| {
            if part.exists {
                shown.add(part.offset, overlap.min(part.offset + part.length));
            }
            Ok(())
        };
        Box::pin(diff(&parent.image, options, &mut add)).await?;
    }
    let set = layout.object_size() * layout.stripe_count();
    let size = image.size();
    for begin in (0..size.div_ceil(set)).map(|n| n * set) {
        let (mut data, mut gone) = (Ranges::default(), Ranges::default());
        for extent in layout.extents(begin, set.min(size - begin)) {
            let state = states.get(extent.object);
            for piece in layout.pieces(extent.object, extent.offset, extent.len) {
                let (begin, end) = (piece.image, piece.image + piece.len);
                match state {
                    ObjectState::Exists => data.add(begin, end),
                    ObjectState::Pending if options.from.is_some() => gone.add(begin, end),
                    ObjectState::Absent | ObjectState::Pending => {
                        data.add_all(&shown.within(begin, end))
                    }
                    ObjectState::Clean => {}
                }
            }
        }
        in_order(&data, &gone).into_iter().try_for_each(&mut *found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: SnapId = SnapId::HEAD;

    fn version(id: SnapId, snaps: &[u64], overlap: &[(u64, u64)], size: u64) -> ObjectVersion {
        let snaps = snaps.iter().map(|snap| SnapId(*snap)).collect();
        ObjectVersion { id, snaps, overlap: overlap.to_vec(), size }
    }

    fn changed(snaps: &ObjectSnaps, from: Option<u64>, to: SnapId) -> [Vec<(u64, u64)>; 2] {
        let changed = Changed::between(snaps, from.map(SnapId), to, None);
        [changed.written, changed.zeroed].map(|ranges| ranges.iter().collect())
    }

    #[test]
    fn an_object_changes_where_its_versions_differ() {
        let snaps = ObjectSnaps {
            versions: vec![
                version(SnapId(4), &[3, 4], &[(0, 10), (20, 30)], 100),
                version(SnapId(7), &[7], &[(0, 40)], 50),
                version(HEAD, &[], &[], 50),
            ],
            seq: SnapId(7),
        };
        assert_eq!(changed(&snaps, None, SnapId(3)), [vec![(0, 100)], vec![]]);
        assert_eq!(changed(&snaps, None, SnapId(2)), [vec![], vec![]]);
        assert_eq!(changed(&snaps, Some(3), SnapId(4)), [vec![], vec![]]);
        // It was cut.
        assert_eq!(changed(&snaps, Some(4), SnapId(7)), [vec![(10, 20)], vec![(50, 100)]]);
        assert_eq!(changed(&snaps, Some(7), HEAD), [vec![(40, 50)], vec![]]);
        assert_eq!(changed(&snaps, Some(2), SnapId(5)), [vec![], vec![]], "gone in between");
    }

    #[test]
    fn an_object_that_went_leaves_zeros() {
        let versions = vec![version(SnapId(4), &[4], &[], 100)];
        let snaps = ObjectSnaps { versions, seq: SnapId(4) };
        assert_eq!(changed(&snaps, Some(4), HEAD), [vec![], vec![(0, 100)]]);
        assert_eq!(changed(&snaps, Some(3), HEAD), [vec![], vec![]], "it came in between");
        assert_eq!(changed(&snaps, None, HEAD), [vec![], vec![]], "there was nothing before");
        assert_eq!(changed(&ObjectSnaps::default(), Some(4), HEAD), [vec![], vec![]]);
        let then = Changed::between(&snaps, Some(SnapId(4)), SnapId(4), Some(4096));
        assert_eq!(then, Changed::default(), "it is as long as before, and no whole one");
        let whole = Changed::between(&snaps, Some(SnapId(3)), SnapId(4), Some(4096));
        assert_eq!(whole.written, Ranges::of(0, 4096));
    }

    #[test]
    fn maps_tell_what_has_become_of_an_object() {
        use ObjectState::{Absent, Clean, Exists, Pending};
        let states = |all: &[ObjectState]| {
            let mut states = ObjectStates::new(all.len() as u64, Absent);
            (0..).zip(all).for_each(|(object, state)| states.set(object, *state));
            states
        };
        let start = at_start(states(&[Absent, Exists, Clean, Exists, Exists]));
        let then = followed_by(start, &states(&[Clean, Clean, Exists, Absent]));
        assert_eq!(then, states(&[Exists, Clean, Exists, Pending, Pending]));
        let start = at_start(states(&[Absent, Exists]));
        let gone = followed_by(followed_by(start.clone(), &states(&[Exists, Clean])), &states(&[]));
        assert_eq!(gone, states(&[Pending, Pending]));
        assert_eq!(without_news_of_nothing(gone, &start), states(&[Absent, Pending]));
        let all = followed_by(ObjectStates::default(), &states(&[Absent, Clean, Exists]));
        assert_eq!(all, states(&[Absent, Exists, Exists]));
    }
}
