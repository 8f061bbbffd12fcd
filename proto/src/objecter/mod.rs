//! The table of operations in flight: what must be sent to whom, again and again until it is answered
//! (Ceph's `src/osdc/Objecter.cc`; `doc/dev/osd_internals/osd_overview.rst`).
//!
//! An operation is in exactly one place:
//!
//! ```text
//!                     no primary, paused, no pool
//!   submit ──target──────────────────────────────► held ──new map──┐
//!              │  ▲                                                │
//!              │  └────────────────────────────────────────────────┘
//!              ▼
//!            queued at an OSD ──session open, no backoff──► sent ──reply──► complete
//!              ▲                                             │
//!              └──── session lost, new interval, unblocked, ─┘
//!                    space again after the pool was full
//! ```
//!
//! From every place it can end without an answer: it was cancelled, took too long, its pool is gone, or this client was
//! blocklisted, after which nothing is let in any more.
//!
//! Inputs are `handle_*`, outputs `poll_*`. The objecter knows no connection: it says "send this to OSD 7", and is told
//! when there is a session with OSD 7 and when it is gone. Operations on one object are sent in the order in which they
//! were submitted, and sent again in that order; the request id never changes, so an OSD applies each at most once.
//!
//! What an OSD has at once is bounded ([`limits::SESSION_BYTES`], [`limits::SESSION_OPS`]): the rest stays queued, so
//! that one OSD that does not read costs no more than that. How much a user may have in flight is for the user to ask
//! ([`Objecter::has_room`]): nothing is refused here.

mod maps;
mod placement;
mod session;
mod stats;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use slab::Slab;
use thiserror::Error;

pub use self::maps::MapError;
pub use self::placement::CrushLocation;
use self::placement::{Location, Placement, Reader, respects_full};
use self::session::Session;
pub use self::session::SessionStatus;
pub use self::stats::{Histogram, OpStats, Stats};
use self::watch::Watch;
pub use self::watch::{WatchError, WatchEvent, WatchStatus};
use crate::limits;
use crate::msg::backoff::{Backoff, BackoffOp};
use crate::msg::object::{HObject, SpgId};
use crate::msg::osd_op::{Operation, Redirect, Reply, ReqId, Request, Routing, flag};
use crate::osdmap::OsdMap;
use crate::types::{
    EntityAddr, EntityAddrs, EntityName, EntityType, Epoch, Instant, OsdId, PgId, PoolId, SnapId,
    Tid,
};

/// Bits of a tid that hold the operation's slot in the table; the others count submissions, so that tids ascend.
const SLOT_BITS: u32 = limits::OPS_IN_FLIGHT.trailing_zeros();

/// `-EAGAIN`: a replica that may not answer yet, or a primary that is not ready to.
const EAGAIN: i32 = -11;

/// `-ENXIO`: an OSD that was told to (`osd_enxio_on_misdirected_op`) says that the object belongs elsewhere.
const ENXIO: i32 = -6;

/// `-EBLOCKLISTED`, which is `-ESHUTDOWN`: an OSD knows that this client is fenced before this client does.
const EBLOCKLISTED: i32 = -108;

/// An operation that waits longer than this makes one ask for newer maps, as its OSD may be gone
/// (`objecter_timeout`); and so on, twice as often.
const LAGGY: Duration = Duration::from_secs(10);

/// A session that nothing was sent on for one to two times this long is closed (`osd_idle_ttl` of the kernel's client).
const IDLE: Duration = Duration::from_secs(60);

/// Why an operation ended without an OSD's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpError {
    /// The pool was deleted.
    #[error("pool {0} does not exist (any more)")]
    NoPool(PoolId),
    /// No answer in the time that was set; what became of the operation is unknown.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// This client was fenced off by the cluster: nothing it sends is applied.
    #[error("this client is blocklisted")]
    Blocklisted,
    /// The pool or the cluster is full, and waiting for space was not wanted ([`Objecter::set_abort_on_full`]).
    #[error("pool {0} is full")]
    Full(PoolId),
    /// [`limits::OPS_IN_FLIGHT`] operations are in the table.
    #[error("too many operations are in flight")]
    TooMany,
}

/// What became of an operation.
pub type OpResult = Result<Reply, OpError>;

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to this OSD; then call [`Objecter::handle_session_open`] or [`Objecter::handle_session_lost`].
    Open {
        /// The OSD.
        osd: OsdId,
        /// Where it is.
        addr: EntityAddr,
    },
    /// The OSD is gone from the map, or has another address: drop the connection.
    Close {
        /// The OSD.
        osd: OsdId,
    },
    /// Answer an OSD's backoff.
    AckBackoff {
        /// The OSD.
        osd: OsdId,
        /// The answer.
        message: Backoff,
    },
    /// Subscribe to OSD maps from this epoch on.
    WantMap {
        /// The first epoch that is missing; 0 for the newest full map.
        start: Epoch,
    },
    /// Ask the monitors for the newest epoch, and call [`Objecter::handle_newest_epoch`].
    WantNewestEpoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// There is nobody to send it to, or the cluster is paused.
    Held,
    /// It waits for a session with its OSD, or for a backoff to end.
    Queued,
    /// It is with its OSD.
    Sent,
}

/// Who gets an operation's result.
#[derive(Debug)]
enum Owner<T> {
    User(T),
    /// The watch with this cookie.
    Watch(u64),
}

/// An operation in the table.
#[derive(Debug)]
struct InFlight<T> {
    routing: Routing,
    operation: Operation,
    owner: Owner<T>,
    place: Place,
    /// Where it was sent or is to be sent. Meaningless while it is held.
    location: Location,
    submitted: Instant,
    /// The bytes that it carries or asks for.
    cost: u64,
    /// It waits for a map of at least this epoch, as an OSD said that it knows better.
    not_before: Epoch,
}

/// What slow-request reports say about an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowOp {
    /// Its number.
    pub tid: Tid,
    /// Whether it changes the object.
    pub writes: bool,
    /// How often it was sent.
    pub sent: u32,
    /// Its object.
    pub object: String,
    /// Its placement group.
    pub pgid: PgId,
    /// The OSD it waits for; `None` if there is none.
    pub osd: Option<OsdId>,
    /// How long it has waited.
    pub age: Duration,
    /// What it waits for.
    pub waits_for: &'static str,
}

/// The table. `T` is whatever the owner wants back with an operation's result.
#[derive(Debug)]
pub struct Objecter<T> {
    client: EntityName,
    features: u64,
    placement: Option<Placement>,
    ops: Slab<InFlight<T>>,
    submitted: u64,
    sessions: BTreeMap<OsdId, Session>,
    to_send: VecDeque<Tid>,
    actions: VecDeque<Action>,
    completed: VecDeque<(T, OpResult)>,
    watches: BTreeMap<u64, Watch>,
    watch_events: VecDeque<(u64, WatchEvent)>,
    last_cookie: u64,
    /// The epoch that the monitors were last known to have at least.
    newest: Epoch,
    asked_newest: bool,
    map_wanted: bool,
    timeout: Option<Duration>,
    /// No operation times out earlier.
    deadline: Option<Instant>,
    our_addrs: EntityAddrs,
    /// The cluster has blocklisted us.
    fenced: bool,
    /// What all operations carry or ask for, in bytes.
    bytes: u64,
    /// Above these, [`Objecter::has_room`] says no.
    max_ops: usize,
    max_bytes: u64,
    /// Sessions that may have something to send from what they held back.
    roomy: VecDeque<OsdId>,
    /// Nothing is sent under an older map.
    barrier: Epoch,
    abort_on_full: bool,
    /// Where this client is, for reads of near replicas.
    near: CrushLocation,
    /// When operations that wait for too long are looked for.
    laggy_check: Option<Instant>,
    /// When sessions that were not used since the last time are closed.
    idle_check: Option<Instant>,
    stats: Stats,
}

impl<T> Objecter<T> {
    /// An empty table. `features` are those that requests announce.
    pub fn new(features: u64) -> Self {
        Self {
            client: EntityName { kind: EntityType::CLIENT, num: -1 },
            features,
            placement: None,
            ops: Slab::new(),
            submitted: 0,
            sessions: BTreeMap::new(),
            to_send: VecDeque::new(),
            actions: VecDeque::from([Action::WantMap { start: Epoch(0) }]),
            completed: VecDeque::new(),
            watches: BTreeMap::new(),
            watch_events: VecDeque::new(),
            last_cookie: 0,
            newest: Epoch(0),
            asked_newest: false,
            map_wanted: true,
            timeout: None,
            deadline: None,
            our_addrs: EntityAddrs::default(),
            fenced: false,
            bytes: 0,
            max_ops: limits::OPS_IN_FLIGHT,
            max_bytes: u64::MAX,
            roomy: VecDeque::new(),
            barrier: Epoch(0),
            abort_on_full: false,
            near: CrushLocation::default(),
            laggy_check: None,
            idle_check: None,
            stats: Stats::default(),
        }
    }

    /// What may be in flight before [`Self::has_room`] says no (`objecter_inflight_ops`, `objecter_inflight_op_bytes`).
    pub fn set_limits(&mut self, ops: u64, bytes: u64) {
        self.max_ops = usize::try_from(ops).unwrap_or(usize::MAX).clamp(1, limits::OPS_IN_FLIGHT);
        self.max_bytes = bytes.max(1);
    }

    /// How long operations may take, those under way as well (`rados_osd_op_timeout`); `None` for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
        let due = |timeout| self.ops.iter().map(|(_, op)| op.submitted + timeout).min();
        self.deadline = timeout.and_then(due);
    }

    /// Fails writes to full pools, those under way as well, instead of waiting for space (`abort_on_full`).
    pub fn set_abort_on_full(&mut self, abort: bool) {
        self.abort_on_full = abort;
    }

    /// Where this client is, for operations with [`flag::LOCALIZE_READS`].
    pub fn set_location(&mut self, near: CrushLocation) {
        self.near = near;
    }

    /// Sends nothing more under maps before this one: for whoever fenced another client by it, so that OSDs know of
    /// that before they see what this one does next.
    pub fn set_barrier(&mut self, epoch: Epoch) {
        self.barrier = self.barrier.max(epoch);
        if self.epoch() < self.barrier {
            for (_, op) in self.ops.iter_mut().filter(|(_, op)| op.place == Place::Queued) {
                op.place = Place::Held;
            }
            self.want_map();
        }
    }

    /// Whether another operation should be submitted. One that is submitted nevertheless is taken.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.ops.len() < self.max_ops && self.bytes < self.max_bytes
    }

    /// Whether the cluster has fenced this client off.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// What all operations in flight carry or ask for, in bytes.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes
    }

    /// What was counted so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Who this client is: its global id, which is part of every request's id, and the address by which the cluster
    /// would fence it.
    pub fn set_identity(&mut self, now: Instant, global_id: u64, addr: EntityAddr) {
        self.client.num = global_id as i64;
        self.our_addrs = EntityAddrs(vec![addr]);
        self.check_fenced(now);
    }

    /// The map in use.
    pub fn map(&self) -> Option<&OsdMap> {
        self.placement.as_ref().map(Placement::map)
    }

    /// Operations that are not complete.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Puts an operation into the table. Its result comes out of [`Self::poll_completed`] with `user`.
    pub fn submit(&mut self, now: Instant, operation: Operation, user: T) -> Tid {
        self.insert(now, operation, Owner::User(user))
    }

    fn insert(&mut self, now: Instant, operation: Operation, owner: Owner<T>) -> Tid {
        self.submitted += 1;
        let refused = match self.ops.vacant_key() < limits::OPS_IN_FLIGHT {
            _ if self.fenced => Some(OpError::Blocklisted),
            true => None,
            false => Some(OpError::TooMany),
        };
        if let Some(error) = refused {
            let tid = Tid(self.submitted << SLOT_BITS);
            self.finish(now, tid, owner, Location::default(), Err(error));
            return tid;
        }
        if let Some(timeout) = self.timeout {
            self.deadline.get_or_insert(now + timeout);
        }
        self.laggy_check.get_or_insert(now + LAGGY);
        self.idle_check.get_or_insert(now + IDLE);
        let cost = operation.cost();
        self.bytes += cost;
        let entry = self.ops.vacant_entry();
        let tid = Tid(self.submitted << SLOT_BITS | entry.key() as u64);
        let routing = Routing {
            tid,
            pgid: SpgId { pg: PgId::default(), shard: SpgId::NO_SHARD },
            hash: 0,
            epoch: Epoch(0),
            flags: operation.all_flags(),
            reqid: ReqId { client: self.client, tid, incarnation: 0 },
            attempt: -1,
            features: self.features,
        };
        entry.insert(InFlight {
            routing,
            operation,
            owner,
            place: Place::Held,
            location: Location::default(),
            submitted: now,
            cost,
            not_before: Epoch(0),
        });
        self.route(now, tid);
        tid
    }

    /// The next request to send, and the OSD to send it to. Only OSDs with an open session are named.
    pub fn poll_send(&mut self) -> Option<(OsdId, Request<'_>)> {
        loop {
            let (tid, waited) = match self.next_waiting() {
                Some(tid) => (tid, true),
                None => (self.to_send.pop_front()?, false),
            };
            let epoch = self.epoch();
            // Cancelled, or sent elsewhere meanwhile.
            let Some(op) = self.ops.get_mut(slot(tid)) else { continue };
            if op.routing.tid != tid || op.place != Place::Queued {
                continue;
            }
            let Some(osd) = op.location.primary else { continue };
            let Some(session) = self.sessions.get_mut(&osd).filter(|session| session.open) else {
                continue;
            };
            if waited && session.backs_off(op) {
                continue;
            }
            if !waited && session.must_wait() {
                session.waiting.push_back(tid);
                continue;
            }
            session.charge(op.cost);
            op.place = Place::Sent;
            op.routing.epoch = epoch;
            op.routing.attempt += 1;
            if op.routing.attempt > 0 {
                op.routing.flags |= flag::RETRY;
                self.stats.resent += 1;
            }
            let op = self.ops.get(slot(tid))?;
            return Some((osd, Request { routing: &op.routing, operation: &op.operation }));
        }
    }

    /// The next thing for the driver to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is something for the driver to do.
    pub fn has_action(&self) -> bool {
        !self.actions.is_empty()
    }

    /// The next operation that is done.
    pub fn poll_completed(&mut self) -> Option<(T, OpResult)> {
        self.completed.pop_front()
    }

    /// There is a session with this OSD: everything for it is sent, again or for the first time.
    pub fn handle_session_open(&mut self, osd: OsdId) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        session.opened();
        self.stats.sessions_opened += 1;
        self.send_again(|op| op.location.primary == Some(osd));
    }

    /// The session with this OSD is gone, and with it what the OSD was doing for us. Unless the map says that the OSD
    /// is gone as well, a new one is asked for.
    pub fn handle_session_lost(&mut self, now: Instant, osd: OsdId) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        session.closed();
        self.stats.sessions_lost += 1;
        let addr = session.addr;
        self.renew_watches(now, |_, location, _, _| location.primary == Some(osd));
        let mut wanted = false;
        for (_, op) in &mut self.ops {
            if op.location.primary == Some(osd) && op.place != Place::Held {
                op.place = Place::Queued;
                wanted = true;
            }
        }
        if wanted {
            self.actions.push_back(Action::Open { osd, addr });
            // It may have died: the map will tell.
            self.want_map();
        } else {
            self.sessions.remove(&osd);
        }
    }

    /// An answer. Answers to requests that are complete, were cancelled or went elsewhere meanwhile are ignored.
    pub fn handle_reply(&mut self, now: Instant, osd: OsdId, reply: Reply) {
        let slot = slot(reply.tid);
        let Some(op) = self.ops.get_mut(slot) else { return };
        let current = op.routing.tid == reply.tid
            && op.place == Place::Sent
            && op.location.primary == Some(osd)
            && (reply.attempt < 0 || reply.attempt == op.routing.attempt);
        if !current {
            return;
        }
        if let Some(redirect) = reply.redirect {
            self.stats.redirected += 1;
            return self.redirect(now, reply.tid, redirect);
        }
        match reply.result {
            // Of a replica, which cannot answer yet, or of anybody whose time has not come: the primary will know.
            EAGAIN => {
                op.routing.flags &= !(flag::BALANCE_READS | flag::LOCALIZE_READS);
                return self.route(now, reply.tid);
            }
            ENXIO if reply.epoch > self.epoch() => {
                if let Some(op) = self.ops.get_mut(slot) {
                    op.not_before = reply.epoch;
                }
                return self.route(now, reply.tid);
            }
            EBLOCKLISTED => return self.fence(now),
            _ => {}
        }
        let Some(op) = self.remove(reply.tid) else { return };
        if let Owner::User(_) = op.owner {
            self.stats.count(op.routing.flags, op.cost, now.since(op.submitted), reply.result);
        }
        self.finish(now, reply.tid, op.owner, op.location, Ok(reply));
    }

    /// Hands over the result of an operation that is no longer in the table.
    #[inline]
    fn finish(&mut self, now: Instant, tid: Tid, owner: Owner<T>, at: Location, result: OpResult) {
        if result.is_err() {
            self.stats.unanswered += 1;
        }
        match owner {
            Owner::User(user) => self.completed.push_back((user, result)),
            Owner::Watch(cookie) => self.handle_watch_result(now, cookie, tid, at, &result),
        }
    }

    /// An OSD holds back a range of objects, or lets it go again.
    pub fn handle_backoff(&mut self, osd: OsdId, backoff: Backoff) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        match backoff.op {
            BackoffOp::Block => {
                self.stats.backoffs += 1;
                let message = Backoff { op: BackoffOp::AckBlock, ..backoff.clone() };
                session.backoffs.retain(|b| b.id != backoff.id || b.pgid != backoff.pgid);
                session.backoffs.push(backoff);
                self.actions.push_back(Action::AckBackoff { osd, message });
            }
            BackoffOp::Unblock => {
                session.backoffs.retain(|b| b.id != backoff.id || b.pgid != backoff.pgid);
                self.send_again(|op| {
                    op.location.primary == Some(osd)
                        && op.location.pgid == backoff.pgid
                        && backoff.covers(&object_of(op))
                });
            }
            BackoffOp::AckBlock => {}
        }
    }

    /// Gives an operation up. What becomes of it is unknown: it may still be applied. Returns its user's data if it was
    /// in the table.
    pub fn cancel(&mut self, tid: Tid) -> Option<T> {
        match self.remove(tid)?.owner {
            Owner::User(user) => Some(user),
            Owner::Watch(_) => None,
        }
    }

    fn remove(&mut self, tid: Tid) -> Option<InFlight<T>> {
        let known = self.ops.get(slot(tid)).is_some_and(|op| op.routing.tid == tid);
        if !known {
            return None;
        }
        self.take_back(tid);
        let op = self.ops.remove(slot(tid));
        self.bytes -= op.cost;
        Some(op)
    }

    /// When [`Self::handle_timeout`] is to be called, if ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline.into_iter().chain(self.poll_watch_timeout()).min()
    }

    /// When [`Self::handle_tick`] is to be called, if ever.
    pub fn poll_tick(&self) -> Option<Instant> {
        let laggy = self.laggy_check.filter(|_| !self.ops.is_empty());
        laggy.into_iter().chain(self.idle_check).min()
    }

    /// Asks for maps that may say why operations take long, and closes sessions that nobody uses.
    pub fn handle_tick(&mut self, now: Instant) {
        self.look_for_laggy(now);
        self.close_idle_sessions(now);
    }

    /// Ends operations that took too long, and asks after watches.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(timeout) = self.timeout
            && self.deadline.is_some_and(|deadline| deadline <= now)
        {
            self.end(now, |op| {
                (now.since(op.submitted) >= timeout).then_some(OpError::TimedOut(timeout))
            });
            self.deadline = self.ops.iter().map(|(_, op)| op.submitted + timeout).min();
        }
        self.handle_watch_timeout(now);
    }

    /// An OSD that does not answer may have been replaced: the map will tell.
    fn look_for_laggy(&mut self, now: Instant) {
        if self.laggy_check.is_none_or(|when| when > now) {
            return;
        }
        let oldest = self.oldest();
        self.laggy_check = oldest.map(|_| now + LAGGY / 2);
        if oldest.is_some_and(|submitted| now.since(submitted) >= LAGGY) {
            self.want_map();
        }
    }

    /// When the oldest of the operations in flight was submitted.
    pub fn oldest(&self) -> Option<Instant> {
        self.ops.iter().map(|(_, op)| op.submitted).min()
    }

    /// Operations that have waited longer than `age`, oldest first.
    pub fn slow_ops(&self, now: Instant, age: Duration) -> Vec<SlowOp> {
        let mut slow: Vec<_> = self
            .ops
            .iter()
            .filter(|(_, op)| now.since(op.submitted) >= age)
            .map(|(_, op)| self.describe(now, op))
            .collect();
        slow.sort_by_key(|op| op.tid);
        slow
    }

    fn describe(&self, now: Instant, op: &InFlight<T>) -> SlowOp {
        let pgid = op.location.pgid.pg;
        let waits_for = match op.place {
            Place::Sent => "the OSD's answer",
            Place::Queued if self.backed_off(op) => "the PG to end its backoff",
            Place::Queued if self.is_open(op.location.primary) => "the OSD to take more",
            Place::Queued => "a connection to the OSD",
            Place::Held => match &self.placement {
                None => "an OSD map",
                Some(_) if self.is_too_early(op) => "a newer OSD map",
                Some(placement)
                    if placement.paused(op.routing.flags, op.operation.locator.pool) =>
                {
                    "the cluster or pool to be unpaused or to have space"
                }
                Some(_) => "the PG to have a primary OSD",
            },
        };
        SlowOp {
            tid: op.routing.tid,
            writes: op.routing.flags & flag::WRITE != 0,
            sent: (op.routing.attempt + 1) as u32,
            object: op.operation.object.clone(),
            pgid,
            osd: op.location.primary,
            age: now.since(op.submitted),
            waits_for,
        }
    }

    /// Whether an operation must not be sent before there is a newer map.
    fn is_too_early(&self, op: &InFlight<T>) -> bool {
        self.epoch() < self.barrier.max(op.not_before)
    }

    /// Finds out where an operation belongs, and queues it there or holds it.
    fn route(&mut self, now: Instant, tid: Tid) {
        self.take_back(tid);
        let (epoch, barrier) = (self.epoch(), self.barrier);
        let Some(op) = self.ops.get_mut(slot(tid)) else { return };
        op.place = Place::Held;
        let Some(placement) = &self.placement else { return };
        if epoch < barrier.max(op.not_before) {
            return self.want_map();
        }
        let Operation { locator, object, .. } = &op.operation;
        let Some(location) = placement.locate(locator, object, reader(&op.routing)) else {
            // Perhaps the pool is newer than our map.
            if !self.asked_newest {
                self.asked_newest = true;
                self.actions.push_back(Action::WantNewestEpoch);
            }
            return;
        };
        op.location = location;
        op.routing.pgid = location.pgid;
        op.routing.hash = location.hash;
        let pool = locator.pool;
        if placement.paused(op.routing.flags, pool) {
            let full = respects_full(op.routing.flags) && placement.is_full(pool);
            if full && self.abort_on_full {
                return self.end_one(now, tid, OpError::Full(pool));
            }
            // Only another map ends it.
            return self.want_map();
        }
        let Some(osd) = location.primary else { return self.want_map() };
        op.place = Place::Queued;
        let open = match self.sessions.get(&osd) {
            Some(session) => session.open,
            None => self.open_session(osd),
        };
        if open && !self.ops.get(slot(tid)).is_some_and(|op| self.backed_off(op)) {
            self.to_send.push_back(tid);
        }
    }

    /// Sends the chosen operations again, in the order of their submission.
    fn send_again(&mut self, chosen: impl Fn(&InFlight<T>) -> bool) {
        let mut tids: Vec<_> = self
            .ops
            .iter()
            .filter(|(_, op)| op.place != Place::Held && chosen(op) && !self.backed_off(op))
            .map(|(_, op)| op.routing.tid)
            .collect();
        tids.sort_unstable();
        for tid in &tids {
            self.take_back(*tid);
            if let Some(op) = self.ops.get_mut(slot(*tid)) {
                op.place = Place::Queued;
            }
        }
        self.forget_queued(&tids);
        self.to_send.extend(tids);
    }

    /// Takes operations, in ascending order, out of all queues: they are about to be queued anew, behind those that
    /// were queued before them in the table's order as well.
    fn forget_queued(&mut self, tids: &[Tid]) {
        let stays = |tid: &Tid| tids.binary_search(tid).is_err();
        self.to_send.retain(stays);
        for session in self.sessions.values_mut() {
            session.waiting.retain(stays);
        }
    }

    /// Sends an operation to where an OSD says the object is (cache tiers).
    fn redirect(&mut self, now: Instant, tid: Tid, redirect: Redirect) {
        if let Some(op) = self.ops.get_mut(slot(tid)) {
            op.operation.locator = redirect.locator;
            if !redirect.object.is_empty() {
                op.operation.object = redirect.object;
            }
            op.routing.flags |= flag::REDIRECTED | flag::IGNORE_OVERLAY;
        }
        self.route(now, tid);
    }

    /// Ends operations without an answer, oldest first.
    fn end(&mut self, now: Instant, why: impl Fn(&InFlight<T>) -> Option<OpError>) {
        let mut ended: Vec<_> = self
            .ops
            .iter()
            .filter_map(|(_, op)| why(op).map(|error| (op.routing.tid, error)))
            .collect();
        ended.sort_unstable_by_key(|(tid, _)| *tid);
        for (tid, error) in ended {
            self.end_one(now, tid, error);
        }
    }

    /// Ends one, if it is still there: the end of a watch's ping can end its request as well.
    fn end_one(&mut self, now: Instant, tid: Tid, error: OpError) {
        if let Some(op) = self.remove(tid) {
            self.finish(now, tid, op.owner, op.location, Err(error));
        }
    }
}

/// Who may carry an operation out.
fn reader(routing: &Routing) -> Reader {
    match routing.flags {
        flags if flags & flag::WRITE != 0 || flags & flag::READ == 0 => Reader::Primary,
        flags if flags & flag::BALANCE_READS != 0 => Reader::Any(routing.tid),
        flags if flags & flag::LOCALIZE_READS != 0 => Reader::Nearest,
        _ => Reader::Primary,
    }
}

/// The place in the table that a tid names.
fn slot(tid: Tid) -> usize {
    (tid.0 & ((1 << SLOT_BITS) - 1)) as usize
}

/// The object in the order in which backoffs name ranges: always its head, also for a read of a snapshot
/// (`op_target_t::get_hobj`).
fn object_of<T>(op: &InFlight<T>) -> HObject {
    HObject {
        name: op.operation.object.clone(),
        key: op.operation.locator.key.clone(),
        snap: SnapId::HEAD,
        hash: op.location.hash,
        max: false,
        namespace: op.operation.locator.namespace.clone(),
        pool: op.operation.locator.pool.0,
    }
}
