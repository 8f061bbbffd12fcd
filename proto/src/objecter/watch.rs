//! Watches: who watches an object is told by its OSD when somebody notifies it (`Objecter`'s linger operations).
//!
//! ```text
//!                                           ┌─ping, every few seconds─┐
//!                                           ▼                         │
//!   watch ──► registering ──confirmed──► watching ────────────────────┘
//!                 │                       │   ▲
//!                 │  session lost, PG moved   confirmed
//!                 │                       ▼   │
//!                 │                 reconnecting (generation + 1)
//!                 │                         │
//!                 └─ refused, dropped, or not confirmed for too long ──► lost
//! ```
//!
//! An OSD forgets who is connected when its PG moves or a session ends, and drops a watch some time after that. So a
//! watch is registered again each time, by a new request: the same one would be answered from the log of requests and
//! have no effect. What is lost stays lost, as notifications may have been missed: the owner is told, and begins anew.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use super::placement::Location;
use super::{Objecter, OpError, OpResult, Owner, slot};
use crate::msg::object::Locator;
use crate::msg::op::{Op, WatchOp};
use crate::msg::osd_op::{Operation, flag};
use crate::msg::watch::{WatchNotify, event};
use crate::types::{Instant, Tid, UTime};

/// How often an OSD is asked whether it still has a watch (`objecter_tick_interval`).
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// What happened to a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// It is in effect: from now on notifications come.
    Registered,
    /// Somebody notifies the watchers, and waits for [`Op::NotifyAck`] from each.
    Notify {
        /// The notification, for the acknowledgement.
        id: u64,
        /// The client that sent it.
        notifier: u64,
        /// What it says.
        payload: Bytes,
    },
    /// It is gone. The last event.
    Lost(WatchError),
}

/// Why a watch is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The OSD's answer, a negative errno: `-ENOTCONN` if it dropped the watch, `-ENOENT` if the object is gone.
    #[error("the OSD answered with errno {}", -.0)]
    Refused(i32),
    /// The OSD dropped it and says so.
    #[error("the OSD dropped the watch")]
    Dropped,
    /// The OSD has not confirmed it for so long that it may have dropped it.
    #[error("not confirmed by the OSD for {} s", .0.as_secs())]
    Expired(Duration),
    /// The OSD could not be asked.
    #[error(transparent)]
    Op(#[from] OpError),
}

/// A watch in the table.
#[derive(Debug)]
pub(super) struct Watch {
    locator: Locator,
    object: String,
    mtime: UTime,
    timeout: Duration,
    /// Where it was confirmed last.
    location: Location,
    /// How often it was registered again.
    generation: u32,
    confirmed: bool,
    /// The request to register it that is under way.
    request: Option<Tid>,
    ping: Option<Tid>,
    ping_sent: Instant,
    next_ping: Instant,
    /// The OSD had it at this time.
    valid: Instant,
}

impl Watch {
    fn operation(&self, cookie: u64, op: WatchOp) -> Operation {
        let op = Op::Watch {
            cookie,
            op,
            generation: self.generation,
            timeout_seconds: self.timeout.as_secs() as u32,
        };
        let mut operation = Operation::new(self.locator.clone(), &*self.object, vec![op.into()]);
        // It takes no space, so that it need not wait for any.
        operation.flags = flag::FULL_TRY;
        operation.mtime = self.mtime;
        operation
    }

    /// When something has to be done if nothing comes from the OSD.
    fn due(&self) -> Option<Instant> {
        let expires = self.confirmed.then(|| self.valid + self.timeout);
        let ping = (self.confirmed && self.request.is_none()).then_some(self.next_ping);
        expires.into_iter().chain(ping).min()
    }
}

/// What there is to say about a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchStatus {
    /// Its number.
    pub cookie: u64,
    /// The object.
    pub object: String,
    /// Whether the OSD has confirmed it.
    pub confirmed: bool,
    /// How long ago the OSD is known to have had it.
    pub age: Duration,
}

impl<T> Objecter<T> {
    /// All watches.
    pub fn watches(&self, now: Instant) -> impl Iterator<Item = WatchStatus> + '_ {
        self.watches.iter().map(move |(cookie, watch)| WatchStatus {
            cookie: *cookie,
            object: watch.object.clone(),
            confirmed: watch.confirmed,
            age: now.since(watch.valid),
        })
    }

    /// Watches an object, and returns the watch's cookie. The OSD drops a watch that it has not heard of for `timeout`.
    /// `mtime` is the time of day. What happens comes out of [`Self::poll_watch_event`].
    pub fn watch(
        &mut self,
        now: Instant,
        locator: Locator,
        object: &str,
        timeout: Duration,
        mtime: UTime,
    ) -> u64 {
        self.last_cookie += 1;
        let cookie = self.last_cookie;
        let watch = Watch {
            locator,
            object: object.to_owned(),
            mtime,
            timeout,
            location: Location::default(),
            generation: 0,
            confirmed: false,
            request: None,
            ping: None,
            ping_sent: now,
            next_ping: now,
            valid: now,
        };
        self.watches.insert(cookie, watch);
        self.register(now, cookie);
        cookie
    }

    /// Forgets a watch here. That the OSD forgets it as well takes an [`WatchOp::Unwatch`] by its owner, or time.
    pub fn forget_watch(&mut self, cookie: u64) {
        if let Some(watch) = self.watches.remove(&cookie) {
            for tid in [watch.request, watch.ping].into_iter().flatten() {
                self.remove(tid);
            }
        }
    }

    /// The next thing that happened to a watch, and the watch's cookie.
    pub fn poll_watch_event(&mut self) -> Option<(u64, WatchEvent)> {
        self.watch_events.pop_front()
    }

    /// A message about a watched object.
    pub fn handle_watch_notify(&mut self, message: WatchNotify) {
        let WatchNotify { cookie, notify_id, notifier, payload, .. } = message;
        if !self.watches.contains_key(&cookie) {
            return;
        }
        match message.event {
            event::NOTIFY => {
                let event = WatchEvent::Notify { id: notify_id, notifier, payload };
                self.watch_events.push_back((cookie, event));
            }
            event::DISCONNECT => self.lose(cookie, WatchError::Dropped),
            // A completion is about a notify of ours, not about a watch.
            _ => {}
        }
    }

    /// Sends a new request to register a watch, in place of the one under way.
    fn register(&mut self, now: Instant, cookie: u64) {
        let Some(watch) = self.watches.get_mut(&cookie) else { return };
        let op = match watch.confirmed {
            true => WatchOp::Reconnect,
            false => WatchOp::Watch,
        };
        if watch.confirmed {
            watch.generation = watch.generation.wrapping_add(1);
        }
        let operation = watch.operation(cookie, op);
        for tid in [watch.request.take(), watch.ping.take()].into_iter().flatten() {
            self.remove(tid);
        }
        let tid = self.insert(now, operation, Owner::Watch(cookie));
        if let Some(watch) = self.watches.get_mut(&cookie) {
            watch.request = Some(tid);
        }
    }

    /// Registers the watches again that were at a place of which `gone` says that it is no more what it was. Requests
    /// that were not sent yet are left alone.
    pub(super) fn renew_watches(
        &mut self,
        now: Instant,
        gone: impl Fn(&Self, &Location, &Locator, &str) -> bool,
    ) {
        let cookies: Vec<_> = self
            .watches
            .iter()
            .filter(|(_, watch)| {
                let request = watch.request.and_then(|tid| self.ops.get(slot(tid)));
                let location = match request {
                    Some(op) if op.routing.attempt < 0 => return false,
                    Some(op) => &op.location,
                    None => &watch.location,
                };
                gone(self, location, &watch.locator, &watch.object)
            })
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in cookies {
            self.register(now, cookie);
        }
    }

    /// Takes the result of a request that is no longer in the table, and that went to `location`.
    pub(super) fn handle_watch_result(
        &mut self,
        now: Instant,
        cookie: u64,
        tid: Tid,
        location: Location,
        result: &OpResult,
    ) {
        let Some(watch) = self.watches.get_mut(&cookie) else { return };
        let is_ping = watch.ping == Some(tid);
        if is_ping {
            watch.ping = None;
        } else {
            watch.request = None;
        }
        match result {
            Ok(reply) if reply.result < 0 => {
                self.lose(cookie, WatchError::Refused(reply.result));
            }
            Ok(_) if is_ping => watch.valid = watch.ping_sent,
            Ok(_) => {
                watch.location = location;
                (watch.valid, watch.next_ping) = (now, now + PING_INTERVAL);
                if !watch.confirmed {
                    watch.confirmed = true;
                    self.watch_events.push_back((cookie, WatchEvent::Registered));
                }
            }
            // The next one may be answered.
            Err(OpError::TimedOut(_)) if is_ping => {}
            Err(error) => self.lose(cookie, WatchError::Op(*error)),
        }
    }

    /// All watches are lost for this reason.
    pub(super) fn lose_watches(&mut self, why: OpError) {
        while let Some(cookie) = self.watches.keys().next().copied() {
            self.lose(cookie, WatchError::Op(why));
        }
    }

    fn lose(&mut self, cookie: u64, why: WatchError) {
        self.forget_watch(cookie);
        self.watch_events.push_back((cookie, WatchEvent::Lost(why)));
    }

    /// When [`Self::handle_watch_timeout`] is to be called, if ever.
    pub(super) fn poll_watch_timeout(&self) -> Option<Instant> {
        self.watches.values().filter_map(Watch::due).min()
    }

    /// Asks after watches, and gives those up that were not confirmed for too long.
    pub(super) fn handle_watch_timeout(&mut self, now: Instant) {
        let due: Vec<_> = self
            .watches
            .iter()
            .filter(|(_, watch)| watch.due().is_some_and(|due| due <= now))
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in due {
            let Some(watch) = self.watches.get_mut(&cookie) else { continue };
            if now.since(watch.valid) >= watch.timeout {
                let timeout = watch.timeout;
                self.lose(cookie, WatchError::Expired(timeout));
                continue;
            }
            watch.next_ping = now + PING_INTERVAL;
            if watch.ping.is_none() {
                watch.ping_sent = now;
                let operation = watch.operation(cookie, WatchOp::Ping);
                let tid = self.insert(now, operation, Owner::Watch(cookie));
                if let Some(watch) = self.watches.get_mut(&cookie) {
                    watch.ping = Some(tid);
                }
            }
        }
    }
}
