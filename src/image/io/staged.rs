//! Changes that cannot go out at once: those that wait for the exclusive lock, and those before which, or after which,
//! the object map has to be changed.
//!
//! A write to an object that exists by the map is not seen here.

use std::sync::Arc;

use bytes::Bytes;
use proto::msg::op::{Op, OsdOp};
use proto::msg::osd_op::{OpReply, Operation, Reply, flag};
use proto::objecter::OpResult;
use proto::rbd::{ObjectState, names};
use proto::types::{EVersion, Epoch, PgId, SnapId, Tid};

use super::{Io, Queue};
use crate::cluster::wall_clock;
use crate::error::Error;
use crate::image::object_map::{ObjectMap, head_object, invalidate_op, update_ops};

/// In the token of an operation on the object map: what it is for.
const BEFORE: u64 = 1 << 31;
const AFTER: u64 = 1 << 30;
const INVALIDATE: u64 = 1 << 29;
const STAGES: u64 = BEFORE | AFTER | INVALIDATE;

const ENOENT: i32 = -2;
const EBUSY: i32 = -16;

/// What an operation does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It exists afterwards, or may.
    Write,
    /// It does not.
    Remove,
}

/// An operation for which the object map is changed.
#[derive(Debug)]
pub(super) struct Staged {
    map: Arc<ObjectMap>,
    object: u64,
    change: Change,
    /// Until it is sent.
    operation: Option<Operation>,
    /// Of a removal that is done, while the map is told.
    result: Option<OpResult>,
    /// An earlier one on the object comes first.
    blocked: bool,
    /// The order in which they were submitted.
    nth: u64,
}

impl Queue {
    /// Keeps a change until the lock is ours.
    pub(super) fn park(&mut self, token: u64, io: Io) {
        self.parked.push_back((token, io));
        self.image.0.lock.park();
    }

    /// Goes on with what need not wait any more.
    pub(super) fn resume(&mut self) {
        if !self.parked.is_empty() {
            let held = self.image.0.current.hold(&mut self.live);
            let refused = self.live.denied.is_some() || self.live.refusal.is_some();
            if !self.live.waits() || refused {
                self.image.0.lock.unpark(self.parked.len());
                for (token, io) in std::mem::take(&mut self.parked) {
                    self.submit(token, io);
                }
                self.unsent = true;
            }
            drop(held);
        }
        self.resume_recorded();
        if self.blocked > 0 {
            let blocked = self.staged.iter().filter(|(_, staged)| staged.blocked);
            let mut tokens: Vec<_> = blocked.map(|(token, staged)| (staged.nth, *token)).collect();
            tokens.sort_unstable();
            for (_, token) in tokens {
                self.begin_stage(token);
            }
            self.unsent = true;
        }
    }

    /// Sends an operation on a data object, the object map permitting.
    pub(super) fn change_object(
        &mut self,
        object: u64,
        change: Change,
        operation: Operation,
        token: u64,
    ) {
        match &self.live.map {
            Some(map)
                if change == Change::Remove
                    || map.state(object) != ObjectState::Exists
                    || self.is_staged(object) =>
            {
                let (map, operation) = (Arc::clone(map), Some(operation));
                let (result, blocked, nth) = (None, false, self.last_staged + 1);
                self.last_staged = nth;
                let staged = Staged { map, object, change, operation, result, blocked, nth };
                self.staged.insert(token, staged);
                self.begin_stage(token);
            }
            _ => self.image.cluster().submit(operation, &self.inbox, token),
        }
    }

    /// Whether a change of this object has not gone out yet: nothing may overtake it.
    #[inline]
    pub(super) fn is_staged(&self, object: u64) -> bool {
        !self.staged.is_empty() && self.staged.values().any(|staged| staged.object == object)
    }

    /// Begins to change the map, or waits for whoever does.
    fn begin_stage(&mut self, token: u64) {
        let Some(staged) = self.staged.get(&token) else { return };
        let (object, nth) = (staged.object, staged.nth);
        let first = !self.staged.values().any(|other| other.object == object && other.nth < nth);
        let Some(staged) = self.staged.get_mut(&token) else { return };
        self.blocked -= usize::from(std::mem::take(&mut staged.blocked));
        if !first {
            staged.map.wait();
        }
        if !first || !staged.map.begin(object) {
            staged.blocked = true;
            self.blocked += 1;
            return;
        }
        match staged.change {
            Change::Write if staged.map.state(object) == ObjectState::Exists => {
                self.end_stage(token);
            }
            Change::Write => self.update_map(object, ObjectState::Exists, None, token | BEFORE),
            Change::Remove => {
                // Whoever writes to it from now on looks twice.
                staged.map.set(object, ObjectState::Pending);
                self.update_map(object, ObjectState::Pending, None, token | BEFORE);
            }
        }
    }

    /// The map has what is written: the write goes out.
    fn end_stage(&mut self, token: u64) {
        let Some(staged) = self.staged.remove(&token) else { return };
        self.release(&staged);
        if let Some(operation) = staged.operation {
            self.image.cluster().submit(operation, &self.inbox, token);
        }
    }

    fn release(&self, staged: &Staged) {
        if staged.map.end(staged.object) {
            self.image.0.current.nudge();
        }
    }

    fn update_map(&self, object: u64, state: ObjectState, only: Option<ObjectState>, token: u64) {
        let ops = update_ops(object, object + 1, state, only);
        self.operate_on_pool(head_object(self.image.id()), ops, token);
    }

    fn operate_on_pool(&self, object: String, ops: Vec<Op>, token: u64) {
        let ops = ops.into_iter().map(OsdOp::from).collect();
        let mut operation = Operation::new(self.image.pool().locator(), object, ops);
        operation.flags |= flag::WRITE;
        operation.mtime = wall_clock();
        self.image.cluster().submit(operation, &self.inbox, token);
    }

    /// Takes a result if it is of an operation whose map changes, too; gives back one that is not, or that is the last.
    pub(super) fn take_staged(&mut self, token: u64, result: OpResult) -> Option<(u64, OpResult)> {
        let operation = token & !STAGES;
        match token & STAGES {
            BEFORE => self.updated(operation, result),
            INVALIDATE => self.invalidated(operation, result),
            AFTER => {
                let mut staged = self.staged.remove(&operation)?;
                self.release(&staged);
                staged.result.take().map(|result| (operation, result))
            }
            _ if self.staged.is_empty() => Some((token, result)),
            _ => self.removed(operation, result),
        }
    }

    /// The map was changed before the operation.
    fn updated(&mut self, token: u64, result: OpResult) -> Option<(u64, OpResult)> {
        let errno = match &result {
            Ok(reply) => reply.result,
            Err(_) => return self.give_up(token, result),
        };
        if errno >= 0 {
            self.go_on(token);
            return None;
        }
        if errno == EBUSY {
            // It is somebody else's: so is the lock, and what is written may be, too.
            self.image.0.lock.doubt();
            return self.give_up(token, result);
        }
        let error = Error::from_errno(errno, "object map");
        tracing::error!(image = self.image.spec(), %error, "the object map becomes invalid");
        let header = names::header(self.image.id());
        self.operate_on_pool(header, vec![invalidate_op(SnapId::HEAD)], token | INVALIDATE);
        self.unsent = true;
        None
    }

    /// The header says that the map must not be believed.
    fn invalidated(&mut self, token: u64, result: OpResult) -> Option<(u64, OpResult)> {
        match &result {
            Ok(reply) if reply.result >= 0 => {
                if let Some(staged) = self.staged.get(&token) {
                    staged.map.distrust();
                }
                self.go_on(token);
                None
            }
            _ => self.give_up(token, result),
        }
    }

    fn go_on(&mut self, token: u64) {
        let Some(staged) = self.staged.get_mut(&token) else { return };
        match staged.change {
            Change::Write => {
                staged.map.set(staged.object, ObjectState::Exists);
                self.end_stage(token);
            }
            Change::Remove => {
                if let Some(operation) = staged.operation.take() {
                    self.image.cluster().submit(operation, &self.inbox, token);
                }
            }
        }
        self.unsent = true;
    }

    /// An object was removed, or was not.
    fn removed(&mut self, token: u64, result: OpResult) -> Option<(u64, OpResult)> {
        let Some(staged) = self.staged.get_mut(&token) else { return Some((token, result)) };
        let gone = matches!(&result, Ok(reply) if reply.result >= 0 || reply.result == ENOENT);
        if !gone {
            return self.give_up(token, result);
        }
        staged.result = Some(result);
        staged.map.set(staged.object, ObjectState::Absent);
        let (object, pending) = (staged.object, Some(ObjectState::Pending));
        self.update_map(object, ObjectState::Absent, pending, token | AFTER);
        self.unsent = true;
        None
    }

    fn give_up(&mut self, token: u64, result: OpResult) -> Option<(u64, OpResult)> {
        let staged = self.staged.remove(&token)?;
        self.release(&staged);
        Some((token, result))
    }

    /// Answers a read of an object that is not there.
    pub(super) fn answer_absent(&mut self, code: u16, token: u64) {
        let op = OpReply { code, result: ENOENT, data: Bytes::new() };
        let reply = Reply {
            tid: Tid(0),
            object: Bytes::new(),
            pgid: PgId::default(),
            flags: 0,
            result: ENOENT,
            epoch: Epoch(0),
            attempt: 0,
            version: EVersion::default(),
            user_version: 0,
            ops: vec![op],
            redirect: None,
        };
        self.answered.push((token, Ok(reply)));
    }

    /// Lets others go on whom this queue holds up.
    pub(super) fn abandon(&self) {
        self.image.0.lock.unpark(self.parked.len());
        // What was sent may still happen: the map then claims too much, never too little.
        for staged in self.staged.values().filter(|staged| !staged.blocked) {
            self.release(staged);
        }
    }
}
