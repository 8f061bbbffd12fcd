//! Watching an image's header, as every client that writes does: so others see that it is in use, and tell it when its
//! size, snapshots or features change (`src/librbd/ImageWatcher.cc`).
//!
//! One task per image that is open for writing, or for reading where others are to see it. It ends with the image.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto::rbd::notify::{self, Notice};
use proto::types::SnapId;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::header::ParentLink;
use super::live::{Refusal, refusal};
use super::parent::{Parent, Shared};
use super::settings::Settings;
use super::{Header, Inner, header};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::{Notification, Watch, WatchEvent};

/// How long to wait before a lost watch is registered again or a header read again, doubled each time, up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// How long writes under way may keep a change from being acknowledged. Whoever notifies waits for less (librbd: 10 s).
const DRAIN: Duration = Duration::from_secs(25);

/// How long settings may take to be read. Whoever notifies of a change waits for us meanwhile (librbd: 10 s).
const SETTINGS: Duration = Duration::from_secs(5);

/// How long the end of the watch may take when the image is closed. An OSD that does not hear of us ends it itself
/// (`osd_client_watch_timeout`).
const CLOSE: Duration = Duration::from_secs(10);

/// The task that watches.
#[derive(Debug)]
pub(super) struct Watcher {
    /// Dropping it ends the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Spawns the task on the current tokio runtime.
    pub(super) fn spawn(image: Arc<Inner>, watch: Watch) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(follow(image, watch, stopped));
        Self { stop, task }
    }

    /// Ends the watch, and returns when the OSD knows.
    pub(super) async fn close(self) {
        drop(self.stop);
        // It fails if it panicked, which was reported, or if the runtime ends.
        let _ = self.task.await;
    }
}

async fn follow(image: Arc<Inner>, mut watch: Watch, mut stopped: oneshot::Receiver<()>) {
    loop {
        let event = tokio::select! {
            biased;
            _ = &mut stopped => break,
            event = watch.next() => event,
        };
        let goes_on = tokio::select! {
            biased;
            _ = &mut stopped => break,
            goes_on = handle(&image, &mut watch, event) => goes_on,
        };
        if !goes_on {
            return;
        }
    }
    if let Ok(Err(error)) = tokio::time::timeout(CLOSE, watch.close()).await {
        tracing::debug!(%error, "ending a watch");
    }
}

/// False if there is nothing to watch any more.
async fn handle(image: &Arc<Inner>, watch: &mut Watch, event: WatchEvent) -> bool {
    match event {
        WatchEvent::Notify(notification) => {
            answer(image, watch, &notification).await;
            true
        }
        WatchEvent::Lost(error) => {
            image.lock.watching(None);
            tracing::warn!(
                image = image.spec(),
                %error,
                "lost the watch on the image: until it is back, changes of its size, snapshots or features by others \
                 go unnoticed"
            );
            again(image, watch).await
        }
    }
}

async fn answer(image: &Arc<Inner>, watch: &Watch, notification: &Notification) {
    let reply = match Notice::decode(&notification.payload) {
        Ok(Notice::HeaderUpdate) => {
            // Whoever waits for the answer takes it for granted that what is written from now on knows of the change.
            // Without an answer it waits for a while, and goes on.
            match image.refresh().await {
                Ok(()) => notify::response(0),
                Err(error) => {
                    tracing::error!(image = image.spec(), %error, "a change of the image");
                    return;
                }
            }
        }
        Ok(Notice::Request(what, id)) => {
            return image.requested(what, id, watch.acknowledgement(notification.id));
        }
        Ok(Notice::Quiesce(id)) => {
            let answer = watch.acknowledgement(notification.id);
            return image.quiescing.pause(id, |reply| answer.send(reply));
        }
        Ok(Notice::Unquiesce(id)) => {
            // librbd tells of the snapshot only after this; what is written in between would be in it.
            if let Err(error) = image.refresh().await {
                tracing::error!(image = image.spec(), %error, "after a snapshot");
            }
            let answer = watch.acknowledgement(notification.id);
            return image.quiescing.go_on(id, |reply| answer.send(reply));
        }
        Ok(notice) => hear(image, notice).map_or_else(Bytes::new, notify::response),
        Err(error) => {
            tracing::warn!(image = image.spec(), %error, "a notification that makes no sense");
            Bytes::new()
        }
    };
    if let Err(error) = watch.acknowledge(notification.id, reply).await {
        tracing::debug!(image = image.spec(), %error, "acknowledging a notification");
    }
}

/// What to answer, if we are whose answer counts: the owner of the exclusive lock.
fn hear(image: &Arc<Inner>, notice: Notice) -> Option<i32> {
    let ours = image.client_id();
    match notice {
        Notice::AcquiredLock(client) if client != ours => {
            image.requests.owner_changed();
            image.lock.acquired_by(client);
        }
        Notice::ReleasedLock(client) if client != ours => {
            image.requests.owner_changed();
            image.lock.released_by(client);
        }
        Notice::Progress { id, done, total } => image.requests.progress(id, done, total),
        Notice::Complete { id, result } => image.requests.complete(id, result),
        Notice::RequestLock { client, force } if client != ours => {
            return image.lock.requested(force);
        }
        notice => tracing::debug!(image = image.spec(), ?notice, "heard"),
    }
    None
}

/// Watches anew, for as long as it takes, and finds out what was missed. False if the image is gone.
async fn again(image: &Inner, watch: &mut Watch) -> bool {
    let mut wait = RETRY_FIRST;
    loop {
        let result = async {
            watch.renew().await?;
            image.lock.watching(Some(watch.cookie()));
            image.refresh().await
        };
        let error = match result.await {
            Ok(()) => {
                // As loud as the warning that it ends.
                tracing::warn!(image = image.spec(), "watching the image again");
                return true;
            }
            Err(error) => error,
        };
        match error.kind() {
            Kind::NotFound => {
                let why = "it was removed".to_owned();
                tracing::error!(image = image.spec(), why, "the image can no longer be written to");
                let refusal = Refusal { kind: Kind::NotFound, why };
                image.current.change(|live| live.refusal = Some(refusal));
                return false;
            }
            // Whoever waits for the lock would wait for ever.
            Kind::Fenced | Kind::Closed => {
                image.lost(&error);
                return false;
            }
            _ => tracing::warn!(image = image.spec(), %error, "watching the image again"),
        }
        // Writes may wait for the lock, and so for the watch: that we are fenced they must learn at once.
        let until = Instant::now() + wait;
        while Instant::now() < until && !image.pool.cluster().is_fenced() {
            tokio::time::sleep(RETRY_FIRST.min(until - Instant::now())).await;
        }
        wait = (wait * 2).min(RETRY_LAST);
    }
}

impl Inner {
    pub(super) fn spec(&self) -> String {
        header::spec(&self.pool, &self.name)
    }

    /// See [`super::Image::refresh`].
    pub(super) async fn refresh(&self) -> Result<()> {
        if self.read_snap != SnapId::HEAD {
            return Ok(());
        }
        let image = self.spec();
        // What a later one has read is as new as what this one has, or newer.
        let ticket = self.refreshes.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let header = Header::read(&self.pool, &self.id).await.context(&image)?;
        let parent = self.parent_of(&header).await.context(&image)?;
        if self.refreshes.applied.fetch_max(ticket, Ordering::SeqCst) < ticket {
            self.apply(header, parent);
        }
        let settings = self.follow_settings(ticket);
        let (drained, ()) = tokio::join!(self.current.drained(DRAIN), settings);
        drained.context(image)
    }

    /// Those of the pool are in another placement group than the header, which may be out of reach: the header is in
    /// effect before they are read, and whether they can be is no reason to be silent about it.
    async fn follow_settings(&self, ticket: u64) {
        let image = self.spec();
        let read = tokio::time::timeout(SETTINGS, Settings::read(&self.pool, &self.id)).await;
        let settings = match read.unwrap_or_else(|_| Err(Error::new(Kind::TimedOut, "no answer"))) {
            Ok(settings) => settings,
            Err(error) => {
                return tracing::warn!(image, %error, "its settings stay as they were read before");
            }
        };
        if self.refreshes.settled.fetch_max(ticket, Ordering::SeqCst) >= ticket {
            return;
        }
        let old = Arc::clone(&self.current.get().settings);
        if *old == settings {
            return;
        }
        if !self.read_only && old.limits != settings.limits {
            settings.warn(&image);
        }
        self.current.change(|live| live.settings = Arc::new(settings));
    }

    /// The parent that a header names, which is open already unless there is a new one.
    async fn parent_of(&self, header: &Header) -> Result<Shared> {
        let shows = |link: &&ParentLink| link.overlap > 0 && self.follows_parent;
        let Some(link) = header.parent.as_ref().filter(shows) else {
            return Ok(None);
        };
        Ok(Some(match &self.current.get().parent {
            Some(parent) if parent.link == *link => Arc::clone(parent),
            Some(parent) if parent.link.parent == link.parent => {
                Arc::new(Parent { image: parent.image.clone(), link: link.clone() })
            }
            _ => Arc::new(Parent::open(&self.pool, link, 0).await?),
        }))
    }

    fn apply(&self, header: Header, parent: Shared) {
        let (image, old) = (self.spec(), self.current.get());
        if *old.header == header {
            return;
        }
        if old.header.size != header.size {
            let (from, to) = (old.header.size, header.size);
            tracing::info!(image, from, to, "the image has a new size");
        }
        let refusal = refusal(header.features);
        match (&old.refusal, &refusal) {
            (before, Some(now)) if before.as_ref() != Some(now) && !self.read_only => {
                tracing::error!(image, why = now.why, "the image can no longer be written to");
            }
            (Some(_), None) => tracing::info!(image, "the image can be written to again"),
            _ => {}
        }
        self.current.change(|live| {
            live.refusal = refusal;
            live.set_header(header, parent);
        });
        self.lock.look();
    }
}

/// Numbers those who read the header, so that what is older is not taken for newer.
#[derive(Debug, Default)]
pub(super) struct Refreshes {
    begun: AtomicU64,
    /// The last of which the header is in effect, and the last of which the settings are.
    applied: AtomicU64,
    settled: AtomicU64,
}
