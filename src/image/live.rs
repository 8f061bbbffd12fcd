//! What can change while an image is open, and how I/O goes over to it.
//!
//! I/O looks at a [`Live`] that each queue keeps, and only asks whether it is still the current one. A change is in
//! effect when no write is under way that was begun under the one before: a snapshot must not change after whoever took
//! it was told that all writers know of it. That costs nothing per write, because every write holds on to its snapshot
//! context for as long as it is under way, and each [`Live`] has one of its own: nobody else holds it, nothing is left.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use proto::msg::object::SnapContext;
use proto::rbd::Features;
use tokio::time::Instant;

use super::journal;
use super::object_map::ObjectMap;
use super::parent::Shared;
use super::settings::Settings;
use super::{Header, READABLE, WRITABLE};
use crate::cluster::Inbox;
use crate::error::{Error, Kind, Result};

/// How often it is looked whether writes under way are complete.
const DRAIN_POLL: Duration = Duration::from_millis(2);

/// Why an image that was opened for writing must not be written to any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    pub(super) why: String,
}

/// Whether writes may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The image knows no exclusive lock.
    Free,
    /// We have the exclusive lock.
    Held,
    /// We do not: writes wait for it.
    Waiting,
}

/// Whether changes have to be recorded first.
#[derive(Clone, Debug)]
pub(super) enum Journal {
    /// The image has no journal.
    Never,
    /// It has one, which is not open: writes wait for it. What was open before has to be closed.
    Closed(Option<Arc<journal::Journal>>),
    /// It has one, which is about to go: writes wait until it has, or not.
    Going,
    /// It is open, while we have the exclusive lock.
    Open(Arc<journal::Journal>),
}

/// An image as it is at some time. Its size is that of the snapshot, if one is open.
#[derive(Debug)]
pub(super) struct Live {
    generation: u64,
    pub(super) header: Arc<Header>,
    /// Of the image and of its pool.
    pub(super) settings: Arc<Settings>,
    /// What writes must preserve. Shared with nothing but them.
    pub(super) snap_context: Arc<SnapContext>,
    pub(super) size: u64,
    /// What shows where objects are missing.
    pub(super) parent: Shared,
    /// The size that it is being shrunk to: what is beyond is going already.
    pub(super) shrinking: Option<u64>,
    /// Because of what it is.
    pub(super) refusal: Option<Refusal>,
    /// Because of who has the exclusive lock.
    pub(super) denied: Option<Refusal>,
    pub(super) access: Access,
    /// Which objects there are, while we have the lock.
    pub(super) map: Option<Arc<ObjectMap>>,
    pub(super) journal: Journal,
    /// How many there are who want no write to go out.
    pauses: u32,
}

impl Live {
    pub(super) fn new(header: Header, size: u64, parent: Shared) -> Self {
        let access = match header.features.contains(Features::EXCLUSIVE_LOCK) {
            true => Access::Waiting,
            false => Access::Free,
        };
        let journal = match header.features.contains(Features::JOURNALING) {
            true => Journal::Closed(None),
            false => Journal::Never,
        };
        Self {
            generation: 0,
            snap_context: Arc::new(header.snap_context.clone()),
            header: Arc::new(header),
            settings: Arc::default(),
            size,
            parent,
            shrinking: None,
            refusal: None,
            denied: None,
            access,
            map: None,
            journal,
            pauses: 0,
        }
    }

    /// How many bytes of the parent show, from the beginning.
    #[inline]
    pub(super) fn overlap(&self) -> u64 {
        self.parent.as_ref().map_or(0, |parent| parent.link.overlap)
    }

    /// Goes over to another header, with the parent that it names.
    pub(super) fn set_header(&mut self, header: Header, parent: Shared) {
        let locks = header.features.contains(Features::EXCLUSIVE_LOCK);
        self.access = match (locks, self.access) {
            (false, _) => Access::Free,
            (true, Access::Free) => Access::Waiting,
            (true, access) => access,
        };
        if !locks || !header.features.contains(Features::OBJECT_MAP) {
            self.map = None;
        }
        self.journal = match (header.features.contains(Features::JOURNALING), &self.journal) {
            (false, _) => Journal::Never,
            (true, Journal::Never) => Journal::Closed(None),
            (true, journal) => journal.clone(),
        };
        self.size = self.shrinking.map_or(header.size, |size| size.min(header.size));
        self.snap_context = Arc::new(header.snap_context.clone());
        self.parent = parent;
        self.header = Arc::new(header);
    }

    /// What is beyond is being removed; with nothing, that is over.
    pub(super) fn shrink_to(&mut self, size: Option<u64>) {
        self.shrinking = size;
        self.size = size.map_or(self.header.size, |size| size.min(self.header.size));
    }

    /// Whether writes have to wait.
    #[inline]
    pub(super) fn waits(&self) -> bool {
        self.access == Access::Waiting
            || self.pauses > 0
            || matches!(self.journal, Journal::Closed(_) | Journal::Going)
    }

    /// Whether the journal is being read, or is about to be: what it says is done again.
    #[inline]
    pub(super) fn replays(&self) -> bool {
        matches!(self.journal, Journal::Closed(_))
            && self.access == Access::Held
            && self.denied.is_none()
    }

    /// Nothing is recorded in the journal any more, until it is opened again.
    pub(super) fn close_journal(&mut self) {
        if let Journal::Open(journal) = &self.journal {
            self.journal = Journal::Closed(Some(Arc::clone(journal)));
        }
    }

    /// The journal that nobody has closed yet.
    pub(super) fn journal(&self) -> Option<&Arc<journal::Journal>> {
        match &self.journal {
            Journal::Open(journal) | Journal::Closed(Some(journal)) => Some(journal),
            _ => None,
        }
    }

    /// The same, with a snapshot context that nobody holds yet.
    fn fresh(&self) -> Self {
        Self {
            generation: self.generation + 1,
            header: Arc::clone(&self.header),
            settings: Arc::clone(&self.settings),
            snap_context: Arc::new((*self.snap_context).clone()),
            size: self.size,
            parent: self.parent.clone(),
            shrinking: self.shrinking,
            refusal: self.refusal.clone(),
            denied: self.denied.clone(),
            access: self.access,
            map: self.map.clone(),
            journal: self.journal.clone(),
            pauses: self.pauses,
        }
    }
}

/// The current [`Live`] of an image.
#[derive(Debug)]
pub(super) struct Current {
    versions: Mutex<Versions>,
    generation: AtomicU64,
    /// Of whoever may have writes waiting.
    inboxes: Mutex<Vec<Weak<Inbox>>>,
}

#[derive(Debug)]
struct Versions {
    live: Arc<Live>,
    /// Those before, of which writes may still be under way.
    before: Vec<Arc<Live>>,
}

/// Keeps writes from going out until it is dropped.
#[derive(Debug)]
pub(super) struct Pause<'a>(&'a Current);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.change(|live| live.pauses -= 1);
    }
}

impl Current {
    pub(super) fn new(live: Live) -> Self {
        let generation = AtomicU64::new(live.generation);
        let versions = Versions { live: Arc::new(live), before: Vec::new() };
        Self { versions: Mutex::new(versions), generation, inboxes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Arc<Live> {
        Arc::clone(&self.lock().live)
    }

    /// Has this inbox nudged at every change.
    pub(super) fn tell(&self, inbox: &Arc<Inbox>) {
        let mut inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(inbox));
    }

    /// Has everybody look whether what waits still has to.
    pub(super) fn nudge(&self) {
        let inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for inbox in inboxes.iter().filter_map(Weak::upgrade) {
            inbox.nudge();
        }
    }

    /// Makes `live`, which is kept for the caller, the current one, and holds its snapshot context. As long as that is
    /// held, changes wait.
    #[inline]
    pub(super) fn hold(&self, live: &mut Arc<Live>) -> Arc<SnapContext> {
        loop {
            let held = Arc::clone(&live.snap_context);
            // Either this sees a change, or who makes the change sees that it is held.
            fence(Ordering::SeqCst);
            if self.generation.load(Ordering::Relaxed) == live.generation {
                return held;
            }
            *live = self.get();
        }
    }

    /// Changes the image for whatever is begun from now on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Live)) {
        {
            let mut versions = self.lock();
            let mut new = versions.live.fresh();
            change(&mut new);
            self.generation.store(new.generation, Ordering::Relaxed);
            let old = std::mem::replace(&mut versions.live, Arc::new(new));
            versions.before.push(old);
        }
        self.nudge();
    }

    /// Returns when no write is under way that was begun before the last change.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] if those take longer than `limit`.
    pub(super) async fn drained(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.is_drained() {
            if Instant::now() >= deadline {
                let what = format!("writes under way did not end within {} s", limit.as_secs());
                return Err(Error::new(Kind::TimedOut, what));
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
        Ok(())
    }

    /// Keeps writes from going out, and returns when none is under way.
    ///
    /// # Errors
    /// As [`Current::drained`].
    pub(super) async fn pause(&self, limit: Duration) -> Result<Pause<'_>> {
        self.change(|live| live.pauses += 1);
        let pause = Pause(self);
        self.drained(limit).await?;
        Ok(pause)
    }

    /// Whether no write is under way that was begun before the last change.
    fn is_drained(&self) -> bool {
        fence(Ordering::SeqCst);
        let before = &mut self.lock().before;
        before.retain(|live| Arc::strong_count(&live.snap_context) > 1);
        before.is_empty()
    }
}

/// Why an image with these features must not be written to, if so.
pub(super) fn refusal(features: Features) -> Option<Refusal> {
    let unreadable = Features(features.0 & !READABLE.0);
    let unwritable = Features(features.0 & !WRITABLE.0);
    if unwritable.is_empty() {
        return None;
    }
    let kind = if unreadable.is_empty() { Kind::ReadOnly } else { Kind::Unsupported };
    let why = format!(
        "it was given features that a writer must keep up, which is not built yet: {unwritable}"
    );
    Some(Refusal { kind, why })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proto::rbd::{Flags, Layout};
    use proto::types::SnapId;

    use super::*;

    fn header(size: u64) -> Header {
        Header {
            size,
            layout: Layout::plain(22).unwrap(),
            features: Features::LAYERING,
            flags: Flags(0),
            object_prefix: "rbd_data.1".into(),
            data_pool: None,
            snap_context: SnapContext { seq: SnapId(size), snaps: Vec::new() },
            parent: None,
        }
    }

    fn live(size: u64) -> Live {
        Live::new(header(size), size, None)
    }

    async fn becomes(current: &Current, size: u64) -> Result<()> {
        current.change(|live| live.set_header(header(size), None));
        current.drained(SHORT).await
    }

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_change_waits_for_writes_begun_before_and_for_no_others() {
        let current = Current::new(live(1));
        let mut mine = current.get();
        // A user that does nothing holds nothing up.
        let _idle = current.get();
        drop(current.hold(&mut mine));
        becomes(&current, 2).await.unwrap();

        let held = current.hold(&mut mine);
        assert_eq!((mine.size, held.seq), (2, SnapId(2)));
        let error = becomes(&current, 3).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        // Made nevertheless.
        let newer = current.hold(&mut mine);
        assert_eq!((mine.size, newer.seq, held.seq), (3, SnapId(3), SnapId(2)));
        // Those of long before count for later changes, too.
        drop(newer);
        assert!(becomes(&current, 4).await.is_err());
        drop(held);
        becomes(&current, 5).await.unwrap();
        assert_eq!(current.get().size, 5);
    }

    #[tokio::test]
    async fn a_pause_keeps_writes_waiting_and_waits_for_those_under_way() {
        let current = Current::new(live(1));
        let mut mine = current.get();
        let held = current.hold(&mut mine);
        assert!(current.pause(SHORT).await.is_err());
        assert!(!current.get().waits(), "one that failed leaves nothing behind");
        drop(held);
        let pause = current.pause(SHORT).await.unwrap();
        let second = current.pause(SHORT).await.unwrap();
        drop(pause);
        drop(current.hold(&mut mine));
        assert!(mine.waits());
        drop(second);
        drop(current.hold(&mut mine));
        assert!(!mine.waits());
    }

    #[test]
    fn whether_writes_wait_follows_the_features() {
        let current = Current::new(live(1));
        let locking = |size| Header { features: Features::EXCLUSIVE_LOCK, ..header(size) };
        current.change(|live| live.set_header(locking(1), None));
        assert_eq!(current.get().access, Access::Waiting);
        current.change(|live| live.access = Access::Held);
        current.change(|live| live.set_header(locking(2), None));
        assert_eq!(current.get().access, Access::Held, "others change what they like");
        current.change(|live| live.set_header(header(2), None));
        assert_eq!(current.get().access, Access::Free);
    }

    /// Writers on other threads against changes: after a change none of them writes under what was before.
    #[test]
    fn no_write_slips_by_a_change() {
        const CHANGES: u64 = 2000;

        let current = Current::new(live(0));
        let (settled, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut mine = current.get();
                    while !over.load(Ordering::SeqCst) {
                        let held = current.hold(&mut mine);
                        let settled = settled.load(Ordering::SeqCst);
                        assert!(held.seq.0 >= settled, "{} under way after {settled}", held.seq);
                    }
                });
            }
            for change in 1..=CHANGES {
                current.change(|live| live.set_header(header(change), None));
                runtime.block_on(current.drained(10 * SHORT)).unwrap();
                settled.store(change, Ordering::SeqCst);
            }
            over.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn features_that_appear_end_writing_by_name() {
        assert_eq!(refusal(WRITABLE), None);
        let refused = refusal(WRITABLE | Features::JOURNALING | Features::NON_PRIMARY).unwrap();
        assert_eq!(refused.kind, Kind::ReadOnly);
        assert!(refused.why.ends_with(": non-primary"), "{}", refused.why);
        assert_eq!(refusal(Features::MIGRATING).unwrap().kind, Kind::Unsupported);
    }
}
