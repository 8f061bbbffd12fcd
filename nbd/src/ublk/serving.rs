//! Serving a device: requests of the kernel to the device's queue, and completions back, all in one task.
//!
//! Each request of the kernel has a tag, and each tag a command that waits for a request and brings back the result of
//! the one before (`UBLK_IO_COMMIT_AND_FETCH_REQ`). So one entry into the kernel answers all that is done and takes all
//! that is new. A tag whose command fails is over: all of them are when the device is stopped.

use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::io::pwritev;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ring::{Descriptors, Ring, read_at};
use super::wire::{
    COMMIT_AND_FETCH_REQ, DEPTH, Descriptor, FETCH_REQ, Kind, data_offset, io_command,
};
use crate::device::{Completion, Device, Errno, Op, Outcome, Queue, ReadData, Request};
use crate::limits;

/// A device that is served, by a task of the runtime it was begun in.
#[derive(Debug)]
pub struct Serving {
    phase: watch::Sender<Phase>,
    task: JoinHandle<io::Result<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// What is in flight is finished, nothing new is begun: somebody else is asked for that.
    Draining,
    /// Everything fails.
    Failing,
}

/// Serves a device that was [added](super::Control::add), or whose [recovery](super::Control::begin_recovery) was
/// begun. It is ready for requests when this returns.
///
/// The kernel wants to be answered by the thread that this is called on: its runtime must be a current-thread one.
///
/// # Errors
/// The kernel's: `EBUSY` if somebody serves it already.
pub fn serve(index: u32, device: Arc<dyn Device>) -> io::Result<Serving> {
    let file = super::open(index)?;
    let descriptors = Descriptors::map(&file)?;
    let ring = Ring::new(DEPTH.into())?;
    let bell = ring.bell()?;
    let (sender, phase) = watch::channel(Phase::Serving);
    let mut session = Session {
        ring,
        bell,
        file,
        descriptors,
        queue: device.queue(),
        phase,
        ending: Phase::Serving,
        taken: std::iter::repeat_n(None, DEPTH.into()).collect(),
        taken_count: 0,
        taken_bytes: 0,
        waiting: VecDeque::with_capacity(DEPTH.into()),
        unsent: VecDeque::with_capacity(DEPTH.into()),
        over: 0,
        refused: 0,
        completions: Vec::with_capacity(DEPTH.into()),
        spare: BytesMut::new(),
    };
    session.unsent.extend((0..DEPTH).map(|tag| (FETCH_REQ, tag, 0)));
    session.enter()?;
    if session.over > 0 {
        return Err(io::Error::from_raw_os_error(session.refused));
    }
    let task = tokio::spawn(async move {
        // What it is told is looked at whenever it is woken.
        let mut told = session.phase.clone();
        loop {
            let phase = *told.borrow_and_update();
            session.begin(phase);
            tokio::select! {
                biased;
                ended = poll_fn(|cx| session.poll(cx)) => return ended,
                // Nobody serves a device that nobody has; the kernel sees that when the process ends.
                changed = told.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    });
    Ok(Serving { phase: sender, task })
}

impl Serving {
    /// Returns when the device has been stopped.
    ///
    /// # Errors
    /// The kernel's, after which nobody serves it any more.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.task).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// From now on everything fails, also what is in flight, so that the device can be stopped.
    pub fn fail(&self) {
        self.phase.send_replace(Phase::Failing);
    }

    /// Leaves the device to whoever serves it next, which is asked for all that is not begun or not done within
    /// `grace`. Says whether all that was begun is done. The kernel takes the device for left when this process ends.
    pub async fn leave(mut self, grace: Duration) -> bool {
        self.phase.send_replace(Phase::Draining);
        match tokio::time::timeout(grace, &mut self.task).await {
            Ok(ended) => matches!(ended, Ok(Ok(()))),
            Err(_) => {
                self.task.abort();
                false
            }
        }
    }
}

/// A request that the device has.
#[derive(Clone, Copy, Debug)]
struct Taken {
    kind: Kind,
    len: u32,
}

struct Session {
    ring: Ring,
    /// Rings when the kernel has something for us.
    bell: AsyncFd<OwnedFd>,
    file: File,
    descriptors: Descriptors,
    queue: Box<dyn Queue>,
    phase: watch::Receiver<Phase>,
    /// How far it is with ending.
    ending: Phase,
    /// What the device has, by tag; so many, and so many bytes of data.
    taken: Vec<Option<Taken>>,
    taken_count: usize,
    taken_bytes: u64,
    /// Requests that the device has no room for yet.
    waiting: VecDeque<u16>,
    /// Commands that are to be sent: opcode, tag and result.
    unsent: VecDeque<(u32, u16, i32)>,
    /// Tags that are over, and why the last one is.
    over: u16,
    refused: i32,
    completions: Vec<Completion>,
    /// Room for what is to be written.
    spare: BytesMut,
}

impl Session {
    fn begin(&mut self, phase: Phase) {
        self.ending = phase;
        if phase != Phase::Failing {
            return;
        }
        // Whatever the device still says of them is not heard.
        for tag in 0..DEPTH {
            if self.taken.get_mut(usize::from(tag)).and_then(Option::take).is_some() {
                self.answer(tag, Err(Errno::EIO));
            }
        }
        (self.taken_count, self.taken_bytes) = (0, 0);
    }

    /// Everything that can be done without waiting. Ready when the device is stopped, or all is done that was begun
    /// before it was to be left.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // A device that answers at once would otherwise have this thread for itself.
            let turn = ready!(tokio::task::coop::poll_proceed(cx));
            turn.made_progress();
            self.complete(cx);
            if !self.unsent.is_empty() || self.ring.has_work() {
                self.enter()?;
            }
            // Of what the device was given it wakes us only once it has been asked for it.
            let taken = self.take(cx);
            let done = match self.ending {
                Phase::Draining => self.taken_count == 0 && self.unsent.is_empty(),
                Phase::Serving | Phase::Failing => self.over == DEPTH,
            };
            if done {
                return Poll::Ready(Ok(()));
            }
            if taken || !self.unsent.is_empty() {
                continue;
            }
            self.ring.ring_bell(true);
            if !self.ring.has_work() {
                // Nothing more to do before the device or the kernel wakes us.
                ready!(self.bell.poll_read_ready(cx))?.clear_ready();
            }
        }
    }

    /// Answers what the device has completed.
    fn complete(&mut self, cx: &mut Context<'_>) {
        if self.taken_count == 0 {
            return;
        }
        let mut completions = std::mem::take(&mut self.completions);
        while self.queue.poll_completions(cx, &mut completions).is_ready() {
            for Completion { token, result } in completions.drain(..) {
                let tag = token as u16;
                let Some(taken) = self.taken.get_mut(usize::from(tag)).and_then(Option::take)
                else {
                    continue;
                };
                self.taken_count -= 1;
                self.taken_bytes -= u64::from(taken.len);
                let result = result.and_then(|outcome| self.bring(tag, taken, &outcome));
                self.answer(tag, result);
            }
            if self.taken_count == 0 {
                break;
            }
        }
        self.completions = completions;
    }

    /// Gives the kernel what was read, and says how much was done.
    fn bring(&self, tag: u16, taken: Taken, outcome: &Outcome) -> Result<u32, Errno> {
        match (taken.kind, outcome) {
            (Kind::Read, Outcome::Read(data)) if data.len() == u64::from(taken.len) => {
                let written = self.write(tag, data);
                written.map(|()| taken.len).map_err(|error| {
                    tracing::error!(%error, "the kernel does not take what was read");
                    Errno::EIO
                })
            }
            (Kind::Write, Outcome::Done) => Ok(taken.len),
            (Kind::Other, Outcome::Done) => Ok(0),
            _ => {
                tracing::error!(?taken, "the device's answer does not fit the request");
                Err(Errno::EIO)
            }
        }
    }

    /// Writes what was read to the pages of a request.
    fn write(&self, tag: u16, data: &ReadData) -> io::Result<()> {
        let mut offset = data_offset(tag);
        for pieces in data.pieces().chunks_mut(limits::WRITE_PIECES) {
            let len: usize = pieces.iter().map(|piece| piece.len()).sum();
            write_at(&self.file, pieces, offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn answer(&mut self, tag: u16, result: Result<u32, Errno>) {
        let result = match result {
            Ok(len) => len as i32,
            Err(errno) => -(errno.number() as i32),
        };
        self.unsent.push_back((COMMIT_AND_FETCH_REQ, tag, result));
    }

    /// Sends what is to be sent, and takes in what the kernel has for us.
    fn enter(&mut self) -> io::Result<()> {
        let ring = &mut self.ring;
        ring.ring_bell(false);
        loop {
            while let Some((opcode, tag, result)) = self.unsent.front() {
                if !ring.push(&self.file, *opcode, &io_command(*tag, *result), u64::from(*tag)) {
                    break;
                }
                self.unsent.pop_front();
            }
            ring.enter()?;
            while let Some((tag, result)) = ring.completed() {
                match result {
                    0 => self.waiting.push_back(tag as u16),
                    // The device is stopped, or (which would be our mistake) the command makes no sense.
                    error => {
                        tracing::debug!(tag, error, "a tag is over");
                        self.over += 1;
                        self.refused = -error;
                    }
                }
            }
            if self.unsent.is_empty() && !ring.has_work() {
                return Ok(());
            }
        }
    }

    /// Gives requests to the device, as one batch, as far as it has room.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        let mut submitted = false;
        while self.ending != Phase::Draining
            && let Some(tag) = self.waiting.front().copied()
        {
            if self.ending == Phase::Failing {
                self.waiting.pop_front();
                self.answer(tag, Err(Errno::EIO));
                continue;
            }
            let request = self.descriptors.get(tag);
            let has_room = self.taken_bytes < limits::BYTES_IN_FLIGHT;
            if !has_room || self.queue.poll_room(cx).is_pending() {
                break;
            }
            self.waiting.pop_front();
            match self.operation(tag, &request) {
                Ok((op, taken)) => {
                    if let Some(slot) = self.taken.get_mut(usize::from(tag)) {
                        *slot = Some(taken);
                    }
                    self.taken_count += 1;
                    self.taken_bytes += u64::from(taken.len);
                    self.queue.submit(Request { token: tag.into(), op });
                    submitted = true;
                }
                Err(errno) => self.answer(tag, Err(errno)),
            }
        }
        if submitted {
            self.queue.kick();
        }
        submitted
    }

    fn operation(&mut self, tag: u16, request: &Descriptor) -> Result<(Op, Taken), Errno> {
        let kind = request.kind();
        let data = match kind {
            Kind::Write => {
                let (len, offset) = (request.len() as usize, data_offset(tag));
                read_at(&self.file, &mut self.spare, len, offset).map_err(|error| {
                    tracing::error!(%error, "the kernel does not give what is to be written");
                    Errno::EIO
                })?
            }
            Kind::Read | Kind::Other => Bytes::new(),
        };
        let op = request.operation(data).ok_or(Errno::EINVAL)?;
        let len = if kind == Kind::Other { 0 } else { request.len() };
        Ok((op, Taken { kind, len }))
    }
}

impl Drop for Session {
    /// A ring whose commands wait for requests still is left to the end of the process: closing it before has a worker
    /// of Linux 6.12 cancel them for ever, and the process never ends (seen under load, as `upgrade` leaves devices).
    fn drop(&mut self) {
        if self.over < DEPTH
            && let Err(error) = self.ring.outlive()
        {
            tracing::warn!(%error, "the ring of a device that is left");
        }
    }
}

fn write_at(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let written = pwritev(file, slices, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}
