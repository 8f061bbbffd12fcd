//! The exclusive lock of an image: one client writes at a time, and hands it over when another asks
//! (`src/librbd/ManagedLock.cc`, `ExclusiveLock.cc`).
//!
//! ```text
//!           a write waits            locked, header and object map read
//!   open ─────────────────► acquiring ─────────────────────► held
//!    ▲                        │   ▲                           │
//!    │          owner lives:  │   │ released, or no answer    │ another asks, or the image is closed:
//!    │          ask for it    ▼   │                           │ writes wait, those under way end
//!    │                      asking ──► refused: writes fail   ▼
//!    └──────────────────────────────────────────────────── released
//! ```
//!
//! One task per image that is open for writing. Whoever owns the lock has a watch on the header, and the lock's cookie
//! names it: an owner without one is dead. It is fenced off before its lock is broken, and what we send after that
//! carries the epoch in which it is, so that no OSD takes anything from it any more.

mod owner;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::rbd::cls::lock::{self, BreakLock, RBD_LOCK, SetCookie, Unlock};
use proto::rbd::notify::{ClientId, Notice, decode_response};
use proto::rbd::{Features, names};
use proto::types::UTime;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

pub(super) use self::owner::fence_off;
pub(crate) use self::owner::{Owner, owner};
use super::admin::address_text;
use super::journal::Journal;
use super::live::{self, Access, Live, Refusal};
use super::object_map::{ObjectMap, OnDisk};
use super::{Image, Inner};
use crate::error::{Context as _, Error, Kind, Result};

/// What all clients that write share (`ManagedLock::WATCHER_LOCK_TAG`).
const TAG: &str = "internal";

/// What the cookie of such a client begins with; the cookie of its watch follows.
const COOKIE: &str = "auto ";

/// How long to wait for an owner that said that it would release (librbd's `client_notify_timeout`).
const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// How long to wait before the next attempt where none was answered.
const AGAIN: Duration = Duration::from_millis(100);

/// How long to wait after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How long writes fail after an owner said that it keeps the lock, before it is asked again.
const REFUSED_FOR: Duration = Duration::from_secs(3);

/// After how long it is looked again whether an image that must not be written to still is like that: of a promotion
/// nobody is told.
const REFUSED_BY_FEATURES: Duration = Duration::from_secs(10);

/// How long those who waited for the lock may take to make use of it before it is handed on.
const USE: Duration = Duration::from_secs(1);

/// How long writes under way may take before it is said that the lock's release waits for them, and again.
const DRAIN: Duration = Duration::from_secs(10);

/// How long whoever asked for the lock has to take it before we try again.
const TURN: Duration = Duration::from_millis(500);

/// How long the release may take when the image is closed. With the end of the watch, less than whoever ends waits for.
const CLOSE: Duration = Duration::from_secs(15);

/// The exclusive lock of an image, as this client knows it without asking.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Locked {
    /// The image has no such feature.
    Never,
    /// This client owns it.
    Ours {
        /// The lock's cookie.
        cookie: String,
        /// Whether the object map can be trusted, if there is one.
        map_valid: Option<bool>,
    },
    /// It does not.
    NotOurs {
        /// The id of the client that last said that it does.
        owner: Option<u64>,
    },
}

/// What whoever wants the lock for more than writing is told.
pub(super) enum Tried {
    /// We have it, and keep it while this is there.
    Ours(Use),
    /// Somebody else has it, and is alive.
    Theirs(Owner),
}

/// Keeps the lock from being handed on.
pub(super) struct Use(Arc<Inner>);

impl Use {
    pub(super) fn new(image: &Arc<Inner>) -> Self {
        image.lock.uses.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(image))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.lock.uses.fetch_sub(1, Ordering::SeqCst);
        self.0.lock.changed.notify_one();
    }
}

/// What the task and those who want the lock share.
#[derive(Debug, Default)]
pub(super) struct Lock {
    state: Mutex<State>,
    /// The task has something to do.
    changed: Notify,
    /// Counts how often another client has taken the lock, or given it back.
    peer: watch::Sender<u64>,
    /// Writes that wait in queues.
    parked: AtomicUsize,
    /// How many want it kept.
    uses: AtomicUsize,
    /// Never to be given away, nor taken from others by asking.
    exclusive: AtomicBool,
    /// The image is being closed.
    closing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Another client asks for it, or the image is being closed.
    requested: bool,
    /// Who wants to know whether it can be had.
    tries: VecDeque<oneshot::Sender<Result<Option<Owner>>>>,
    /// The cookie of our watch, while there is one.
    watch: Option<u64>,
    /// Our lock's cookie, while we own it.
    held: Option<String>,
    /// The object map, while we own the lock and there is one.
    map: Option<Arc<ObjectMap>>,
    /// It may have been taken from us.
    doubted: bool,
    /// Who announced to have it.
    owner: ClientId,
}

impl Lock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write waits for the lock.
    pub(super) fn park(&self) {
        self.parked.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// So many writes wait no more.
    pub(super) fn unpark(&self, count: usize) {
        self.parked.fetch_sub(count, Ordering::SeqCst);
    }

    /// What is known of the lock, for whoever asks how this process is.
    pub(super) fn tell(&self) -> Locked {
        let state = self.state();
        match &state.held {
            Some(cookie) => Locked::Ours {
                cookie: cookie.clone(),
                map_valid: state.map.as_ref().map(|map| map.is_trusted()),
            },
            None if state.owner == ClientId::default() => Locked::NotOurs { owner: None },
            None => Locked::NotOurs { owner: Some(state.owner.gid) },
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.state().held.is_some()
    }

    /// Another client asks for the lock. What to answer, if anything.
    pub(super) fn requested(&self, force: bool) -> Option<i32> {
        let mut state = self.state();
        state.held.as_ref()?;
        if self.exclusive.load(Ordering::Relaxed) && !force {
            return Some(-Kind::ReadOnly.errno());
        }
        state.requested = true;
        self.changed.notify_one();
        Some(0)
    }

    /// Whether the image is being closed: what is done under it is to end soon.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Whether it is to be handed on as soon as can be.
    pub(super) fn is_wanted(&self) -> bool {
        self.state().requested
    }

    /// Another client says that it has the lock.
    pub(super) fn acquired_by(&self, client: ClientId) {
        let mut state = self.state();
        state.owner = client;
        state.doubted = state.held.is_some();
        self.changed.notify_one();
        self.peer.send_modify(|count| *count += 1);
    }

    /// Another client says that it has given it back.
    pub(super) fn released_by(&self, client: ClientId) {
        let mut state = self.state();
        if state.owner == client {
            state.owner = ClientId::default();
        }
        self.peer.send_modify(|count| *count += 1);
    }

    /// Something that only the owner can do was refused.
    pub(super) fn doubt(&self) {
        self.state().doubted = true;
        self.changed.notify_one();
    }

    /// The image has changed: there may be something to do.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    /// Our watch is in effect under this cookie, or lost.
    pub(super) fn watching(&self, cookie: Option<u64>) {
        self.state().watch = cookie;
        self.changed.notify_one();
    }
}

impl Inner {
    /// Who we are to other clients.
    pub(super) fn client_id(&self) -> ClientId {
        let handle = self.lock.state().watch.unwrap_or(0);
        ClientId { gid: self.pool.cluster().global_id(), handle }
    }

    /// Takes the lock if nobody has it, without asking for it.
    pub(super) async fn try_lock(self: &Arc<Self>) -> Result<Tried> {
        let (sender, tried) = oneshot::channel();
        // Before it is asked for, so that it is not handed on in between.
        let usage = Use::new(self);
        self.lock.state().tries.push_back(sender);
        self.lock.changed.notify_one();
        match tried.await {
            Ok(Ok(None)) => Ok(Tried::Ours(usage)),
            Ok(Ok(Some(owner))) => Ok(Tried::Theirs(owner)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(Kind::Closed, format!("image {} is closed", self.spec()))),
        }
    }

    /// Takes the lock and keeps it, whoever asks.
    pub(super) async fn lock_exclusively(self: &Arc<Self>) -> Result<()> {
        self.lock.exclusive.store(true, Ordering::Relaxed);
        self.demand_lock().await.map(drop)
    }

    /// Takes the lock, from whoever has it, for something that cannot be asked of the owner.
    pub(super) async fn demand_lock(self: &Arc<Self>) -> Result<Use> {
        loop {
            let owner = match self.try_lock().await? {
                Tried::Ours(usage) => return Ok(usage),
                Tried::Theirs(owner) => owner,
            };
            if let Some(refused) = owner.refuses(&self.spec()) {
                return Err(refused);
            }
            let mut peer = self.lock.peer.subscribe();
            match self.ask_for_lock().await? {
                Some(0) => drop(tokio::time::timeout(RELEASE_WAIT, peer.changed()).await),
                None => tokio::time::sleep(AGAIN).await,
                Some(_) => {
                    let what = format!("image {} is locked by {owner}, who keeps it", self.spec());
                    return Err(Error::new(Kind::ReadOnly, what));
                }
            }
        }
    }

    /// Asks the owner for the lock. What it answered, if it did.
    async fn ask_for_lock(&self) -> Result<Option<i32>> {
        let notice = Notice::RequestLock { client: self.client_id(), force: false };
        self.ask_owner(&notice).await
    }

    /// Tells all clients something that only the lock's owner has an answer to.
    pub(super) async fn ask_owner(&self, notice: &Notice) -> Result<Option<i32>> {
        let header = names::header(&self.id);
        let replies = self.pool.notify_for_replies(&header, notice.encode()).await?;
        for (_, answer) in replies.unwrap_or_default().answers {
            if let Some(result) = decode_response(&answer).context("an answer")? {
                return Ok(Some(result));
            }
        }
        Ok(None)
    }

    fn announce(&self, notice: &Notice) {
        self.pool.announce(&names::header(&self.id), notice.encode());
    }

    /// Nothing can be written any more.
    pub(super) fn lost(&self, error: &Error) {
        let why = error.to_string();
        tracing::error!(image = self.spec(), why, "the image can no longer be written to");
        let refusal = Refusal { kind: error.kind(), why };
        self.current.change(|live| {
            (live.map, live.denied) = (None, Some(refusal));
            if live.access == Access::Held {
                live.access = Access::Waiting;
            }
        });
        self.abandon_journal();
        let mut state = self.lock.state();
        (state.held, state.map) = (None, None);
        for tried in state.tries.drain(..) {
            let _ = tried.send(Err(Error::new(error.kind(), error.to_string())));
        }
    }

    /// What is recorded and not done is to be done, and what is not recorded to be recorded, once the journal is open
    /// again.
    pub(super) fn reopen_journal(&self) {
        self.current.change(Live::close_journal);
        self.lock.look();
    }

    /// The journal is somebody else's.
    fn abandon_journal(&self) {
        let before = self.current.get();
        if let Some(journal) = before.journal() {
            self.current.change(|live| live.journal = live::Journal::Closed(None));
            journal.abandon();
            self.current.nudge();
        }
    }

    /// The image has another object map now, or none.
    pub(super) fn replace_map(&self, map: Option<Arc<ObjectMap>>) {
        self.lock.state().map.clone_from(&map);
        self.current.change(|live| live.map = map);
    }

    pub(super) fn on_disk_map(&self) -> OnDisk<'_> {
        OnDisk { pool: &self.pool, id: &self.id }
    }
}

/// The task.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Dropping it ends the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Spawns it on the current tokio runtime.
    pub(super) fn spawn(image: Arc<Inner>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = Task { image, asked: None, taking: None, turn: None };
        let task = tokio::spawn(task.run(stopped));
        Self { stop, task }
    }

    /// Gives the lock back, and returns when that is done.
    pub(super) async fn close(self) {
        drop(self.stop);
        // It fails if it panicked, which was reported, or if the runtime ends.
        let _ = self.task.await;
    }
}

struct Task {
    image: Arc<Inner>,
    /// Whom we asked for the lock, and who said that it would release it.
    asked: Option<Owner>,
    /// The cookie under which the lock may be ours, whether we know it or not.
    taking: Option<String>,
    /// Whoever asked for the lock before we released it shall have it before we try again.
    turn: Option<watch::Receiver<u64>>,
}

/// What to do next.
enum Step {
    Wait,
    Acquire,
    Release,
    /// The watch is gone: writes wait.
    Suspend,
    /// The watch is back, under this cookie.
    Resume(u64),
    /// The image has a journal: it is to be read before anything is written, and then written to.
    OpenJournal,
    /// Find out whether the lock is still ours.
    Verify,
}

impl Task {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let step = self.next_step();
            if let Step::Wait = step {
                let refusal = self.image.current.get().refusal.clone();
                let is_for_now = refusal.is_some_and(|refusal| refusal.kind != Kind::NotFound);
                let look_again = async {
                    tokio::time::sleep(REFUSED_BY_FEATURES).await;
                    if let Err(error) = self.image.refresh().await {
                        tracing::debug!(image = self.image.spec(), %error, "looking again");
                    }
                };
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    () = self.image.lock.changed.notified() => {}
                    () = look_again, if is_for_now => {}
                }
                continue;
            }
            // Whatever is awaited may take as long as an OSD is away.
            let done = tokio::select! {
                biased;
                _ = &mut stopped, if !matches!(step, Step::Release) => break,
                done = self.take(step) => done,
            };
            if let Err(error) = done {
                let image = self.image.spec();
                match error.kind() {
                    Kind::Fenced | Kind::Closed => return self.image.lost(&error),
                    _ => tracing::warn!(image, %error, "the exclusive lock"),
                }
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    () = tokio::time::sleep(AFTER_FAILURE) => {}
                }
            }
        }
        // What is done under it for others ends, too: they get the lock, and go on with it.
        self.image.lock.closing.store(true, Ordering::Relaxed);
        self.image.lock.state().requested = true;
        let end = async {
            while self.image.lock.uses.load(Ordering::SeqCst) > 0 {
                self.image.lock.changed.notified().await;
            }
            if self.image.lock.is_held() {
                self.release().await?;
            }
            self.unlock().await
        };
        match tokio::time::timeout(CLOSE, end).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "giving the exclusive lock back"),
            Err(_) => tracing::warn!("the exclusive lock could not be given back in time"),
        }
    }

    fn next_step(&self) -> Step {
        let lock = &self.image.lock;
        let live = self.image.current.get();
        let mut state = lock.state();
        let Some(cookie) = &state.held else {
            // Without a watch everybody would take us for dead.
            let parked = lock.parked.load(Ordering::SeqCst) > 0 && live.access == Access::Waiting;
            let wanted = (parked && live.denied.is_none()) || !state.tries.is_empty();
            return if wanted && state.watch.is_some() { Step::Acquire } else { Step::Wait };
        };
        if live.access == Access::Free {
            return Step::Release;
        }
        let current = state.watch.map(own_cookie);
        match (state.watch, live.access) {
            (None, Access::Held) => return Step::Suspend,
            (None, _) => return Step::Wait,
            (Some(watch), _) if current.as_ref() != Some(cookie) => return Step::Resume(watch),
            (Some(watch), Access::Waiting) => return Step::Resume(watch),
            _ => {}
        }
        if std::mem::take(&mut state.doubted) {
            return Step::Verify;
        }
        let wanted = state.requested && lock.uses.load(Ordering::SeqCst) == 0;
        // One that is to be removed needs no journal.
        let is_used = self.image.follows_parent;
        if matches!(live.journal, live::Journal::Closed(_)) && is_used && !wanted {
            // Nothing is replayed under what is done to the image as a whole: whose end wakes us.
            let is_alone = self.image.operations.try_lock().is_ok();
            return if is_alone { Step::OpenJournal } else { Step::Wait };
        }
        for tried in state.tries.drain(..) {
            let _ = tried.send(Ok(None));
        }
        match wanted {
            true => Step::Release,
            false => Step::Wait,
        }
    }

    async fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Wait => Ok(()),
            Step::Acquire => self.acquire().await,
            Step::Release => self.release().await,
            Step::Suspend => {
                self.image.current.change(|live| live.access = Access::Waiting);
                Ok(())
            }
            Step::Resume(watch) => self.resume(watch).await,
            Step::OpenJournal => self.open_journal().await,
            Step::Verify => self.verify().await,
        }
    }

    async fn acquire(&mut self) -> Result<()> {
        let image = Arc::clone(&self.image);
        if !image.current.get().header.features.contains(Features::EXCLUSIVE_LOCK) {
            // Others have switched it off meanwhile.
            image.refresh().await?;
        }
        if image.current.get().access == Access::Free {
            for tried in image.lock.state().tries.drain(..) {
                let _ = tried.send(Ok(None));
            }
            return Ok(());
        }
        if let Some(mut peer) = self.turn.take() {
            let _ = tokio::time::timeout(TURN, peer.changed()).await;
        }
        let Some(watch) = image.lock.state().watch else { return Ok(()) };
        let Some(owner) = self.take_lock(&own_cookie(watch)).await? else {
            return self.own(watch).await;
        };
        {
            let mut state = image.lock.state();
            for tried in state.tries.drain(..) {
                let _ = tried.send(Ok(Some(owner.clone())));
            }
            state.owner = owner.id();
        }
        match image.lock.parked.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => self.ask(owner).await,
        }
    }

    /// Locks the header. Gives back who has it instead, if that one is alive.
    async fn take_lock(&mut self, cookie: &str) -> Result<Option<Owner>> {
        let image = Arc::clone(&self.image);
        let (pool, id) = (&image.pool, &image.id);
        let header = names::header(id);
        self.taking = Some(cookie.to_owned());
        let take = lock::Lock {
            name: RBD_LOCK.to_owned(),
            kind: lock::EXCLUSIVE,
            cookie: cookie.to_owned(),
            tag: TAG.to_owned(),
            description: String::new(),
            duration: UTime::default(),
            flags: 0,
        };
        loop {
            // Only whom we saw before is broken: another one may have locked it in between.
            let owner = owner(pool, id).await?;
            match pool.call(&header, &take).await {
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == Kind::Exists => return Ok(None),
                Err(error) if error.kind() == Kind::Busy => {}
                Err(error) => return Err(error),
            }
            let Some(owner) = owner else { continue };
            if !owner.automatic || self.is_alive(&owner).await? {
                self.taking = None;
                return Ok(Some(owner));
            }
            self.fence(&owner).await?;
        }
    }

    async fn is_alive(&self, owner: &Owner) -> Result<bool> {
        let watchers = self.image.pool.watchers(&names::header(&self.image.id)).await?;
        Ok(watchers.iter().any(|watcher| {
            Some(watcher.cookie) == owner.watch()
                && address_text(&watcher.addr) == address_text(&owner.addr)
        }))
    }

    /// Keeps a dead owner from writing should it come back to life, then breaks its lock.
    async fn fence(&self, dead: &Owner) -> Result<()> {
        let image = &self.image;
        let (pool, cluster) = (&image.pool, image.pool.cluster());
        if owner(pool, &image.id).await?.as_ref() != Some(dead) {
            return Ok(());
        }
        if dead.client.num as u64 == cluster.global_id() {
            let what = format!("a lock of our own ({}) is left behind", dead.cookie);
            return Err(Error::new(Kind::Invalid, what));
        }
        tracing::warn!(
            image = image.spec(),
            "{dead} has the exclusive lock but does not watch the image: it is fenced off"
        );
        fence_off(cluster, &dead.addr).await.context(dead)?;
        let (client, cookie) = (dead.client, dead.cookie.clone());
        let broken = BreakLock { name: RBD_LOCK.to_owned(), client, cookie };
        match pool.call(&names::header(&image.id), &broken).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks a living owner for the lock, and waits until it has released it.
    async fn ask(&mut self, owner: Owner) -> Result<()> {
        let image = Arc::clone(&self.image);
        if image.lock.exclusive.load(Ordering::Relaxed) {
            return self.refused(&owner).await;
        }
        let mut peer = image.lock.peer.subscribe();
        match image.ask_for_lock().await? {
            // Nobody owns it any more, or the owner is just going over to us or to somebody else.
            None => {
                if self.asked.as_ref() != Some(&owner) && !owner.automatic {
                    tracing::warn!(
                        image = image.spec(),
                        "writes wait: the image is locked by {owner}"
                    );
                }
                self.asked = Some(owner);
                tokio::time::sleep(AGAIN).await;
                Ok(())
            }
            Some(0) => {
                let _ = tokio::time::timeout(RELEASE_WAIT, peer.changed()).await;
                Ok(())
            }
            Some(errno) if errno == -Kind::ReadOnly.errno() => self.refused(&owner).await,
            Some(errno) => Err(Error::from_errno(errno, format!("{owner} was asked for the lock"))),
        }
    }

    /// Writes that wait fail, and so do all others for a while.
    async fn refused(&self, owner: &Owner) -> Result<()> {
        let image = &self.image;
        let why = format!("its exclusive lock is kept by {owner}");
        tracing::error!(image = image.spec(), why, "writes fail");
        self.deny(Kind::ReadOnly, why).await;
        Ok(())
    }

    /// Has writes fail for a while.
    async fn deny(&self, kind: Kind, why: String) {
        let refusal = Refusal { kind, why };
        self.image.current.change(|live| live.denied = Some(refusal.clone()));
        tokio::time::sleep(REFUSED_FOR).await;
        self.image.current.change(|live| {
            live.denied.take_if(|denied| *denied == refusal);
        });
    }

    /// We have the lock: everything that others may have changed is read anew before anything is written.
    async fn own(&mut self, watch: u64) -> Result<()> {
        let image = Arc::clone(&self.image);
        image.lock.state().held = Some(own_cookie(watch));
        self.taking = None;
        let opened = async {
            image.refresh().await?;
            let header = Arc::clone(&image.current.get().header);
            Ok(match header.features.contains(Features::OBJECT_MAP) {
                true => Some(Arc::new(image.on_disk_map().open(&header).await?)),
                false => None,
            })
        };
        let map = match opened.await {
            Ok(map) => map,
            Err(error) => {
                self.unlock().await?;
                return Err(error);
            }
        };
        self.asked = None;
        let id = image.client_id();
        {
            let mut state = image.lock.state();
            (state.requested, state.doubted) = (false, false);
            state.owner = id;
            state.map.clone_from(&map);
        }
        tracing::info!(image = image.spec(), "has the exclusive lock");
        image.current.change(|live| {
            if live.access == Access::Waiting {
                (live.access, live.map) = (Access::Held, map);
            }
        });
        image.announce(&Notice::AcquiredLock(id));
        Ok(())
    }

    /// Opens the journal, which whoever had the lock before may have left full. Writes wait for that; if it fails, they
    /// fail for a while.
    async fn open_journal(&mut self) -> Result<()> {
        let image = Arc::clone(&self.image);
        let Some(open) = image.open.get().and_then(std::sync::Weak::upgrade) else { return Ok(()) };
        let Ok(_alone) = image.operations.try_lock() else { return Ok(()) };
        let opened = async {
            // What was recorded before is done, or is replayed.
            image.current.drained(DRAIN).await?;
            if let Some(before) = image.current.get().journal() {
                before.close().await?;
            }
            Journal::open(&Image(open)).await
        };
        let error = match opened.await {
            Ok(journal) => {
                let journal = Arc::new(journal);
                image.current.change(|live| {
                    if matches!(live.journal, live::Journal::Closed(_)) {
                        live.journal = live::Journal::Open(journal);
                    }
                });
                return Ok(());
            }
            Err(error) => error,
        };
        let told = || Error::new(error.kind(), error.to_string());
        for tried in image.lock.state().tries.drain(..) {
            let _ = tried.send(Err(told()));
        }
        // What passes by itself is waited for.
        let passes = [Kind::Fenced, Kind::Closed, Kind::TimedOut, Kind::Busy, Kind::Full];
        if !passes.contains(&error.kind()) {
            tracing::error!(image = image.spec(), %error, "writes fail: the journal");
            self.deny(error.kind(), format!("its journal: {error}")).await;
            // Whoever mends it needs the lock.
            let is_kept = image.lock.exclusive.load(Ordering::Relaxed);
            if !is_kept && image.lock.uses.load(Ordering::SeqCst) == 0 {
                self.release().await?;
            }
        }
        Err(error)
    }

    /// Hands the lock on when nothing is under way.
    async fn release(&mut self) -> Result<()> {
        let image = Arc::clone(&self.image);
        // Those who waited for it come first, or two busy clients would do nothing but hand it on.
        let begun = tokio::time::Instant::now();
        let usable = || {
            let live = image.current.get();
            let is_open = !matches!(live.journal, live::Journal::Closed(_) | live::Journal::Going);
            live.access == Access::Held && is_open
        };
        while usable() && image.lock.parked.load(Ordering::SeqCst) > 0 && begun.elapsed() < USE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        image.current.change(|live| {
            if live.access == Access::Held {
                (live.access, live.map) = (Access::Waiting, None);
            }
        });
        while let Err(error) = image.current.drained(DRAIN).await {
            tracing::warn!(image = image.spec(), %error, "the exclusive lock is not released yet");
        }
        let (id, peer) = (image.client_id(), image.lock.peer.subscribe());
        // Half released it would be of no use to anybody.
        loop {
            let released = async {
                if let Some(journal) = image.current.get().journal() {
                    journal.close().await.context("the journal")?;
                }
                if image.lock.state().map.is_some() {
                    image.on_disk_map().unlock().await?;
                }
                self.unlock().await
            };
            match released.await {
                Ok(()) => break,
                Err(error) if matches!(error.kind(), Kind::Fenced | Kind::Closed) => {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "releasing the exclusive lock"),
            }
            tokio::time::sleep(AFTER_FAILURE).await;
        }
        image.lock.state().map = None;
        image.current.change(|live| {
            if live.journal().is_some() {
                live.journal = live::Journal::Closed(None);
            }
        });
        self.turn = Some(peer);
        tracing::info!(image = image.spec(), "has released the exclusive lock");
        image.announce(&Notice::ReleasedLock(id));
        Ok(())
    }

    /// Gives the lock of the header back.
    async fn unlock(&mut self) -> Result<()> {
        let image = Arc::clone(&self.image);
        let held = image.lock.state().held.clone();
        let Some(cookie) = held.or_else(|| self.taking.take()) else { return Ok(()) };
        let unlock = Unlock { name: RBD_LOCK.to_owned(), cookie };
        match image.pool.call(&names::header(&image.id), &unlock).await {
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
        let mut state = image.lock.state();
        state.held = None;
        state.requested = false;
        state.owner = ClientId::default();
        Ok(())
    }

    /// The watch is back: the lock has to name the new one. If it was taken from us meanwhile, it is gone.
    async fn resume(&self, watch: u64) -> Result<()> {
        let image = Arc::clone(&self.image);
        let Some(cookie) = image.lock.state().held.clone() else { return Ok(()) };
        let new_cookie = own_cookie(watch);
        if cookie != new_cookie {
            let set = SetCookie {
                name: RBD_LOCK.to_owned(),
                kind: lock::EXCLUSIVE,
                cookie,
                tag: TAG.to_owned(),
                new_cookie: new_cookie.clone(),
            };
            match image.pool.call(&names::header(&image.id), &set).await {
                Ok(_) => image.lock.state().held = Some(new_cookie),
                Err(error) if matches!(error.kind(), Kind::Busy | Kind::NotFound) => {
                    return self.taken().await;
                }
                Err(error) => return Err(error),
            }
        }
        // Not in one statement: both lock the state.
        let id = image.client_id();
        let map = image.lock.state().map.clone();
        image.current.change(|live| {
            if live.access == Access::Waiting {
                (live.access, live.map) = (Access::Held, map);
            }
        });
        image.lock.state().owner = id;
        image.announce(&Notice::AcquiredLock(id));
        Ok(())
    }

    /// Finds out whether the lock is still ours.
    async fn verify(&self) -> Result<()> {
        let image = Arc::clone(&self.image);
        let Some(cookie) = image.lock.state().held.clone() else { return Ok(()) };
        let assert = lock::AssertLocked {
            name: RBD_LOCK.to_owned(),
            kind: lock::EXCLUSIVE,
            cookie,
            tag: TAG.to_owned(),
        };
        match image.pool.call(&names::header(&image.id), &assert).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), Kind::Busy | Kind::NotFound) => self.taken().await,
            Err(error) => Err(error),
        }
    }

    /// Somebody broke the lock without fencing us off. What is under way cannot be taken back any more.
    async fn taken(&self) -> Result<()> {
        let image = &self.image;
        tracing::error!(image = image.spec(), "the exclusive lock was taken from us");
        image.current.change(|live| {
            if live.access == Access::Held {
                live.access = Access::Waiting;
            }
            live.map = None;
        });
        image.abandon_journal();
        let mut state = image.lock.state();
        (state.held, state.map) = (None, None);
        state.requested = false;
        Ok(())
    }
}

fn own_cookie(watch: u64) -> String {
    format!("{COOKIE}{watch}")
}
