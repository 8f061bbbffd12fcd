//! Changes of an image with a journal: each is recorded there, and done when that is safe.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use proto::msg::object::SnapContext;

use super::{Io, Queue};
use crate::image::Image;
use crate::image::journal::{Journal, Recorded};
use crate::image::live::Live;

/// What a queue has in the journal.
#[derive(Debug, Default)]
pub(super) struct Journaling {
    /// It does what is in the journal already, before anybody else may change anything.
    pub(super) replays: bool,
    /// In place of the image's own granularity of discards, in bytes.
    granularity: Option<u64>,
    /// What waits to be safe, in the order in which it was recorded.
    waiting: VecDeque<Waiting>,
    /// What is under way, by the slots of its requests.
    under_way: BTreeMap<usize, (Arc<Journal>, Range<u64>)>,
}

#[derive(Debug)]
struct Waiting {
    token: u64,
    io: Io,
    journal: Arc<Journal>,
    entries: Range<u64>,
    /// The image as it was when this was recorded. Whatever changes it waits for what is recorded before.
    live: Arc<Live>,
    _held: Arc<SnapContext>,
}

impl Queue {
    /// A way to do what is in the journal already.
    pub(in crate::image) fn replaying(image: &Image) -> Self {
        let mut queue = Self::new(image.clone());
        queue.journaling.replays = true;
        queue
    }

    /// What is discarded from now on is discarded in whole grains of so many bytes.
    pub(in crate::image) fn set_granularity(&mut self, bytes: u64) {
        self.journaling.granularity = Some(bytes.min(self.image.layout().object_size()));
    }

    pub(super) fn granularity(&self) -> u64 {
        self.journaling.granularity.unwrap_or_else(|| self.image.discard_granularity())
    }

    /// Records a change, to be done when that is safe.
    pub(super) fn record(
        &mut self,
        journal: Arc<Journal>,
        token: u64,
        io: Io,
        held: Arc<SnapContext>,
    ) {
        let entries = journal.record(&io, self.granularity());
        let live = Arc::clone(&self.live);
        let waiting = Waiting { token, io, journal, entries, live, _held: held };
        self.journaling.waiting.push_back(waiting);
    }

    /// Does what is safe in the journal, in its order.
    pub(super) fn resume_recorded(&mut self) {
        while let Some(first) = self.journaling.waiting.front() {
            let is_safe = match first.journal.look(&first.entries) {
                Recorded::Waiting => return,
                Recorded::Safe => true,
                Recorded::Failed => false,
            };
            let Some(first) = self.journaling.waiting.pop_front() else { return };
            let Waiting { token, io, journal, entries, live, _held } = first;
            if !is_safe {
                // The journal is closed by now: it waits for the lock, or is refused.
                journal.done(entries);
                drop(_held);
                self.submit(token, io);
                continue;
            }
            let (slot, cost) = (self.requests.vacant_key(), io.cost());
            let current = std::mem::replace(&mut self.live, live);
            self.perform(token, io);
            self.live = current;
            self.account(slot, cost);
            if self.requests.contains(slot) {
                self.journaling.under_way.insert(slot, (journal, entries));
            } else {
                journal.done(entries);
            }
            self.unsent = true;
        }
    }

    /// A request is done.
    pub(super) fn done_of_journal(&mut self, slot: usize) {
        if !self.journaling.under_way.is_empty()
            && let Some((journal, entries)) = self.journaling.under_way.remove(&slot)
        {
            journal.done(entries);
        }
    }

    /// Nobody is told any more of what is recorded. It is replayed, as if whoever recorded it had died.
    pub(super) fn leave_journal(&self) {
        let Journaling { waiting, under_way, .. } = &self.journaling;
        if !waiting.is_empty() || !under_way.is_empty() {
            self.image.0.inner.reopen_journal();
        }
    }
}
