//! Sessions with OSDs, and how much each has to do for us at once.

use std::collections::VecDeque;

use super::{Action, IDLE, InFlight, Objecter, Place, object_of, slot};
use crate::limits;
use crate::msg::backoff::Backoff;
use crate::types::{EntityAddr, Instant, OsdId, Tid};

/// A session with one OSD, wanted or established.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) addr: EntityAddr,
    pub(super) open: bool,
    /// There was one, or it was tried in vain, and there is none since.
    pub(super) lost: bool,
    pub(super) backoffs: Vec<Backoff>,
    /// What was sent and not answered.
    ops: usize,
    bytes: u64,
    /// What is not sent before some of that is answered, in order.
    pub(super) waiting: VecDeque<Tid>,
    /// Something was sent since idle sessions were last looked for.
    used: bool,
}

/// What there is to say about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// The OSD.
    pub osd: OsdId,
    /// Where it is.
    pub addr: EntityAddr,
    /// Whether it is established.
    pub open: bool,
    /// Operations that were sent and not answered.
    pub ops: usize,
    /// What these carry or ask for, in bytes.
    pub bytes: u64,
    /// Operations that wait until some of those are answered.
    pub waiting: usize,
    /// Ranges of objects that the OSD holds back.
    pub backoffs: usize,
}

impl Session {
    pub(super) fn opened(&mut self) {
        self.closed();
        (self.open, self.lost, self.used) = (true, false, true);
    }

    pub(super) fn closed(&mut self) {
        let addr = self.addr;
        *self = Self { addr, lost: true, ..Self::default() };
    }

    /// Whether the OSD has enough to do. One operation of any size always goes.
    fn is_full(&self) -> bool {
        self.ops >= limits::SESSION_OPS || self.bytes >= limits::SESSION_BYTES
    }

    /// Whether one more operation has to wait, behind those that do.
    #[inline]
    pub(super) fn must_wait(&self) -> bool {
        self.is_full() || !self.waiting.is_empty()
    }

    #[inline]
    pub(super) fn charge(&mut self, cost: u64) {
        self.used = true;
        self.ops += 1;
        self.bytes += cost;
    }

    pub(super) fn backs_off<T>(&self, op: &InFlight<T>) -> bool {
        let held = |b: &Backoff| b.pgid == op.location.pgid && b.covers(&object_of(op));
        self.backoffs.iter().any(held)
    }
}

impl<T> Objecter<T> {
    /// The sessions there are, and those that are wanted.
    pub fn sessions(&self) -> impl Iterator<Item = SessionStatus> + '_ {
        self.sessions.iter().map(|(osd, session)| SessionStatus {
            osd: *osd,
            addr: session.addr,
            open: session.open,
            ops: session.ops,
            bytes: session.bytes,
            waiting: session.waiting.len(),
            backoffs: session.backoffs.len(),
        })
    }

    /// Asks for a session. Never one that is open already.
    pub(super) fn open_session(&mut self, osd: OsdId) -> bool {
        let addr = self.placement.as_ref().and_then(|placement| placement.addr(osd));
        if let Some(addr) = addr {
            self.sessions.insert(osd, Session { addr, ..Session::default() });
            self.actions.push_back(Action::Open { osd, addr });
        }
        false
    }

    pub(super) fn is_open(&self, osd: Option<OsdId>) -> bool {
        osd.and_then(|osd| self.sessions.get(&osd)).is_some_and(|session| session.open)
    }

    pub(super) fn backed_off(&self, op: &InFlight<T>) -> bool {
        let session = op.location.primary.and_then(|osd| self.sessions.get(&osd));
        session.is_some_and(|session| session.backs_off(op))
    }

    /// An operation is no longer with the OSD that it was sent to, which can have another one.
    #[inline]
    pub(super) fn take_back(&mut self, tid: Tid) {
        let Some(op) = self.ops.get_mut(slot(tid)).filter(|op| op.place == Place::Sent) else {
            return;
        };
        op.place = Place::Queued;
        let Some(osd) = op.location.primary else { return };
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        session.ops = session.ops.saturating_sub(1);
        session.bytes = session.bytes.saturating_sub(op.cost);
        if !session.waiting.is_empty() {
            self.roomy.push_back(osd);
        }
    }

    /// The next operation that waited for its OSD to have less to do.
    #[inline]
    pub(super) fn next_waiting(&mut self) -> Option<Tid> {
        while let Some(osd) = self.roomy.front() {
            let session = self.sessions.get_mut(osd).filter(|session| !session.is_full());
            if let Some(tid) = session.and_then(|session| session.waiting.pop_front()) {
                return Some(tid);
            }
            self.roomy.pop_front();
        }
        None
    }

    /// Leaves OSDs that had nothing to do since the last time. (A watch asks its OSD every few seconds.)
    pub(super) fn close_idle_sessions(&mut self, now: Instant) {
        if self.idle_check.is_none_or(|when| when > now) {
            return;
        }
        let idle: Vec<_> = self
            .sessions
            .iter_mut()
            .filter_map(|(osd, session)| {
                let used = std::mem::take(&mut session.used) || session.must_wait();
                (session.open && !used && session.ops == 0).then_some(*osd)
            })
            .filter(|osd| !self.ops.iter().any(|(_, op)| op.location.primary == Some(*osd)))
            .collect();
        for osd in idle {
            self.sessions.remove(&osd);
            self.actions.push_back(Action::Close { osd });
        }
        let needed = !self.sessions.is_empty() || !self.ops.is_empty();
        self.idle_check = needed.then_some(now + IDLE);
    }
}
