//! The object map of an image that we hold the exclusive lock of: in memory, and on the OSDs
//! (`src/librbd/ObjectMap.cc`).
//!
//! It never claims that an object is absent that is there. So before an object is written to that may not exist, its
//! state becomes [`ObjectState::Exists`]; before one is removed it becomes [`ObjectState::Pending`], and
//! [`ObjectState::Absent`] only when it is gone. What is known in memory follows: down at once, up when the OSD has it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use proto::msg::op::Op;
use proto::rbd::cls::{
    AddSnapshotToObjectMap, GetFlags, LoadObjectMap, Method, RemoveSnapshotFromObjectMap,
    ResizeObjectMap, SaveObjectMap, SetFlags, UpdateObjectMap, lock,
};
use proto::rbd::{Features, Flags, ObjectState, ObjectStates, names};
use proto::types::{SnapId, UTime};

use super::Header;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::Pool;

/// The most objects that an image with an object map may have (librbd's `MAX_OBJECT_MAP_OBJECT_COUNT`).
pub(crate) const MAX_OBJECTS: u64 = 256_000_000;

/// The map in memory.
#[derive(Debug)]
pub(super) struct ObjectMap {
    /// Four objects to a byte.
    states: Box<[AtomicU8]>,
    objects: u64,
    /// Whether what it says may be relied on: not if the header says that it is invalid.
    trusted: AtomicBool,
    /// How often that came to an end.
    invalidations: AtomicU64,
    /// Objects whose state is being changed.
    busy: Mutex<Busy>,
}

#[derive(Debug, Default)]
struct Busy {
    objects: BTreeSet<u64>,
    /// Somebody waits for one of them.
    awaited: bool,
}

fn shift(object: u64) -> u32 {
    (object % 4 * 2) as u32
}

impl ObjectMap {
    pub(super) fn new(states: &ObjectStates, trusted: bool) -> Self {
        let objects = states.len();
        let mut packed = vec![0u8; objects.div_ceil(4) as usize];
        for (object, state) in (0..).zip(states.iter()) {
            packed[(object / 4) as usize] |= (state as u8) << shift(object);
        }
        Self {
            states: packed.into_iter().map(AtomicU8::new).collect(),
            objects,
            trusted: AtomicBool::new(trusted),
            invalidations: AtomicU64::new(0),
            busy: Mutex::default(),
        }
    }

    /// What is known of an object. One behind the end may be anything.
    #[inline]
    pub(super) fn state(&self, object: u64) -> ObjectState {
        match self.states.get((object / 4) as usize) {
            Some(byte) => ObjectState::from_bits(byte.load(Ordering::Acquire) >> shift(object)),
            None => ObjectState::Pending,
        }
    }

    /// Whether an object is surely not there.
    #[inline]
    pub(super) fn is_absent(&self, object: u64) -> bool {
        self.state(object) == ObjectState::Absent && self.trusted.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, object: u64, state: ObjectState) {
        let Some(byte) = self.states.get((object / 4) as usize) else { return };
        let shift = shift(object);
        let change = |byte| Some(byte & !(3 << shift) | (state as u8) << shift);
        let _ = byte.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// Nothing it says may be relied on any more.
    pub(super) fn distrust(&self) {
        self.trusted.store(false, Ordering::Relaxed);
        self.invalidations.fetch_add(1, Ordering::AcqRel);
    }

    /// How often it was said that nothing may be relied on.
    pub(super) fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Acquire)
    }

    /// It may be relied on again.
    pub(super) fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// Begins to change the state of an object. False if somebody else is about to: that is to be waited for.
    pub(super) fn begin(&self, object: u64) -> bool {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let free = busy.objects.insert(object);
        busy.awaited |= !free;
        free
    }

    /// Waits for whoever ends next.
    pub(super) fn wait(&self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).awaited = true;
    }

    /// Is done with it. True if somebody waits for that.
    #[must_use]
    pub(super) fn end(&self, object: u64) -> bool {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.objects.remove(&object);
        std::mem::take(&mut busy.awaited)
    }

    /// All states, as they are now.
    pub(super) fn states(&self) -> ObjectStates {
        let mut states = ObjectStates::new(self.objects, ObjectState::Absent);
        for object in 0..self.objects {
            states.set(object, self.state(object));
        }
        states
    }

    /// The same for another number of objects. New ones are absent.
    pub(super) fn resized(&self, objects: u64) -> Self {
        let mut states = self.states();
        states.resize(objects, ObjectState::Absent);
        Self::new(&states, self.is_trusted())
    }
}

/// Changes the states of some objects on the OSDs, as long as the map is ours.
pub(super) fn update_ops(
    begin: u64,
    end: u64,
    state: ObjectState,
    only: Option<ObjectState>,
) -> Vec<Op> {
    let only = only.map(|state| state as u8);
    vec![assert_ours(), call(&UpdateObjectMap { begin, end, state: state as u8, only })]
}

/// Changes the state of one object in the map of a snapshot, which has no lock.
pub(super) fn update_at(object: u64, state: ObjectState) -> Op {
    let (begin, end) = (object, object + 1);
    call(&UpdateObjectMap { begin, end, state: state as u8, only: None })
}

/// Says in the header that the map must not be believed.
pub(super) fn invalidate_op(snap: SnapId) -> Op {
    let flags = Flags::OBJECT_MAP_INVALID.0 | Flags::FAST_DIFF_INVALID.0;
    call(&SetFlags { flags, mask: flags, snap })
}

fn call<M: Method>(method: &M) -> Op {
    Op::call(M::CLASS, M::NAME, method.input())
}

/// The map of the head is written to by nobody but who has its lock.
fn assert_ours() -> Op {
    call(&lock::AssertLocked {
        name: lock::RBD_LOCK.to_owned(),
        kind: lock::EXCLUSIVE,
        cookie: String::new(),
        tag: String::new(),
    })
}

/// The map of one image, on the OSDs.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnDisk<'a> {
    pub(super) pool: &'a Pool,
    pub(super) id: &'a str,
}

impl OnDisk<'_> {
    fn name(&self, snap: SnapId) -> String {
        names::object_map(self.id, snap)
    }

    /// Takes its lock, whoever has it: that one has lost the image's.
    async fn lock(&self) -> Result<()> {
        let object = self.name(SnapId::HEAD);
        let take = lock::Lock {
            name: lock::RBD_LOCK.to_owned(),
            kind: lock::EXCLUSIVE,
            cookie: String::new(),
            tag: String::new(),
            description: String::new(),
            duration: UTime::default(),
            flags: 0,
        };
        loop {
            match self.pool.call(&object, &take).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == Kind::Exists => return Ok(()),
                Err(error) if error.kind() == Kind::Busy => {}
                Err(error) => return Err(error),
            }
            let get = lock::GetInfo { name: take.name.clone() };
            for (locker, _) in self.pool.call(&object, &get).await?.lockers {
                let (client, cookie) = (locker.client, locker.cookie);
                let broken = lock::BreakLock { name: take.name.clone(), client, cookie };
                gone_is_fine(self.pool.call(&object, &broken).await.map(drop))?;
            }
        }
    }

    /// Gives its lock back.
    pub(super) async fn unlock(&self) -> Result<()> {
        let name = lock::RBD_LOCK.to_owned();
        let unlock = lock::Unlock { name, cookie: String::new() };
        gone_is_fine(self.pool.call(&self.name(SnapId::HEAD), &unlock).await.map(drop))
    }

    /// Locks and loads the map of the head. One that is missing, damaged or too small is replaced by one that says
    /// nothing, and the header says so.
    pub(super) async fn open(&self, header: &Header) -> Result<ObjectMap> {
        let objects = header.layout.objects(header.size);
        if objects > MAX_OBJECTS {
            let what = format!("{objects} objects are too many for an object map");
            return Err(Error::new(Kind::Invalid, what));
        }
        self.lock().await.context("object map")?;
        let valid = header.flags.0 & Flags::OBJECT_MAP_INVALID.0 == 0;
        let why = match self.load(SnapId::HEAD).await {
            // A resize may have been cut off.
            Ok(mut states) if states.len() >= objects => {
                states.resize(objects, ObjectState::Absent);
                return Ok(ObjectMap::new(&states, valid));
            }
            Ok(states) => format!("it is for {} objects of {objects}", states.len()),
            Err(error) => match error.kind() {
                Kind::NotFound | Kind::Invalid | Kind::Corrupt => error.to_string(),
                _ => return Err(error),
            },
        };
        tracing::warn!(
            id = self.id,
            why,
            "the object map is of no use: `object-map rebuild` makes it anew"
        );
        self.invalidate(SnapId::HEAD).await?;
        // So that it is kept up from now on.
        let states = ObjectStates::new(objects, ObjectState::Exists);
        self.save(SnapId::HEAD, states.clone()).await?;
        Ok(ObjectMap::new(&states, false))
    }

    /// The map of the head or of a snapshot.
    pub(super) async fn load(&self, snap: SnapId) -> Result<ObjectStates> {
        self.pool.call(&self.name(snap), &LoadObjectMap {}).await
    }

    /// Replaces it. That of the head must be ours.
    pub(super) async fn save(&self, snap: SnapId, states: ObjectStates) -> Result<()> {
        let mut ops = vec![call(&SaveObjectMap { states })];
        if snap == SnapId::HEAD {
            ops.insert(0, assert_ours());
        }
        self.pool.operate_write(&self.name(snap), ops).await.map(drop)
    }

    /// Says in the header that the map of the head or of a snapshot must not be believed.
    pub(super) async fn invalidate(&self, snap: SnapId) -> Result<()> {
        let header = names::header(self.id);
        self.pool.operate_write(&header, vec![invalidate_op(snap)]).await.map(drop)
    }

    /// Changes states of the head's.
    pub(super) async fn update(
        &self,
        (begin, end): (u64, u64),
        state: ObjectState,
        only: Option<ObjectState>,
    ) -> Result<()> {
        if begin == end {
            return Ok(());
        }
        let ops = update_ops(begin, end, state, only);
        self.pool.operate_write(&self.name(SnapId::HEAD), ops).await.map(drop)
    }

    /// Changes the state of one object in that of a snapshot.
    pub(super) async fn update_snapshot(
        &self,
        snap: SnapId,
        object: u64,
        state: ObjectState,
    ) -> Result<()> {
        match self.pool.operate_write(&self.name(snap), vec![update_at(object, state)]).await {
            // A snapshot without a map, or with one of before the image grew.
            Err(error) if [Kind::NotFound, Kind::Invalid].contains(&error.kind()) => Ok(()),
            updated => updated.map(drop),
        }
    }

    /// Makes that of the head longer or shorter.
    pub(super) async fn resize(&self, objects: u64) -> Result<()> {
        let resize = ResizeObjectMap { objects, state: ObjectState::Absent as u8 };
        let ops = vec![assert_ours(), call(&resize)];
        self.pool.operate_write(&self.name(SnapId::HEAD), ops).await.map(drop)
    }

    /// Makes the map of a snapshot that was taken: a copy of the head's, in which nothing has changed since
    /// (`librbd/object_map/SnapshotCreateRequest.cc`).
    pub(super) async fn add_snapshot(
        &self,
        snap: SnapId,
        states: ObjectStates,
        fast_diff: bool,
    ) -> Result<()> {
        self.save(snap, states).await?;
        if fast_diff {
            let ops = vec![assert_ours(), call(&AddSnapshotToObjectMap {})];
            self.pool.operate_write(&self.name(SnapId::HEAD), ops).await?;
        }
        Ok(())
    }

    /// Removes the map of a snapshot that goes. What changed before it has then changed since the one before it
    /// (`librbd/object_map/SnapshotRemoveRequest.cc`). Memory need not follow: it only takes less for changed.
    pub(super) async fn remove_snapshot(&self, snap: SnapId, header: &Header) -> Result<()> {
        if header.features.contains(Features::FAST_DIFF) {
            let newer = header.snap_context.snaps.iter().rev().copied().find(|id| *id > snap);
            self.merge(snap, newer.unwrap_or(SnapId::HEAD)).await?;
        }
        self.remove(snap).await
    }

    async fn merge(&self, snap: SnapId, next: SnapId) -> Result<()> {
        let flags = self.pool.call(&names::header(self.id), &GetFlags { snap }).await?;
        let states = match self.load(snap).await {
            Ok(states) if flags & Flags::OBJECT_MAP_INVALID.0 == 0 => states,
            // Merged and removed before.
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            _ => return self.invalidate(next).await,
        };
        let mut ops = vec![call(&RemoveSnapshotFromObjectMap { states })];
        if next == SnapId::HEAD {
            ops.insert(0, assert_ours());
        }
        match self.pool.operate_write(&self.name(next), ops).await {
            Err(error) if error.kind() != Kind::NotFound => self.invalidate(next).await,
            _ => Ok(()),
        }
    }

    /// Removes that of the head or of a snapshot.
    pub(super) async fn remove(&self, snap: SnapId) -> Result<()> {
        gone_is_fine(self.pool.remove(&self.name(snap)).await)
    }
}

/// What keeps object maps right that are made anew while the image is used.
#[derive(Debug, Default)]
pub(super) struct Remaking {
    /// Read by whoever looks at an object and sets its state by what it saw. Written by whoever changes which maps
    /// there are, or replaces one, in memory, too: nobody heeds claims in what is no longer in use.
    pub(super) maps: tokio::sync::RwLock<()>,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    watchers: usize,
    objects: BTreeSet<u64>,
}

impl Remaking {
    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is about to be made for all snapshots. To be told before their maps are changed for that.
    pub(super) fn makes(&self, object: u64) {
        let mut made = self.made();
        if made.watchers > 0 {
            made.objects.insert(object);
        }
    }

    /// Takes note of such objects from now on.
    pub(super) fn watch(&self) -> Watch<'_> {
        self.made().watchers += 1;
        Watch(self)
    }
}

/// Takes note of objects that are made for snapshots until it is dropped.
#[derive(Debug)]
pub(super) struct Watch<'a>(&'a Remaking);

impl Watch<'_> {
    /// Those since it began, at least.
    pub(super) fn made(&self) -> BTreeSet<u64> {
        self.0.made().objects.clone()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut made = self.0.made();
        made.watchers -= 1;
        if made.watchers == 0 {
            made.objects.clear();
        }
    }
}

/// What the head's map in memory becomes when a snapshot was taken.
pub(super) fn after_snapshot(states: &mut ObjectStates) {
    for object in 0..states.len() {
        if states.get(object) == ObjectState::Exists {
            states.set(object, ObjectState::Clean);
        }
    }
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        result => result,
    }
}

/// Where an operation on the map goes: for those who send it themselves.
pub(super) fn head_object(id: &str) -> String {
    names::object_map(id, SnapId::HEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_memory_are_those_that_were_loaded() {
        let mut states = ObjectStates::new(11, ObjectState::Absent);
        states.set(0, ObjectState::Clean);
        states.set(6, ObjectState::Exists);
        states.set(10, ObjectState::Pending);
        let map = ObjectMap::new(&states, true);
        assert_eq!(map.states(), states);
        map.set(5, ObjectState::Exists);
        states.set(5, ObjectState::Exists);
        assert_eq!(map.states(), states);
        assert!(map.is_absent(4) && !map.is_absent(5) && !map.is_absent(10));
        assert!(!map.is_absent(1000), "nothing is known of what is behind the end");
        map.distrust();
        assert!(!map.is_absent(4));
        assert_eq!(map.resized(12).states().get(11), ObjectState::Absent);
    }

    #[test]
    fn one_change_of_an_object_at_a_time() {
        let map = ObjectMap::new(&ObjectStates::new(4, ObjectState::Absent), true);
        assert!(map.begin(1) && map.begin(2));
        assert!(!map.end(2), "nobody waits");
        assert!(!map.begin(1));
        assert!(map.end(1), "somebody does");
        assert!(map.begin(1));
        assert!(!map.end(1));
    }

    #[test]
    fn a_snapshot_leaves_nothing_changed() {
        use ObjectState::{Absent, Clean, Exists};
        let mut states = ObjectStates::new(3, Exists);
        states.set(1, Absent);
        after_snapshot(&mut states);
        assert_eq!(states.iter().collect::<Vec<_>>(), [Clean, Absent, Clean]);
    }
}
