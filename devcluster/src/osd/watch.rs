//! Watches and notifies: who is told what, who has not answered yet, and who has gone silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::Put;
use proto::msg::watch::{WatchNotify, event};
use proto::types::{EntityName, Instant, PgId};

use crate::errno::ETIMEDOUT;
use crate::store::ObjectId;
use crate::wire::{Actions, ConnId};

/// An object of a placement group.
pub(super) type Target = (PgId, ObjectId);

/// A watch on an object: its owner's number for it, and its owner.
pub(super) type WatchId = (u64, EntityName);

/// A watch, as its primary OSD knows it.
struct Watch {
    /// Where its owner is connected, if it is.
    conn: Option<ConnId>,
    timeout: Duration,
    /// When it is dropped unless its owner says something.
    deadline: Instant,
}

/// A notify that some watchers have not answered yet.
struct Notify {
    target: Target,
    conn: ConnId,
    cookie: u64,
    notifier: u64,
    user_version: u64,
    payload: Bytes,
    deadline: Instant,
    pending: BTreeSet<WatchId>,
    replies: Vec<(WatchId, Bytes)>,
}

/// All watches and notifies of one OSD.
#[derive(Default)]
pub(super) struct Watches {
    watches: BTreeMap<Target, BTreeMap<WatchId, Watch>>,
    notifies: BTreeMap<u64, Notify>,
}

impl Watches {
    /// Whether a watch's owner is connected.
    pub(super) fn is_connected(&self, target: &Target, watch: WatchId) -> bool {
        let watch = self.watches.get(target).and_then(|watches| watches.get(&watch));
        watch.is_some_and(|watch| watch.conn.is_some())
    }

    /// A watch's owner has connected. What it has missed is sent now.
    pub(super) fn connect(
        &mut self,
        target: &Target,
        id: WatchId,
        conn: ConnId,
        timeout: Duration,
        now: Instant,
        actions: &mut Actions,
    ) {
        let watch = Watch { conn: Some(conn), timeout, deadline: now + timeout };
        self.watches.entry(target.clone()).or_default().insert(id, watch);
        for (notify_id, notify) in &self.notifies {
            if notify.target == *target && notify.pending.contains(&id) {
                actions.send(conn, notify.message(*notify_id, id.0));
            }
        }
    }

    /// A watch that is kept with its object, whose owner has not connected to this OSD yet.
    pub(super) fn expect(&mut self, target: &Target, id: WatchId, timeout: Duration, now: Instant) {
        let watches = self.watches.entry(target.clone()).or_default();
        watches.entry(id).or_insert(Watch { conn: None, timeout, deadline: now + timeout });
    }

    /// A watch's owner is alive.
    pub(super) fn ping(&mut self, target: &Target, id: WatchId, now: Instant) {
        if let Some(watch) = self.watches.get_mut(target).and_then(|w| w.get_mut(&id)) {
            watch.deadline = now + watch.timeout;
        }
    }

    /// A watch is over.
    pub(super) fn disconnect(
        &mut self,
        target: &Target,
        id: WatchId,
        tell: bool,
        actions: &mut Actions,
    ) {
        let Some(watches) = self.watches.get_mut(target) else { return };
        let Some(watch) = watches.remove(&id) else { return };
        if watches.is_empty() {
            self.watches.remove(target);
        }
        if let Some(conn) = watch.conn.filter(|_| tell) {
            actions.send(
                conn,
                WatchNotify {
                    event: event::DISCONNECT,
                    cookie: id.0,
                    version: 0,
                    notify_id: 0,
                    payload: Bytes::new(),
                    result: 0,
                    notifier: 0,
                    replies: Bytes::new(),
                },
            );
        }
        let waiting: Vec<u64> = (self.notifies.iter_mut())
            .filter_map(|(notify_id, notify)| {
                (notify.target == *target && notify.pending.remove(&id)).then_some(*notify_id)
            })
            .collect();
        waiting.into_iter().for_each(|notify| self.complete_if_answered(notify, actions));
    }

    /// Tells all watchers of an object.
    pub(super) fn notify(
        &mut self,
        id: u64,
        new: NewNotify<'_>,
        now: Instant,
        actions: &mut Actions,
    ) {
        let watches = self.watches.get(new.target);
        let notify = Notify {
            target: new.target.clone(),
            conn: new.conn,
            cookie: new.cookie,
            notifier: new.notifier,
            user_version: new.user_version,
            payload: new.payload,
            deadline: now + new.timeout,
            pending: watches.into_iter().flat_map(|watches| watches.keys().copied()).collect(),
            replies: Vec::new(),
        };
        for (watch_id, watch) in watches.into_iter().flatten() {
            if let Some(conn) = watch.conn {
                actions.send(conn, notify.message(id, watch_id.0));
            }
        }
        self.notifies.insert(id, notify);
        self.complete_if_answered(id, actions);
    }

    /// A watcher has answered: on one of its watches, or on whichever it has.
    pub(super) fn ack(
        &mut self,
        id: u64,
        name: EntityName,
        cookie: Option<u64>,
        reply: &Bytes,
        actions: &mut Actions,
    ) {
        let Some(notify) = self.notifies.get_mut(&id) else { return };
        let (answered, pending) =
            std::mem::take(&mut notify.pending).into_iter().partition(|watch: &WatchId| {
                watch.1 == name && cookie.is_none_or(|cookie| cookie == watch.0)
            });
        notify.pending = pending;
        let answered: BTreeSet<WatchId> = answered;
        notify.replies.extend(answered.into_iter().map(|watch| (watch, reply.clone())));
        self.complete_if_answered(id, actions);
    }

    /// A connection is gone: watches wait for their owners to come back.
    pub(super) fn closed(&mut self, conn: ConnId) {
        for watch in self.watches.values_mut().flat_map(BTreeMap::values_mut) {
            watch.conn = watch.conn.filter(|watch_conn| *watch_conn != conn);
        }
        self.notifies.retain(|_, notify| notify.conn != conn);
    }

    /// Forgets watches on objects that this OSD does not serve any more. Their owners find the new primary by the map.
    pub(super) fn retain(&mut self, mut serves: impl FnMut(PgId) -> bool) {
        self.watches.retain(|(pg, _), _| serves(*pg));
        self.notifies.retain(|_, notify| serves(notify.target.0));
    }

    /// When something times out next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let watches = self.watches.values().flatten().map(|(_, watch)| watch.deadline);
        watches.chain(self.notifies.values().map(|notify| notify.deadline)).min()
    }

    /// Completes notifies that have waited long enough, and hands over watches whose owners have been silent.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        actions: &mut Actions,
    ) -> Vec<(Target, WatchId)> {
        let late: Vec<u64> = (self.notifies.iter())
            .filter(|(_, notify)| notify.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(notify) = self.notifies.remove(&id) {
                notify.complete(id, -ETIMEDOUT, actions);
            }
        }
        let silent = self.watches.iter().flat_map(|(target, watches)| {
            let silent = watches.iter().filter(|(_, watch)| watch.deadline <= now);
            silent.map(|(id, _)| (target.clone(), *id))
        });
        silent.collect()
    }

    fn complete_if_answered(&mut self, id: u64, actions: &mut Actions) {
        if self.notifies.get(&id).is_some_and(|notify| notify.pending.is_empty())
            && let Some(notify) = self.notifies.remove(&id)
        {
            notify.complete(id, 0, actions);
        }
    }
}

/// A notify as it is asked for.
pub(super) struct NewNotify<'a> {
    pub(super) target: &'a Target,
    /// Who asks.
    pub(super) conn: ConnId,
    pub(super) cookie: u64,
    pub(super) notifier: u64,
    pub(super) user_version: u64,
    pub(super) payload: Bytes,
    pub(super) timeout: Duration,
}

impl Notify {
    fn message(&self, id: u64, cookie: u64) -> WatchNotify {
        WatchNotify {
            event: event::NOTIFY,
            cookie,
            version: self.user_version,
            notify_id: id,
            payload: self.payload.clone(),
            result: 0,
            notifier: self.notifier,
            replies: Bytes::new(),
        }
    }

    /// Tells the notifier who has answered what, and who has not.
    fn complete(self, id: u64, result: i32, actions: &mut Actions) {
        let mut w = BytesMut::new();
        w.put_count(self.replies.len());
        for ((cookie, name), reply) in &self.replies {
            w.put_u64_le(name.num as u64);
            w.put_u64_le(*cookie);
            w.put_blob(reply);
        }
        w.put_count(self.pending.len());
        for (cookie, name) in &self.pending {
            w.put_u64_le(name.num as u64);
            w.put_u64_le(*cookie);
        }
        actions.send(
            self.conn,
            WatchNotify {
                event: event::NOTIFY_COMPLETE,
                cookie: self.cookie,
                version: self.user_version,
                notify_id: id,
                payload: Bytes::new(),
                result,
                notifier: self.notifier,
                replies: w.freeze(),
            },
        );
    }
}
