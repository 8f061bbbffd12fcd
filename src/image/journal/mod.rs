//! The journal of an image that we hold the exclusive lock of (`doc/dev/rbd-journal.rst`, `src/librbd/Journal.cc`).
//!
//! ```text
//!   a change ──► recorded ──► its entries are safe ──► done to the image ──► acknowledged
//!                   │               │                        │
//!              gets numbers    one batch at a time      every few seconds the cluster is told up to where
//!                                                        all is done: nothing before that is replayed
//! ```
//!
//! Whoever gets the lock next replays what its owner had recorded and may not have done. Entries are safe in the
//! order of their numbers, and a queue does what it has recorded in that order: what is done is not behind a gap,
//! where nobody would replay it.

mod player;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::denc::{Encode, decode};
use proto::msg::op::Op;
use proto::rbd::cls::{
    CommitJournal, CommitPosition, CreateTag, DISCONNECTED, GetActiveSet, GetJournalClient,
    GetJournalOrder, GetJournalPool, GetJournalWidth, GetMinimumSet, GetNextTag, GuardAppend,
    JournalTag, ListJournalClients, ListTags, Method, ObjectPosition, SetActiveSet, SetMinimumSet,
};
use proto::rbd::journal::{
    ClientData, ENTRY_OVERHEAD, Entry, Event, EventEntry, Operation, TagData, WRITE_OVERHEAD,
};
use proto::rbd::names;
use proto::types::PoolId;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::player::Player;
use super::io::Io;
use super::{Boxed, Image, Inner, PAUSE};
use crate::cluster::wall_clock;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::Pool;

/// What whoever writes the image is called in its journal (`Journal::IMAGE_CLIENT_ID`).
pub(super) const WRITER: &str = "";

/// How long what is done may stay unknown to the cluster (librbd's `rbd_journal_commit_age`).
const COMMIT_AGE: Duration = Duration::from_secs(5);

/// The longest entry, in bytes: longer writes become several (librbd's `rbd_journal_max_payload_bytes`). A mirror has
/// as many in memory as there are images.
const ENTRY_BYTES: usize = 16 << 10;

/// How much is appended at a time, in bytes.
const BATCH_BYTES: usize = 4 << 20;

/// How many sets of objects are removed at a time.
const TRIMMED_SETS: usize = 4;

/// How many sets of objects a journal may have: more is damage.
const MOST_SETS: u64 = 1 << 24;

/// How long to wait before a full pool is tried again, or a journal that could not be written to.
const AGAIN: Duration = Duration::from_secs(1);

/// Tags, or clients, that are asked for at a time.
const PAGE: u64 = 64;

/// What zeros that must be stored are recorded as: these, again and again.
static ZEROS: [u8; 512] = [0; 512];

const EINTR: i32 = 4;
const EOVERFLOW: i32 = 75;
const ESTALE: i32 = 116;

/// Where a journal is, and what its objects are like. None of that ever changes.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Of the image's header, and the journal's.
    pool: Pool,
    id: String,
    /// Of the journal's objects.
    objects: Pool,
    /// How large an object becomes, in bytes.
    object_size: u64,
    /// How many of them are written to by turns.
    width: u64,
}

impl Place {
    /// # Errors
    /// [`Kind::NotFound`] if there is no journal.
    pub(super) async fn find(pool: &Pool, id: &str) -> Result<Self> {
        let header = names::journal(id);
        let order = pool.call(&header, &GetJournalOrder {}).await?;
        let width = pool.call(&header, &GetJournalWidth {}).await?;
        if !(12..=26).contains(&order) || width == 0 {
            let what = format!("{header}: {width} objects of order {order}");
            return Err(Error::new(Kind::Corrupt, what));
        }
        let objects = match pool.call(&header, &GetJournalPool {}).await? {
            -1 => pool.clone(),
            other => {
                let other = pool.cluster().pool_by_id(PoolId(other)).await?;
                other.with_namespace(pool.namespace())
            }
        };
        let (object_size, width) = (1 << order, width.into());
        Ok(Self { pool: pool.clone(), id: id.to_owned(), objects, object_size, width })
    }

    fn header(&self) -> String {
        names::journal(&self.id)
    }

    fn object(&self, number: u64) -> String {
        names::journal_object(self.pool.id(), &self.id, number)
    }

    async fn call<M: Method>(&self, method: &M) -> Result<M::Reply> {
        self.pool.call(&self.header(), method).await
    }

    /// Tells whoever has the journal open that it has changed.
    fn announce(&self) {
        self.pool.announce(&self.header(), Bytes::new());
    }

    /// The first set of objects that somebody needs, and the one that is written to.
    pub(super) async fn sets(&self) -> Result<(u64, u64)> {
        let (first, last) =
            (self.call(&GetMinimumSet {}).await?, self.call(&GetActiveSet {}).await?);
        if last.checked_sub(first).is_none_or(|sets| sets > MOST_SETS) || last > u64::MAX >> 16 {
            let what = format!("{}: sets of objects from {first} to {last}", self.header());
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok((first, last))
    }

    pub(super) async fn remove_set(&self, set: u64) -> Result<()> {
        for object in set * self.width..(set + 1) * self.width {
            match self.objects.remove(&self.object(object)).await {
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the next tag.
    pub(super) async fn make_tag(&self, class: u64, data: &TagData) -> Result<u64> {
        loop {
            let tid = self.call(&GetNextTag {}).await?;
            match self.call(&CreateTag { tid, class, data: data.to_bytes() }).await {
                Err(error) if error.kind() == Kind::Os(ESTALE) => {}
                made => return made.map(|_| tid),
            }
        }
    }

    async fn last_tag(&self, class: u64) -> Result<Option<JournalTag>> {
        let (mut last, mut after) = (None, 0);
        loop {
            let list = ListTags { after, max: PAGE, client: WRITER.to_owned(), class: Some(class) };
            let tags = self.call(&list).await?;
            let is_all = (tags.len() as u64) < PAGE;
            let Some(tag) = tags.into_iter().next_back() else { return Ok(last) };
            after = tag.tid;
            last = Some(tag);
            if is_all {
                return Ok(last);
            }
        }
    }
}

/// Notes that an entry is done, and so is all before it.
fn advance(position: &mut CommitPosition, to: ObjectPosition, width: u64) {
    position.objects.retain(|other| other.object % width != to.object % width);
    position.objects.insert(0, to);
}

/// A journal that is written to.
#[derive(Debug)]
pub(super) struct Journal {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What became of entries.
pub(super) enum Recorded {
    /// They are not safe yet.
    Waiting,
    Safe,
    /// The journal is closed.
    Failed,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    tag: u64,
    state: Mutex<State>,
    /// Held by whoever tells the cluster what is done.
    committing: tokio::sync::Mutex<()>,
    /// There is something to append, or something is done.
    work: Notify,
    /// What [`State::safe`] is, or that it will not become more.
    settled: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Events that nobody has begun to append; the last one is that before `next`.
    events: VecDeque<Bytes>,
    next: u64,
    /// Entries before this one are safe.
    safe: u64,
    /// Those from the first on that is not done.
    entries: VecDeque<Progress>,
    position: CommitPosition,
    /// Since when the cluster does not know it.
    unknown_since: Option<Instant>,
    failed: Option<(Kind, String)>,
    minimum_set: u64,
    active_set: u64,
    last_op: u64,
}

#[derive(Debug, Default)]
struct Progress {
    /// The object that it was appended to.
    object: Option<u64>,
    is_done: bool,
}

impl State {
    fn first(&self) -> u64 {
        self.next - self.entries.len() as u64
    }

    fn progress(&mut self, number: u64) -> Option<&mut Progress> {
        let at = number.checked_sub(self.first())?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }
}

impl Journal {
    /// Opens the journal of an image whose lock we have, and does what whoever had it before has left to be done.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] if the image is a mirror; [`Kind::Corrupt`] if what is in the journal cannot be read.
    pub(super) async fn open(image: &Image) -> Result<Self> {
        let place = Place::find(image.pool(), image.id()).await?;
        let client = place.call(&GetJournalClient { id: WRITER.to_owned() }).await?;
        let data = decode(&client.data, "journal client").context(place.header())?;
        let ClientData::Image { tag_class, .. } = data else {
            let what = format!("{}: its writer is none: {data:?}", place.header());
            return Err(Error::new(Kind::Corrupt, what));
        };
        let tag = place.last_tag(tag_class).await?;
        let owner = tag.map(|tag| decode::<TagData>(&tag.data, "journal tag")).transpose();
        if let Some(owner) = owner.context(place.header())?
            && !owner.mirror_uuid.is_empty()
        {
            let what = format!("image {} is a mirror: {}", image.spec(), owner.mirror_uuid);
            return Err(Error::new(Kind::ReadOnly, what).with_hint(
                "it can be written to where it is primary; `rbd mirror image promote`",
            ));
        }
        let (minimum_set, active_set) = place.sets().await?;
        let mut position = client.position;
        let mut player = Player::new(&place, &position, minimum_set, active_set);
        let replayed = player.replay(image, &mut position).await?;
        if replayed > 0 {
            tracing::info!(image = image.spec(), entries = replayed, "replayed the journal");
            let commit = CommitJournal { id: WRITER.to_owned(), position: position.clone() };
            place.call(&commit).await?;
        }
        let last = position.objects.first();
        let data = TagData {
            is_committed: last.is_some(),
            tag: last.map_or(0, |last| last.tag),
            entry: last.map_or(0, |last| last.entry),
            ..TagData::default()
        };
        let tag = place.make_tag(tag_class, &data).await?;
        place.announce();
        let state = State {
            events: VecDeque::new(),
            next: 0,
            safe: 0,
            entries: VecDeque::new(),
            position,
            unknown_since: None,
            failed: None,
            minimum_set,
            active_set,
            last_op: 0,
        };
        let shared = Arc::new(Shared {
            place,
            tag,
            state: Mutex::new(state),
            committing: tokio::sync::Mutex::default(),
            work: Notify::new(),
            settled: watch::Sender::new(()),
        });
        let task = tokio::spawn(append(Arc::clone(&shared), Arc::downgrade(&image.0.inner)));
        Ok(Self { shared, task })
    }

    /// Records a change. It may be done once these entries are safe.
    pub(super) fn record(&self, io: &Io, granularity: u64) -> Range<u64> {
        let longest = ENTRY_BYTES.min(self.shared.place.object_size as usize);
        self.shared.record(events(io, granularity, longest))
    }

    pub(super) fn look(&self, entries: &Range<u64>) -> Recorded {
        let state = self.shared.state();
        match state.failed {
            // What is safe, too: whoever has the journal now replays it.
            Some(_) => Recorded::Failed,
            None if state.safe >= entries.end => Recorded::Safe,
            None => Recorded::Waiting,
        }
    }

    /// What was recorded is done, or is known not to be.
    pub(super) fn done(&self, entries: Range<u64>) {
        let mut state = self.shared.state();
        for number in entries {
            if let Some(progress) = state.progress(number) {
                progress.is_done = true;
            }
        }
        if self.shared.advance(&mut state) {
            self.shared.settled.send_replace(());
        }
    }

    /// Records that an operation begins, once all that was recorded before is done: that is not replayed any more.
    pub(super) fn begin(&self, what: Operation) -> Boxed<'_, Begun<'_>> {
        Box::pin(self.record_begin(what))
    }

    async fn record_begin(&self, what: Operation) -> Result<Begun<'_>> {
        let op = self.shared.next_op();
        let entries = self.shared.record([Event::Begin { op, what }]);
        let first = entries.start;
        // Whatever becomes of this, it ends.
        let begun = Begun { journal: self, op, entries: Some(entries) };
        self.until(|state| state.safe > first).await?;
        let done = self.until(|state| state.first() >= first);
        let late =
            |_| Error::new(Kind::TimedOut, "what is recorded before an operation is not done");
        tokio::time::timeout(PAUSE, done).await.map_err(late)??;
        self.shared.commit().await?;
        Ok(begun)
    }

    /// Records an operation that is done, and of which nothing that is written depends.
    pub(super) fn note(&self, what: Operation) -> Boxed<'_, ()> {
        Box::pin(async move {
            let op = self.shared.next_op();
            let events = [Event::Begin { op, what }, Event::Finish { op, result: 0 }];
            self.ended(self.shared.record(events)).await
        })
    }

    /// Lets the cluster know of an operation that has ended, as soon as that is recorded: else it would be done again.
    async fn ended(&self, entries: Range<u64>) -> Result<()> {
        let end = entries.end;
        self.done(entries);
        self.until(|state| state.safe >= end).await?;
        self.shared.commit().await
    }

    async fn until(&self, is_so: impl Fn(&State) -> bool) -> Result<()> {
        let mut settled = self.shared.settled.subscribe();
        loop {
            match &*self.shared.state() {
                State { failed: Some((kind, why)), .. } => {
                    return Err(Error::new(*kind, why.clone()));
                }
                state if is_so(state) => return Ok(()),
                _ => {}
            }
            let closed = |_| Error::new(Kind::Closed, "the journal is closed");
            settled.changed().await.map_err(closed)?;
        }
    }

    /// Lets the cluster know what is done, once all that was recorded is safe. Nothing is recorded any more.
    pub(super) async fn close(&self) -> Result<()> {
        // What failed is not safe, and will not be.
        let _ = self.until(|state| state.safe == state.next).await;
        match self.shared.commit().await {
            // Somebody has removed it.
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
        self.abandon();
        Ok(())
    }

    /// Nothing is recorded any more, not even what waits for it: the journal is somebody else's.
    pub(super) fn abandon(&self) {
        self.task.abort();
        self.shared.fail(Kind::Closed, "the journal is closed".to_owned());
    }
}

/// An operation that has begun. If it is dropped, it has failed: without an end, librbd would do it at last.
pub(super) struct Begun<'a> {
    journal: &'a Journal,
    op: u64,
    /// Until its end is recorded.
    entries: Option<Range<u64>>,
}

impl Begun<'_> {
    /// Records how it went.
    pub(super) async fn finish(mut self, failed: Option<&Error>) -> Result<()> {
        let result = failed.map_or(0, |error| -error.kind().errno());
        let ended = self.record_end(result);
        self.journal.ended(ended).await
    }

    fn record_end(&mut self, result: i32) -> Range<u64> {
        let end = self.journal.shared.record([Event::Finish { op: self.op, result }]);
        if let Some(begin) = self.entries.take() {
            self.journal.done(begin);
        }
        end
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.entries.is_some() {
            let ended = self.record_end(-EINTR);
            self.journal.done(ended);
        }
    }
}

/// What a change is recorded as.
fn events(io: &Io, granularity: u64, longest: usize) -> Vec<Event> {
    match io {
        Io::Write { offset, data } => {
            let most = longest - ENTRY_OVERHEAD - WRITE_OVERHEAD;
            let parts = (0..data.len()).step_by(most);
            let part = |at: usize| Event::Write {
                offset: offset + at as u64,
                data: data.slice(at..data.len().min(at + most)),
            };
            parts.map(part).collect()
        }
        Io::Discard { offset, length } => {
            let granularity = u32::try_from(granularity).unwrap_or(u32::MAX);
            vec![Event::Discard { offset: *offset, length: *length, granularity }]
        }
        Io::WriteZeroes { offset, length, may_free: false }
            if length % ZEROS.len() as u64 == 0 && *length > 0 =>
        {
            let data = Bytes::from_static(&ZEROS);
            vec![Event::WriteSame { offset: *offset, length: *length, data }]
        }
        Io::WriteZeroes { offset, length, .. } => {
            vec![Event::Discard { offset: *offset, length: *length, granularity: 0 }]
        }
        Io::Read { .. } | Io::Extents { .. } | Io::Flush => Vec::new(),
    }
}

/// Appends what is recorded, and tells the cluster what is done, for as long as the journal is open.
async fn append(shared: Arc<Shared>, image: Weak<Inner>) {
    loop {
        let unknown_since = shared.state().unknown_since;
        if unknown_since.is_some_and(|since| since.elapsed() >= COMMIT_AGE) {
            let committed = match shared.commit().await {
                Ok(()) => shared.trim().await,
                failed => failed,
            };
            if let Err(error) = committed {
                tracing::warn!(%error, "what is done of the journal");
            }
        }
        let batch = shared.next_batch();
        if batch.is_empty() {
            let until = unknown_since.map(|since| since + COMMIT_AGE);
            let work = shared.work.notified();
            match until {
                Some(until) => drop(tokio::time::timeout_at(until, work).await),
                None => work.await,
            }
            continue;
        }
        let appended = shared.append(batch).await;
        let Some(image) = image.upgrade() else { return };
        match appended {
            Ok(()) => {
                shared.settled.send_replace(());
            }
            Err(error) => {
                let error = error.context("the journal");
                match error.kind() {
                    Kind::Fenced | Kind::Closed => image.lost(&error),
                    // Nobody can tell what of it is in the journal: it is read.
                    _ => {
                        tracing::error!(image = image.spec(), %error, "it is opened again");
                        tokio::time::sleep(AGAIN).await;
                        image.reopen_journal();
                    }
                }
                shared.fail(error.kind(), error.to_string());
                return image.current.nudge();
            }
        }
        image.current.nudge();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_op(&self) -> u64 {
        let mut state = self.state();
        state.last_op += 1;
        state.last_op
    }

    /// What is not safe yet will not be.
    fn fail(&self, kind: Kind, why: String) {
        self.state().failed.get_or_insert((kind, why));
        self.settled.send_replace(());
    }

    fn record(&self, events: impl IntoIterator<Item = Event>) -> Range<u64> {
        let time = wall_clock();
        let mut state = self.state();
        let begin = state.next;
        for event in events {
            state.events.push_back(EventEntry { event, time }.to_bytes());
            state.entries.push_back(Progress::default());
            state.next += 1;
        }
        self.work.notify_one();
        begin..state.next
    }

    /// Takes what is to be appended next: entries, by their numbers.
    fn next_batch(&self) -> Vec<(u64, Bytes)> {
        let mut state = self.state();
        let mut number = state.next - state.events.len() as u64;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        // librbd reads no more than twice an object's size.
        let most = BATCH_BYTES.min(self.place.object_size as usize);
        while bytes < most
            && let Some(event) = state.events.pop_front()
        {
            let entry = Entry { tag: self.tag, number, event }.to_bytes();
            bytes += entry.len();
            batch.push((number, entry));
            number += 1;
        }
        batch
    }

    /// Appends entries, and makes them safe.
    async fn append(&self, batch: Vec<(u64, Bytes)>) -> Result<()> {
        let Some(end) = batch.last().map(|(number, _)| number + 1) else { return Ok(()) };
        let mut left = batch;
        while !left.is_empty() {
            let set = self.state().active_set;
            let results = self.append_to_set(set, &left).await;
            let (mut is_over, mut is_full) = (false, false);
            for (turn, result) in (0..).zip(results) {
                match result {
                    Ok(()) => {
                        let mut state = self.state();
                        let object = set * self.place.width + turn;
                        left.retain(|(number, _)| {
                            let is_there = number % self.place.width == turn;
                            if is_there && let Some(progress) = state.progress(*number) {
                                progress.object = Some(object);
                            }
                            !is_there
                        });
                    }
                    Err(error) if error.kind() == Kind::Os(EOVERFLOW) => is_over = true,
                    Err(error) if error.kind() == Kind::Full => {
                        tracing::warn!(%error, "writes wait: the journal cannot be written to");
                        is_full = true;
                    }
                    Err(error) => return Err(error),
                }
            }
            if is_over {
                self.begin_set(set + 1).await?;
            }
            if is_full {
                tokio::time::sleep(AGAIN).await;
            }
        }
        let mut state = self.state();
        state.safe = end;
        // Who recorded some of it may be gone.
        self.advance(&mut state);
        Ok(())
    }

    /// Takes note of entries that are done, with all before them. Whether there were any.
    fn advance(&self, state: &mut State) -> bool {
        let first = state.first();
        while let Some(Progress { is_done: true, object: Some(object) }) = state.entries.front() {
            let done = ObjectPosition { object: *object, tag: self.tag, entry: state.first() };
            advance(&mut state.position, done, self.place.width);
            state.entries.pop_front();
            if state.unknown_since.is_none() {
                state.unknown_since = Some(Instant::now());
                self.work.notify_one();
            }
        }
        state.first() > first
    }

    /// Appends to each object of a set what is for it. What came of that, in the order of objects.
    async fn append_to_set(&self, set: u64, entries: &[(u64, Bytes)]) -> Vec<Result<()>> {
        let width = self.place.width;
        let appends: Vec<_> = (0..width)
            .map(|turn| {
                let mut data = BytesMut::new();
                for (number, entry) in entries {
                    if number % width == turn {
                        data.extend_from_slice(entry);
                    }
                }
                let (object, data) = (self.place.object(set * width + turn), data.freeze());
                let (pool, max) = (self.place.objects.clone(), self.place.object_size);
                tokio::spawn(async move {
                    if data.is_empty() {
                        return Ok(());
                    }
                    let guard = GuardAppend { max };
                    let guard = Op::call(GuardAppend::CLASS, GuardAppend::NAME, guard.input());
                    pool.operate_write(&object, vec![guard, Op::Append { data }]).await.map(drop)
                })
            })
            .collect();
        let mut results = Vec::new();
        for append in appends {
            let closed = |error| Err(Error::new(Kind::Closed, format!("appending: {error}")));
            results.push(append.await.unwrap_or_else(closed));
        }
        results
    }

    async fn begin_set(&self, set: u64) -> Result<()> {
        match self.place.call(&SetActiveSet { set }).await {
            Err(error) if error.kind() != Kind::Os(ESTALE) => return Err(error),
            _ => {}
        }
        self.state().active_set = set;
        self.place.announce();
        Ok(())
    }

    /// Tells the cluster what is done.
    async fn commit(&self) -> Result<()> {
        let _committing = self.committing.lock().await;
        let position = match &*self.state() {
            State { unknown_since: None, .. } => return Ok(()),
            State { position, .. } => position.clone(),
        };
        let commit = CommitJournal { id: WRITER.to_owned(), position: position.clone() };
        let committed = self.place.call(&commit).await;
        {
            let mut state = self.state();
            // What failed is tried again, but not at once.
            let is_known = committed.is_ok() && state.position == position;
            state.unknown_since = (!is_known).then(Instant::now);
        }
        committed?;
        self.place.announce();
        Ok(())
    }

    /// Removes what nobody needs any more.
    async fn trim(&self) -> Result<()> {
        let ours = self.state().position.clone();
        let width = self.place.width;
        let set_of = |position: &CommitPosition| {
            position.objects.iter().map(|position| position.object / width).min()
        };
        let minimum = self.state().minimum_set;
        if set_of(&ours).is_none_or(|set| set <= minimum) {
            return Ok(());
        }
        let (mut needed, mut after) = (self.state().active_set, String::new());
        loop {
            let clients = self.place.call(&ListJournalClients { after, max: PAGE }).await?;
            for client in clients.iter().filter(|client| client.state != DISCONNECTED) {
                // One that has not begun needs everything.
                needed = needed.min(set_of(&client.position).unwrap_or(minimum));
            }
            let is_all = (clients.len() as u64) < PAGE;
            match clients.into_iter().next_back() {
                Some(last) if !is_all => after = last.id,
                _ => break,
            }
        }
        // Writes wait meanwhile: the rest is for the next time.
        for set in (minimum..needed).take(TRIMMED_SETS) {
            self.place.remove_set(set).await?;
            match self.place.call(&SetMinimumSet { set: set + 1 }).await {
                Err(error) if error.kind() != Kind::Os(ESTALE) => return Err(error),
                _ => self.state().minimum_set = set + 1,
            }
        }
        Ok(())
    }
}
