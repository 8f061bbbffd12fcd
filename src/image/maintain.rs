//! What only the owner of the exclusive lock may do: done here if that is us, or if there is no such lock; asked of the
//! owner if it is somebody else; and done for others who ask us (`src/librbd/Operations.cc`, `ImageWatcher.cc`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::rbd::journal::Operation;
use proto::rbd::notify::snap_create::SKIP_QUIESCE;
use proto::rbd::notify::{self, Maintenance, Notice, RequestId};
use proto::rbd::{Features, names};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::admin::{self, ERESTART, Notes, Progress};
use super::lock::{Tried, Use};
use super::{Boxed, Image, Inner, header, live};
use crate::error::{Error, Kind, Result};
use crate::pool::Acknowledgement;

/// How long an owner may be silent about what it was asked to do (librbd's `rbd_request_timed_out_seconds`).
const SILENCE: Duration = Duration::from_secs(30);

/// How long to wait before an owner is looked for again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long the lock may go from hand to hand without anybody doing what is asked.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often those who asked are told how far it is.
const TELL: Duration = Duration::from_millis(500);

/// How many requests that are done are remembered, should they be sent again.
const REMEMBERED: usize = 64;

const EOPNOTSUPP: i32 = 95;

/// What was asked of the owner, and what we do for others.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) last: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Ours.
    asked: BTreeMap<RequestId, mpsc::UnboundedSender<Event>>,
    /// Others'.
    under_way: BTreeSet<RequestId>,
    done: VecDeque<(RequestId, i32)>,
}

/// What becomes of something that was asked of the owner.
#[derive(Debug)]
enum Event {
    Progress(u64, u64),
    Done(i32),
    /// The owner is another one now.
    Moved,
}

/// What came of asking.
enum Asked {
    Done(Result<()>),
    /// Nobody does it: it is to be asked again.
    Nobody,
    /// The owner has begun it, and handed the lock on.
    Begun,
}

impl Requests {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner tells of a request of ours.
    pub(super) fn progress(&self, id: RequestId, done: u64, total: u64) {
        self.tell(id, Event::Progress(done, total));
    }

    /// The owner is done with a request of ours.
    pub(super) fn complete(&self, id: RequestId, result: i32) {
        self.tell(id, Event::Done(result));
    }

    fn tell(&self, id: RequestId, event: Event) {
        if let Some(asked) = self.table().asked.get(&id) {
            let _ = asked.send(event);
        }
    }

    /// The owner is another one: it knows nothing of what the one before was asked.
    pub(super) fn owner_changed(&self) {
        for asked in self.table().asked.values() {
            let _ = asked.send(Event::Moved);
        }
    }
}

impl Image {
    /// Does something that only the owner of the exclusive lock may do: here, if nobody has the lock or we do,
    /// otherwise by asking the owner.
    ///
    /// Dropping the future does not take back what the owner was asked.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] if the image was opened so; whatever goes wrong here or there.
    pub async fn maintain(&self, what: &Maintenance, progress: Progress<'_>) -> Result<()> {
        if self.0.read_only {
            let what = format!("image {} is open for reading only", self.spec());
            return Err(Error::new(Kind::ReadOnly, what));
        }
        self.maintain_boxed(what, progress).await
    }

    fn maintain_boxed<'a>(
        &'a self,
        what: &'a Maintenance,
        progress: Progress<'a>,
    ) -> Boxed<'a, ()> {
        Box::pin(self.pause_and_have_done(what, progress))
    }

    async fn pause_and_have_done(&self, what: &Maintenance, progress: Progress<'_>) -> Result<()> {
        let Maintenance::SnapCreate { namespace, name, flags } = what else {
            return self.have_done(what, progress).await;
        };
        // Before the lock is looked at: whoever pauses may need it to write out what is cached.
        let paused = self.have_pause(*flags, progress).await?;
        let (namespace, name) = (namespace.clone(), name.clone());
        let what = Maintenance::SnapCreate { namespace, name, flags: flags | SKIP_QUIESCE };
        let done = self.have_done(&what, progress).await;
        self.let_go_on(paused).await;
        done
    }

    /// Does it here, or has the lock's owner do it.
    async fn have_done(&self, what: &Maintenance, progress: Progress<'_>) -> Result<()> {
        let mut id = self.0.next_request();
        let mut heard = Instant::now();
        let mut asked = false;
        loop {
            if !self.header().features.contains(Features::EXCLUSIVE_LOCK) {
                return self.perform(what, progress).await;
            }
            let mut telling = |done, total| {
                heard = Instant::now();
                progress(done, total);
            };
            let owner = match self.0.inner.try_lock().await? {
                Tried::Ours(usage) => {
                    let done = self.perform(what, &mut telling).await;
                    if matches!(&done, Err(error) if error.kind() == Kind::Os(ERESTART)) {
                        // Another client gets the lock, and is asked for the rest.
                        drop(usage);
                        asked = true;
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                    // Whoever was asked before may have done it, and not lived to tell.
                    return if asked { done_before(what, done) } else { done };
                }
                Tried::Theirs(owner) => owner,
            };
            if let Some(refused) = owner.refuses(&self.spec()) {
                return Err(refused);
            }
            match self.0.ask_for(what, id, &mut telling).await? {
                // One of before Quincy.
                Asked::Done(Err(error))
                    if error.kind() == Kind::Unsupported
                        && matches!(what, Maintenance::UpdateMetadata { .. }) =>
                {
                    return self.perform(what, progress).await;
                }
                Asked::Done(done) => {
                    self.refresh().await?;
                    return if asked { done_before(what, done) } else { done };
                }
                Asked::Nobody if heard.elapsed() > PATIENCE => {
                    let what = format!(
                        "image {}: {owner} has the exclusive lock and does not do what is asked",
                        self.spec()
                    );
                    return Err(Error::new(Kind::TimedOut, what));
                }
                // By that number the owner would know only that it was begun.
                Asked::Begun => (asked, id) = (true, self.0.next_request()),
                Asked::Nobody => asked = true,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Does it here. The image's journal, if there is one, knows of it then. What writes depend on it has to know
    /// before: those operations see to that.
    async fn perform(&self, what: &Maintenance, progress: Progress<'_>) -> Result<()> {
        let operation = self.operation(what).await?;
        self.perform_unrecorded(what, progress).await?;
        if let Some(operation) = operation {
            admin::note(self, operation).await;
        }
        Ok(())
    }

    /// What the journal has to know of something that writes need not wait for.
    async fn operation(&self, what: &Maintenance) -> Result<Option<Operation>> {
        let features = self.header().features;
        if !features.contains(Features::JOURNALING) {
            return Ok(None);
        }
        Ok(Some(match what.clone() {
            Maintenance::Flatten => Operation::Flatten,
            Maintenance::SnapRemove { namespace, name } => Operation::SnapRemove(namespace, name),
            Maintenance::SnapRename { snap, name } => {
                let old = header::snapshot(self.pool(), self.id(), snap).await?.name;
                Operation::SnapRename { snap, old, new: name }
            }
            Maintenance::SnapProtect { namespace, name } => Operation::SnapProtect(namespace, name),
            Maintenance::SnapUnprotect { namespace, name } => {
                Operation::SnapUnprotect(namespace, name)
            }
            Maintenance::Rename { name } => Operation::Rename(name),
            Maintenance::UpdateMetadata { key, value: Some(value) } => {
                Operation::MetadataSet(key, value)
            }
            Maintenance::UpdateMetadata { key, value: None } => Operation::MetadataRemove(key),
            // That of the journal itself goes with it.
            Maintenance::UpdateFeatures { features, enable }
                if !Features(features).contains(Features::JOURNALING) =>
            {
                Operation::UpdateFeatures(features, enable)
            }
            _ => return Ok(None),
        }))
    }

    async fn perform_unrecorded(&self, what: &Maintenance, progress: Progress<'_>) -> Result<()> {
        match what {
            Maintenance::Resize { size, may_shrink } => {
                admin::resize(self, *size, *may_shrink, progress).await
            }
            Maintenance::Flatten => admin::flatten(self, progress).await,
            Maintenance::SnapCreate { namespace, name, flags } => {
                let paused = self.have_pause(*flags, progress).await?;
                let taken = admin::create_snapshot(self, namespace, name).await;
                self.let_go_on(paused).await;
                taken.map(drop)
            }
            Maintenance::SnapRemove { namespace, name } => {
                let snap = admin::find_snapshot(self, namespace, name).await?.id;
                admin::remove_snapshot(self, snap).await
            }
            Maintenance::SnapRename { snap, name } => {
                admin::rename_snapshot(self, *snap, name).await
            }
            Maintenance::SnapProtect { name, .. } => admin::protect_snapshot(self, name).await,
            Maintenance::SnapUnprotect { name, .. } => admin::unprotect_snapshot(self, name).await,
            Maintenance::Rename { name } => {
                // It may have another one than when it was opened.
                let now = header::image_name(self.pool(), self.id()).await?;
                admin::rename(self.pool(), &now, name).await
            }
            Maintenance::UpdateMetadata { key, value: Some(value) } => {
                Notes::Image(self.id()).set(self.pool(), key, value).await?;
                // It may be a setting.
                admin::announce(self).await
            }
            Maintenance::UpdateMetadata { key, value: None } => {
                Notes::Image(self.id()).remove(self.pool(), key).await?;
                admin::announce(self).await
            }
            Maintenance::UpdateFeatures { features, enable } => {
                admin::update_features(self, Features(*features), *enable).await
            }
            Maintenance::RebuildObjectMap => admin::rebuild_object_map(self, progress).await,
            other => Err(Error::new(
                Kind::Unsupported,
                format!("image {}: not built yet: {other:?}", self.spec()),
            )),
        }
    }
}

/// A second attempt finds what the first did.
fn done_before(what: &Maintenance, done: Result<()>) -> Result<()> {
    let expected = match what {
        Maintenance::SnapCreate { .. } | Maintenance::Rename { .. } => Kind::Exists,
        Maintenance::SnapRename { .. } => Kind::Exists,
        Maintenance::SnapRemove { .. } => Kind::NotFound,
        Maintenance::SnapProtect { .. } => Kind::Busy,
        Maintenance::SnapUnprotect { .. }
        | Maintenance::Flatten
        | Maintenance::UpdateFeatures { .. } => Kind::Invalid,
        _ => return done,
    };
    match done {
        Err(error) if error.kind() == expected => Ok(()),
        done => done,
    }
}

impl Inner {
    /// A number for something that is asked of the owner.
    fn next_request(&self) -> RequestId {
        let number = self.requests.last.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { client: self.client_id(), number }
    }

    /// Asks the owner, and waits until it is done.
    async fn ask_for(
        &self,
        what: &Maintenance,
        id: RequestId,
        progress: Progress<'_>,
    ) -> Result<Asked> {
        let (sender, mut events) = mpsc::unbounded_channel();
        self.requests.table().asked.insert(id, sender);
        let done = self.ask_and_wait(what, id, &mut events, progress).await;
        self.requests.table().asked.remove(&id);
        done
    }

    async fn ask_and_wait(
        &self,
        what: &Maintenance,
        id: RequestId,
        events: &mut mpsc::UnboundedReceiver<Event>,
        progress: Progress<'_>,
    ) -> Result<Asked> {
        let failed = |errno: i32| {
            let what = format!("image {}: the owner of its exclusive lock", self.spec());
            Asked::Done(Err(Error::from_errno(errno, what)))
        };
        let outcome = |errno: i32| match errno {
            0 => Asked::Done(Ok(())),
            errno if errno == -ERESTART => Asked::Begun,
            errno if errno == -Kind::TimedOut.errno() => Asked::Nobody,
            errno => failed(errno),
        };
        match self.ask_owner(&Notice::Request(what.clone(), Some(id))).await? {
            None => return Ok(Asked::Nobody),
            Some(errno) if errno < 0 => return Ok(outcome(errno)),
            Some(_) => {}
        }
        loop {
            match tokio::time::timeout(SILENCE, events.recv()).await {
                Ok(Some(Event::Progress(done, total))) => progress(done, total),
                Ok(Some(Event::Done(errno))) => return Ok(outcome(errno)),
                Ok(Some(Event::Moved) | None) | Err(_) => return Ok(Asked::Nobody),
            }
        }
    }

    /// Somebody asks the owner of the lock for something. It is acknowledged when it is done or, if it has an id, at
    /// once: then its completion is told to all.
    pub(super) fn requested(
        self: &Arc<Self>,
        what: Maintenance,
        id: Option<RequestId>,
        ack: Acknowledgement,
    ) {
        // It is about to be removed: what was done to it now would be lost with it.
        if !self.follows_parent && self.lock.is_held() {
            return ack.send(notify::response(-Kind::Busy.errno()));
        }
        let image = self.open.get().and_then(std::sync::Weak::upgrade).map(Image);
        // While the journal is read, it is nobody's yet.
        let is_ready = !matches!(self.current.get().journal, live::Journal::Closed(_));
        let usage = (self.lock.is_held() && is_ready).then(|| Use::new(self));
        let (Some(image), Some(usage)) = (image, usage) else {
            return ack.send(bytes::Bytes::new());
        };
        let Some(id) = id else {
            tokio::spawn(async move {
                let result = image.serve(&what, None).await;
                ack.send(notify::response(result));
                drop(usage);
            });
            return;
        };
        match self.begin(id) {
            Begun::Ours => ack.send(notify::response(-ERESTART)),
            Begun::Done(result) => ack.send(notify::response(result)),
            Begun::UnderWay => ack.send(notify::response(0)),
            Begun::New => {
                ack.send(notify::response(0));
                tokio::spawn(async move {
                    let result = image.serve(&what, Some(id)).await;
                    image.0.finish(id, result);
                    // Whoever waits for the lock has it when it is asked for the rest.
                    let usage = (result != -ERESTART).then_some(usage);
                    image.0.tell_complete(id, result).await;
                    drop(usage);
                });
            }
        }
    }

    fn begin(&self, id: RequestId) -> Begun {
        if id.client == self.client_id() {
            return Begun::Ours;
        }
        let mut table = self.requests.table();
        if let Some((_, result)) = table.done.iter().find(|(done, _)| *done == id) {
            return Begun::Done(*result);
        }
        if table.under_way.insert(id) { Begun::New } else { Begun::UnderWay }
    }

    fn finish(&self, id: RequestId, result: i32) {
        let mut table = self.requests.table();
        table.under_way.remove(&id);
        // Who asks again with the same number, when the lock is ours again, wants it done.
        if result == -ERESTART {
            return;
        }
        table.done.push_back((id, result));
        if table.done.len() > REMEMBERED {
            table.done.pop_front();
        }
    }

    async fn tell_complete(&self, id: RequestId, result: i32) {
        let notice = Notice::Complete { id, result };
        if let Err(error) = self.pool.notify(&names::header(&self.id), notice.encode()).await {
            tracing::warn!(image = self.spec(), %error, "telling that a request is done");
        }
    }
}

/// Whether a request is to be begun.
enum Begun {
    New,
    UnderWay,
    Done(i32),
    /// We asked for it ourselves, before we had the lock.
    Ours,
}

impl Image {
    /// Does what another client asked for: 0 or a negative errno.
    async fn serve(&self, what: &Maintenance, id: Option<RequestId>) -> i32 {
        tracing::info!(image = self.spec(), ?what, "another client asks for it");
        let header = names::header(self.id());
        let mut told: Option<Instant> = None;
        let mut progress = |done, total| {
            let Some(id) = id else { return };
            if told.is_none_or(|told| told.elapsed() >= TELL) {
                told = Some(Instant::now());
                self.pool().announce(&header, Notice::Progress { id, done, total }.encode());
            }
        };
        match self.perform(what, &mut progress).await {
            Ok(()) => 0,
            Err(error) if error.kind() == Kind::Os(ERESTART) => {
                tracing::info!(image = self.spec(), %error, "others go on with it");
                -ERESTART
            }
            Err(error) => {
                tracing::warn!(image = self.spec(), %error, "for another client");
                match error.kind() {
                    Kind::Unsupported => -EOPNOTSUPP,
                    kind => -kind.errno(),
                }
            }
        }
    }
}
