//! A client of a Ceph cluster: logs in, keeps the maps, and carries operations to the OSDs and back.
//!
//! Everything it knows is in [`state`], behind one lock that is never held across an await. One task per connection
//! moves bytes ([`crate::net`]); one supervises. Who submits operations only encodes them into the send buffers of the
//! right connections, and writes these itself when it has submitted all it has ([`Cluster::kick`]); whoever receives
//! replies puts the results where they are waited for: no task and no channel per operation.

mod budget;
mod completion;
mod login;
mod state;
mod status;
mod tasks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use proto::mon::Mon;
use proto::msg::mon::{PoolOpReply, pool_op};
use proto::msg::object::Locator;
use proto::msg::osd_op::{Operation, Reply, flag};
use proto::msg::watch::WatchNotify;
use proto::objecter::{OpError, SlowOp, WatchEvent};
use proto::osdmap::OsdMap;
use proto::types::{Epoch, Fsid, Instant, PoolId, SnapId, UTime};
use tokio::sync::{Notify, mpsc, oneshot};

pub(crate) use self::budget::Budget;
use self::budget::Share;
pub(crate) use self::completion::Inbox;
use self::completion::Waiter;
pub use self::state::CommandOutput;
use self::state::State;
pub use self::status::{Session, Status};
use crate::config::{Config, ReadFrom};
use crate::error::{Context as _, Error, Kind, Result};
use crate::net::Machine;
pub use crate::net::{Connecting, Stream, Surroundings};

/// A client of a cluster. Cheap to clone; when the last clone is dropped, its connections are closed.
///
/// Every future of its methods may be dropped: [`Cluster::connect`] leaves nothing behind, and a command that was sent
/// may be run nevertheless.
#[derive(Clone)]
pub struct Cluster(Arc<Handle>);

/// Closes the client when nobody uses it any more.
struct Handle {
    shared: Arc<Shared>,
    entity: String,
}

/// What the tasks and the users of a client share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// There is no room for another operation: a hint for those who would ask for each.
    full: AtomicBool,
    /// Who may answer reads where nobody says otherwise, as flags of operations.
    read_flags: AtomicU32,
    /// What this client has in flight of what the process may have.
    share: Share,
    /// The supervisor has something to do.
    changed: Notify,
    origin: tokio::time::Instant,
    surroundings: Arc<dyn Surroundings>,
}

impl Shared {
    fn now(&self) -> Instant {
        Instant(self.origin.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held cannot have left half a change that matters more than going on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then sends what is to be sent, delivers results, and wakes whoever has to act.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.settle(&|| self.now(), false, change)
    }

    /// The same, by who has looked at the clock.
    fn with_at<T>(&self, now: Instant, change: impl FnOnce(&mut State) -> T) -> T {
        self.settle(&|| now, false, change)
    }

    /// Sends what was submitted, without waiting for the tasks of connections to get their turn.
    fn kick(&self) {
        self.settle(&|| self.now(), true, |_| ());
    }

    fn settle<T>(
        &self,
        now: &dyn Fn() -> Instant,
        send: bool,
        change: impl FnOnce(&mut State) -> T,
    ) -> T {
        let (result, supervise, roomy) = {
            let mut state = self.lock();
            let result = change(&mut state);
            let supervise = state.settle(now);
            state.send_queued(send);
            (result, supervise, self.account(&mut state))
        };
        for waker in roomy {
            waker.wake();
        }
        if supervise {
            self.changed.notify_one();
        }
        result
    }
}

/// What others look at without the lock.
impl Shared {
    /// Publishes it, and returns who can go on.
    fn account(&self, state: &mut State) -> Vec<Waker> {
        let objecter = &state.objecter;
        self.full.store(!objecter.has_room(), Ordering::Relaxed);
        // The monitors' options may have changed.
        self.read_flags.store(read_flags(state.config.read_from), Ordering::Relaxed);
        self.share.set(objecter.in_flight() as u64, objecter.bytes_in_flight());
        state.take_room_waiters()
    }

    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.full.load(Ordering::Relaxed) {
            let mut state = self.lock();
            if !state.objecter.has_room() {
                state.wait_for_room(cx.waker());
                return Poll::Pending;
            }
        }
        self.share.poll_room(cx)
    }
}

/// Who may answer reads, as flags of operations.
pub(crate) fn read_flags(from: ReadFrom) -> u32 {
    match from {
        ReadFrom::Primary => 0,
        ReadFrom::Balance => flag::BALANCE_READS,
        ReadFrom::Localize => flag::LOCALIZE_READS,
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.with(State::close);
        self.shared.changed.notify_one();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("entity", &self.entity()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Logs in, and waits for the first OSD map. Tasks are spawned on the current tokio runtime.
    ///
    /// # Errors
    /// No monitor answers in `client_mount_timeout`, none of them lets us in, or the configuration lacks something: the
    /// text says which.
    pub async fn connect(config: Config) -> Result<Self> {
        Self::connect_in(Arc::new(Machine), config).await
    }

    /// The same, in other surroundings than this machine's.
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    pub async fn connect_in(surroundings: Arc<dyn Surroundings>, config: Config) -> Result<Self> {
        let mon = login::mon_config(&config).await?;
        let origin = tokio::time::Instant::now();
        let mon = Mon::new(Instant::default(), mon, surroundings.entropy());
        let nonce = random(&*surroundings);
        let entity = config.name.clone();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(mon, surroundings.entropy(), nonce, config)),
            full: AtomicBool::new(false),
            read_flags: AtomicU32::new(0),
            share: Share::default(),
            changed: Notify::new(),
            origin,
            surroundings,
        });
        tokio::spawn(tasks::supervise(Arc::clone(&shared)));
        let cluster = Self(Arc::new(Handle { shared, entity }));
        // It comes after the options that the monitors have for us, if they have any: nobody waits for those.
        cluster.wait_for_map(Epoch(1)).await?;
        Ok(cluster)
    }

    /// How this client is configured now: the monitors' options may change.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.0.shared.lock().config)
    }

    /// Who may answer reads now, as flags of operations, where an image does not say otherwise.
    #[inline]
    pub(crate) fn read_flags(&self) -> u32 {
        self.0.shared.read_flags.load(Ordering::Relaxed)
    }

    /// Who we are: `client.admin`.
    pub fn entity(&self) -> &str {
        &self.0.entity
    }

    /// The cluster's identity.
    pub fn fsid(&self) -> Fsid {
        self.with_map(|map| map.fsid).unwrap_or_default()
    }

    /// The number that the monitors gave this client.
    pub fn global_id(&self) -> u64 {
        self.0.shared.lock().mon.global_id()
    }

    /// A random number.
    pub(crate) fn random(&self) -> u32 {
        random(&*self.0.shared.surroundings)
    }

    /// Looks at the current OSD map; `None` before there is one.
    pub fn with_map<T>(&self, look: impl FnOnce(&OsdMap) -> T) -> Option<T> {
        self.0.shared.lock().objecter.map().map(look)
    }

    /// Waits until the OSD map is as new as the monitors' newest.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] if no monitor answers in `client_mount_timeout`.
    pub async fn refresh_map(&self) -> Result<()> {
        let (sender, newest) = oneshot::channel();
        self.0.shared.with(|state| state.ask_newest(Some(sender)));
        let newest = self.patiently("the newest OSD map", newest).await?;
        self.wait_for_map(newest).await
    }

    /// Waits for an OSD map of at least this epoch.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] if it does not come in `client_mount_timeout`.
    pub async fn wait_for_map(&self, epoch: Epoch) -> Result<()> {
        let (sender, there) = oneshot::channel();
        self.0.shared.with(|state| state.wait_for_map(epoch, sender));
        self.patiently(&format!("OSD map {epoch}"), there).await
    }

    /// Waits for what a monitor has to bring, but not for ever.
    async fn patiently<T>(&self, what: &str, waiter: oneshot::Receiver<T>) -> Result<T> {
        let limit = self.config().mount_timeout;
        // The monitor client gives up at the same moment, and can say more: it may speak first.
        match tokio::time::timeout(limit + Duration::from_secs(1), waiter).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(Error::new(
                Kind::TimedOut,
                format!("the monitors did not bring {what} within {} s", limit.as_secs()),
            )),
        }
    }

    /// Runs a command on the monitors: JSON, as `ceph` sends it.
    ///
    /// # Errors
    /// What the monitors answer; [`Kind::TimedOut`] after `rados_mon_op_timeout`, if that is set.
    pub async fn command(&self, json: impl Into<String>) -> Result<CommandOutput> {
        let (sender, done) = oneshot::channel();
        self.0.shared.with(|state| state.command(json.into(), sender));
        let limit = self.config().mon_op_timeout.unwrap_or(Duration::MAX);
        match tokio::time::timeout(limit, done).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(Error::new(
                Kind::TimedOut,
                format!("no monitor answered the command within {} s", limit.as_secs()),
            )),
        }
    }

    /// A fresh number for a snapshot of objects in a pool.
    ///
    /// # Errors
    /// What the monitors answer.
    pub(crate) async fn allocate_snap(&self, pool: PoolId) -> Result<SnapId> {
        let reply = self.pool_op(pool, pool_op::CREATE_UNMANAGED_SNAP, SnapId(0)).await?;
        let id = reply.data.unwrap_or_default();
        proto::denc::decode(&id, "snapshot id").context("the monitors' new snapshot id")
    }

    /// Gives the number of a snapshot up: what objects keep for it alone goes, in time.
    ///
    /// # Errors
    /// What the monitors answer.
    pub(crate) async fn release_snap(&self, pool: PoolId, snap: SnapId) -> Result<()> {
        self.pool_op(pool, pool_op::DELETE_UNMANAGED_SNAP, snap).await.map(drop)
    }

    async fn pool_op(&self, pool: PoolId, op: u32, snap: SnapId) -> Result<PoolOpReply> {
        let (sender, done) = oneshot::channel();
        self.0.shared.with(|state| state.pool_op(pool, op, snap, sender));
        let limit = self.config().mon_op_timeout.unwrap_or(Duration::MAX);
        let reply = match tokio::time::timeout(limit, done).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => return Err(self.closed()),
            Err(_) => {
                let what = format!("no monitor worked on the pool within {} s", limit.as_secs());
                return Err(Error::new(Kind::TimedOut, what));
            }
        };
        if reply.result != 0 {
            let what = format!("the monitors refuse a snapshot of pool {pool}");
            return Err(Error::from_errno(reply.result, what));
        }
        self.wait_for_map(reply.epoch).await?;
        Ok(reply)
    }

    /// Carries out an operation. Its reply may still be an error of the OSD's.
    ///
    /// Dropping the future does not take the operation back.
    pub(crate) async fn execute(&self, mut operation: Operation) -> Result<Reply> {
        let (sender, result) = oneshot::channel();
        if operation.writes() {
            operation.mtime = wall_clock();
        }
        let now = self.0.shared.now();
        self.0.shared.with_at(now, |state| state.submit(now, operation, Waiter::One(sender)));
        match result.await {
            Ok(result) => result.map_err(op_error),
            Err(_) => Err(self.closed()),
        }
    }

    /// Sends an operation whose result nobody waits for.
    pub(crate) fn send(&self, mut operation: Operation) {
        let (sender, _) = oneshot::channel();
        operation.mtime = wall_clock();
        let now = self.0.shared.now();
        self.0.shared.with_at(now, |state| state.submit(now, operation, Waiter::One(sender)));
    }

    /// Watches an object. Returns the watch's cookie and what happens to it; the receiver ends when nothing more will.
    pub(crate) fn watch(
        &self,
        locator: Locator,
        object: &str,
        timeout: Duration,
    ) -> (u64, mpsc::Receiver<WatchEvent>) {
        let now = self.0.shared.now();
        self.0.shared.with_at(now, |state| state.watch(now, locator, object, timeout))
    }

    /// A cookie for a notification, and its completion.
    pub(crate) fn expect_completion(&self) -> (u64, oneshot::Receiver<WatchNotify>) {
        let (sender, complete) = oneshot::channel();
        (self.0.shared.lock().expect_completion(sender), complete)
    }

    /// Does without what happens to a watch.
    pub(crate) fn forget_watch(&self, cookie: u64) {
        self.0.shared.with(|state| state.forget_watch(cookie));
    }

    /// Puts an operation into the table; its result goes to the inbox with the token. It is sent with the next
    /// [`Cluster::kick`].
    pub(crate) fn submit(&self, operation: Operation, inbox: &Arc<Inbox>, token: u64) {
        let shared = &self.0.shared;
        let now = shared.now();
        let mut state = shared.lock();
        state.submit(now, operation, Waiter::Batch(Arc::clone(inbox), token));
        if !state.objecter.has_room() {
            shared.full.store(true, Ordering::Relaxed);
        }
    }

    /// Ready if this client and the process may have another operation in flight (`objecter_inflight_ops`,
    /// `objecter_inflight_op_bytes`); otherwise the task of `cx` is woken when they may. What is submitted without
    /// asking is carried out nevertheless.
    #[inline]
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.shared.poll_room(cx)
    }

    /// Has nothing more sent before there is an OSD map of this epoch: for whoever fenced another client by it, so that
    /// OSDs know of that before they see what is done next.
    pub fn set_barrier(&self, epoch: Epoch) {
        self.0.shared.with(|state| state.objecter.set_barrier(epoch));
    }

    /// Whether the cluster has fenced this client off. There is no way back.
    pub fn is_fenced(&self) -> bool {
        self.0.shared.lock().objecter.is_fenced()
    }

    /// Sends what was submitted.
    pub(crate) fn kick(&self) {
        self.0.shared.kick();
    }

    /// Operations that have waited longer than this, oldest first.
    pub fn slow_ops(&self, age: Duration) -> Vec<SlowOp> {
        let now = self.0.shared.now();
        self.0.shared.lock().objecter.slow_ops(now, age)
    }

    /// Why nothing works any more.
    pub(crate) fn closed(&self) -> Error {
        self.0.shared.lock().failure()
    }
}

/// Why an operation ended without an answer, as an error of ours.
pub(crate) fn op_error(error: OpError) -> Error {
    let kind = match error {
        OpError::NoPool(_) => Kind::NotFound,
        OpError::TimedOut(_) => Kind::TimedOut,
        OpError::Blocklisted => Kind::Fenced,
        OpError::Full(_) => Kind::Full,
        _ => Kind::Os(5),
    };
    let told = Error::new(kind, error.to_string());
    match error {
        OpError::Blocklisted => told.with_hint(
            "another host took over, or an administrator fenced this one off: `ceph osd blocklist ls` lists it; \
             restart this client to get a new identity",
        ),
        _ => told,
    }
}

fn random(surroundings: &dyn Surroundings) -> u32 {
    let mut bytes = [0; 4];
    surroundings.entropy().fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

/// The time of day, for writes.
pub(crate) fn wall_clock() -> UTime {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().into()
}
