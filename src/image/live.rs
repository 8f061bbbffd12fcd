//! What can change while an image is open, and how I/O goes over to it.
//!
//! I/O looks at a [`Live`] that each queue keeps, and only asks whether it is still the current one. A change is in
//! effect when no write is under way that was begun under the one before: a snapshot must not change after whoever took
//! it was told that all writers know of it. That costs nothing per write, because every write holds on to its snapshot
//! context for as long as it is under way, and each [`Live`] has one of its own: nobody else holds it, nothing is left.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::msg::object::SnapContext;
use proto::rbd::Features;
use tokio::time::Instant;

use super::{Header, READABLE, WRITABLE};
use crate::error::{Error, Kind, Result};

/// How often it is looked whether writes under way are complete.
const DRAIN_POLL: Duration = Duration::from_millis(2);

/// Why an image that was opened for writing must not be written to any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    pub(super) why: String,
}

/// An image as it is at some time. Its size is that of the snapshot, if one is open.
#[derive(Debug)]
pub(super) struct Live {
    generation: u64,
    pub(super) header: Arc<Header>,
    /// What writes must preserve. Shared with nothing but them.
    pub(super) snap_context: Arc<SnapContext>,
    pub(super) size: u64,
    pub(super) refusal: Option<Refusal>,
}

impl Live {
    pub(super) fn new(header: Header, size: u64) -> Self {
        let snap_context = Arc::new(header.snap_context.clone());
        Self { generation: 0, header: Arc::new(header), snap_context, size, refusal: None }
    }

    /// The same image, not to be written to any more.
    pub(super) fn refused(&self, refusal: Refusal) -> Self {
        Self { refusal: Some(refusal), ..Self::new((*self.header).clone(), self.size) }
    }
}

/// The current [`Live`] of an image.
#[derive(Debug)]
pub(super) struct Current {
    versions: Mutex<Versions>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct Versions {
    live: Arc<Live>,
    /// Those before, of which writes may still be under way.
    before: Vec<Arc<Live>>,
}

impl Current {
    pub(super) fn new(live: Live) -> Self {
        let generation = AtomicU64::new(live.generation);
        let versions = Versions { live: Arc::new(live), before: Vec::new() };
        Self { versions: Mutex::new(versions), generation }
    }

    fn lock(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Arc<Live> {
        Arc::clone(&self.lock().live)
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

    /// Changes the image, and returns when no write is under way that was begun before.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] if those take longer than `limit`. The change is made nevertheless.
    pub(super) async fn replace(&self, mut new: Live, limit: Duration) -> Result<()> {
        {
            let mut versions = self.lock();
            new.generation = versions.live.generation + 1;
            self.generation.store(new.generation, Ordering::Relaxed);
            let old = std::mem::replace(&mut versions.live, Arc::new(new));
            versions.before.push(old);
        }
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

    fn live(size: u64) -> Live {
        let header = Header {
            size,
            layout: Layout::plain(22).unwrap(),
            features: Features::LAYERING,
            flags: Flags(0),
            object_prefix: "rbd_data.1".into(),
            data_pool: None,
            snap_context: SnapContext { seq: SnapId(size), snaps: Vec::new() },
        };
        Live::new(header, size)
    }

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_change_waits_for_writes_begun_before_and_for_no_others() {
        let current = Current::new(live(1));
        let mut mine = current.get();
        // A user that does nothing holds nothing up.
        let _idle = current.get();
        drop(current.hold(&mut mine));
        current.replace(live(2), SHORT).await.unwrap();

        let held = current.hold(&mut mine);
        assert_eq!((mine.size, held.seq), (2, SnapId(2)));
        let error = current.replace(live(3), SHORT).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        // Made nevertheless.
        let newer = current.hold(&mut mine);
        assert_eq!((mine.size, newer.seq, held.seq), (3, SnapId(3), SnapId(2)));
        // Those of long before count for later changes, too.
        drop(newer);
        assert!(current.replace(live(4), SHORT).await.is_err());
        drop(held);
        current.replace(live(5), SHORT).await.unwrap();
        assert_eq!(current.get().size, 5);
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
                runtime.block_on(current.replace(live(change), 10 * SHORT)).unwrap();
                settled.store(change, Ordering::SeqCst);
            }
            over.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn features_that_appear_end_writing_by_name() {
        assert_eq!(refusal(WRITABLE), None);
        let refused = refusal(WRITABLE | Features::EXCLUSIVE_LOCK | Features::OBJECT_MAP).unwrap();
        assert_eq!(refused.kind, Kind::ReadOnly);
        assert!(refused.why.ends_with("exclusive-lock,object-map"), "{}", refused.why);
        assert_eq!(refusal(Features::MIGRATING).unwrap().kind, Kind::Unsupported);
    }
}
