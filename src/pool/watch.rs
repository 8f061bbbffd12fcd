//! Watching an object: being told when somebody notifies its watchers.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::msg::op::{Op, WatchOp};
use proto::msg::osd_op::{Operation, flag};
use proto::msg::watch::{NotifyAckInput, NotifyInput, NotifyReplies, WatchNotify};
use proto::objecter::{self, WatchError};
use tokio::sync::{mpsc, oneshot};

use super::Pool;
use crate::cluster::op_error;
use crate::error::{Context as _, Error, Kind, Result};

/// How long an OSD keeps the watch of a client that it hears nothing of (Ceph's `osd_client_watch_timeout`).
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long watchers may take to answer (librbd's `NotifyRequest`).
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer it may take for the OSD to say that they have or have not.
const NOTIFY_GRACE: Duration = Duration::from_secs(5);

/// What somebody tells the watchers of an object, and waits for their answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Which, for [`Watch::acknowledge`].
    pub id: u64,
    /// The global id of the client that notifies.
    pub notifier: u64,
    /// What it says.
    pub payload: Bytes,
}

/// What happened to a watch.
#[derive(Debug)]
pub enum WatchEvent {
    /// Somebody notifies.
    Notify(Notification),
    /// It is no longer in effect: notifications may have been missed, and no more will come until [`Watch::renew`].
    Lost(Error),
}

/// A watch on an object. When it is dropped, the OSD is told so, without waiting for its answer.
#[derive(Debug)]
pub struct Watch {
    pool: Pool,
    object: String,
    cookie: u64,
    events: mpsc::Receiver<objecter::WatchEvent>,
    closed: bool,
}

/// What is owed to somebody who notifies.
#[derive(Debug)]
pub(crate) struct Acknowledgement {
    pool: Pool,
    object: String,
    cookie: u64,
    id: u64,
}

impl Acknowledgement {
    /// Sends it, and waits for nothing.
    pub(crate) fn send(self, reply: Bytes) {
        let mut input = BytesMut::new();
        NotifyAckInput { notify_id: self.id, cookie: self.cookie, reply }.encode(&mut input);
        let op = Op::NotifyAck { input: input.freeze() };
        let operation = Operation::new(self.pool.locator(), self.object, vec![op.into()]);
        self.pool.cluster().send(operation);
    }
}

impl Pool {
    /// Watches an object. It waits for the object's OSD as long as that takes.
    ///
    /// # Errors
    /// What the OSD answers, above all [`Kind::NotFound`] and [`Kind::PermissionDenied`].
    pub async fn watch(&self, object: &str) -> Result<Watch> {
        let mut watch = Watch::begin(self, object);
        watch.registered().await?;
        Ok(watch)
    }

    /// Tells everybody who watches an object something. Returns when all have answered, or some have not for too long:
    /// says whether all have.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn notify(&self, object: &str, payload: Bytes) -> Result<bool> {
        let replies = self.notify_for_replies(object, payload).await?;
        Ok(replies.is_some_and(|replies| replies.silent.is_empty()))
    }

    /// As [`Pool::notify`], with what was answered; nothing if that was lost on its way.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn notify_for_replies(
        &self,
        object: &str,
        payload: Bytes,
    ) -> Result<Option<NotifyReplies>> {
        let (op, complete) = self.notify_op(payload);
        self.only(object, op).await?;
        // Its completion is lost with the connection to the OSD.
        let complete = tokio::time::timeout(NOTIFY_TIMEOUT + NOTIFY_GRACE, complete).await;
        let Ok(Ok(complete)) = complete else { return Ok(None) };
        NotifyReplies::decode(&complete.replies).context(self.describe(object)).map(Some)
    }

    /// Tells everybody who watches an object something, after whatever this client told them before, and waits for
    /// nothing.
    pub(crate) fn announce(&self, object: &str, payload: Bytes) {
        let (op, _) = self.notify_op(payload);
        self.cluster().send(Operation::new(self.locator(), object, vec![op.into()]));
    }

    fn notify_op(&self, payload: Bytes) -> (Op, oneshot::Receiver<WatchNotify>) {
        let (cookie, complete) = self.cluster().expect_completion();
        let mut input = BytesMut::new();
        let timeout_seconds = NOTIFY_TIMEOUT.as_secs() as u32;
        NotifyInput { timeout_seconds, payload }.encode(&mut input);
        (Op::Notify { cookie, input: input.freeze() }, complete)
    }
}

impl Watch {
    fn begin(pool: &Pool, object: &str) -> Self {
        let (cookie, events) = pool.cluster().watch(pool.locator(), object, TIMEOUT);
        Self { pool: pool.clone(), object: object.to_owned(), cookie, events, closed: false }
    }

    async fn registered(&mut self) -> Result<()> {
        loop {
            match self.events.recv().await {
                Some(objecter::WatchEvent::Registered) => return Ok(()),
                // Registered, but for an answer that is still on its way: nobody could have relied on us yet.
                Some(objecter::WatchEvent::Notify { .. }) => {}
                Some(objecter::WatchEvent::Lost(error)) => return Err(self.error(error)),
                None => return Err(self.pool.cluster().closed()),
            }
        }
    }

    /// The number by which the OSD tells this client's watches apart.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// What happens next. Cancel-safe.
    pub async fn next(&mut self) -> WatchEvent {
        loop {
            match self.events.recv().await {
                Some(objecter::WatchEvent::Registered) => {}
                Some(objecter::WatchEvent::Notify { id, notifier, payload }) => {
                    return WatchEvent::Notify(Notification { id, notifier, payload });
                }
                Some(objecter::WatchEvent::Lost(error)) => {
                    return WatchEvent::Lost(self.error(error));
                }
                None => return WatchEvent::Lost(self.pool.cluster().closed()),
            }
        }
    }

    /// Answers a notification; whoever sent it waits for that.
    ///
    /// # Errors
    /// What the OSD answers; that the notification is over is none.
    pub async fn acknowledge(&self, id: u64, reply: Bytes) -> Result<()> {
        let mut input = BytesMut::new();
        NotifyAckInput { notify_id: id, cookie: self.cookie, reply }.encode(&mut input);
        let op = Op::NotifyAck { input: input.freeze() };
        self.pool.operate(&self.object, vec![op]).await.map(drop)
    }

    /// The same for somebody else to send, later.
    pub(crate) fn acknowledgement(&self, id: u64) -> Acknowledgement {
        let (pool, object) = (self.pool.clone(), self.object.clone());
        Acknowledgement { pool, object, cookie: self.cookie, id }
    }

    /// Watches anew, under another cookie, after the watch was lost.
    ///
    /// # Errors
    /// As [`Pool::watch`].
    pub async fn renew(&mut self) -> Result<()> {
        // The OSD may have it still, and would wait for answers to it.
        let operation = self.end();
        self.pool.cluster().send(operation);
        // The old one is dropped here, closed.
        *self = Self::begin(&self.pool, &self.object);
        self.registered().await
    }

    /// Ends the watch, and returns when the OSD knows.
    ///
    /// # Errors
    /// What the OSD answers; that it did not have the watch any more is none.
    pub async fn close(mut self) -> Result<()> {
        let operation = self.end();
        match self.pool.submit(operation).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends it on this side; the operation ends it on the other.
    fn end(&mut self) -> Operation {
        self.closed = true;
        self.pool.cluster().forget_watch(self.cookie);
        let op = Op::Watch {
            cookie: self.cookie,
            op: WatchOp::Unwatch,
            generation: 0,
            timeout_seconds: 0,
        };
        let ops = vec![op.into()];
        let mut operation = Operation::new(self.pool.locator(), self.object.as_str(), ops);
        operation.flags = flag::FULL_TRY;
        operation
    }

    fn error(&self, error: WatchError) -> Error {
        let what = format!("watching {}", self.pool.describe(&self.object));
        match error {
            WatchError::Refused(errno) => Error::from_errno(errno, what),
            WatchError::Op(error) => op_error(error).context(what),
            WatchError::Expired(_) => Error::new(Kind::TimedOut, format!("{what}: {error}")),
            error => Error::new(Kind::NotFound, format!("{what}: {error}")),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.closed {
            let operation = self.end();
            self.pool.cluster().send(operation);
        }
    }
}
